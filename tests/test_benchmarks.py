"""Benchmarks run by hand: what they take from the package has to be there when they do."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from rematch_ray.data.prompts import PromptTokens
from rematch_ray.data.schema import samples_to_table
from tests.tiny import text_sample
from tests.workloads.runs import run_config

PROGRAMS = sorted((Path(__file__).parents[1] / "benchmarks").rglob("*.py"))


def imported(program: Path) -> Iterator[tuple[str, str]]:
    """Module and name of everything that a program imports from the package."""
    for node in ast.walk(ast.parse(program.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rematch_ray"):
            yield from ((node.module or "", alias.name) for alias in node.names)


@pytest.mark.parametrize("program", PROGRAMS, ids=[path.stem for path in PROGRAMS])
def test_what_a_benchmark_imports_is_there(program: Path) -> None:
    for module, name in imported(program):
        found = importlib.import_module(module)
        if not hasattr(found, name):  # a module of its own
            importlib.import_module(f"{module}.{name}")


def test_there_are_benchmarks_that_import_something() -> None:
    assert len(PROGRAMS) > 30
    assert sum(1 for program in PROGRAMS for _ in imported(program)) > 100


def test_the_loaders_plain_process_steps_over_the_plan(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    loader = importlib.import_module("loader")
    path = tmp_path / "pairs"
    path.mkdir()
    samples = [text_sample(number) for number in range(16)]
    pq.write_table(samples_to_table(samples), path / "pairs.parquet", row_group_size=4)
    threads = torch.get_num_threads()
    try:
        assert loader._plain(run_config(tiny_base, {"pairs": path}, tmp_path), 0, 1) > 0
    finally:
        torch.set_num_threads(threads)


def test_the_large_base_has_a_template_as_long_as_the_default_one_under_qwens_tokenizer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    shape = importlib.import_module("shapes.qwen_3b")
    prompt = PromptTokens(shape.small_tokenizer(), shape.TEMPLATE)
    parts = (prompt.header, prompt.end, prompt.match_instruction, prompt.answer)
    assert tuple(len(part) for part in parts) == shape.default_wording() == (14, 5, 12, 10)
