"""Benchmarks run by hand: what they take from the package has to be there when they do."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

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
