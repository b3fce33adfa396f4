"""`rematch-ray index delete` with ids of a file: a line is an id, whatever else it holds."""

import io
import json
import sys
from pathlib import Path

import pytest

from rematch_ray.cli import main
from rematch_ray.index.build import build_index
from rematch_ray.index.search import SearchIndex
from tests.index.made import unit, write_embeddings

# what `str.splitlines` also cuts at
IDS = ["a", "b", "c", "a\u2028b", "a\u0085b", "a\x0bb", "a\rb", "a\x0cb\x1c", "größe"]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    vectors, fused = unit((len(IDS), 8, 16), 1), unit((len(IDS), 24), 2)
    build_index(write_embeddings(tmp_path / "e", vectors, fused, ids=IDS), tmp_path / "index")
    return tmp_path / "index"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "\n", "\n\n"])
def test_a_line_of_the_file_is_one_id(index: Path, tmp_path: Path, end: str, last: str) -> None:
    file = tmp_path / "ids"
    file.write_bytes((end.join(IDS[3:]) + last.replace("\n", end)).encode())
    assert main(["index", "delete", "--index", str(index), "--ids-from", str(file)]) == 0
    assert sorted(SearchIndex.open(index).ids()) == ["a", "b", "c"]


def test_standard_input_is_read_as_a_file_is(
    index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = io.TextIOWrapper(io.BytesIO("a\u2028b\r\ngröße\nx\n".encode()), encoding="latin-1")
    monkeypatch.setattr(sys, "stdin", given)
    assert main(["index", "delete", "--index", str(index), "--ids-from", "-", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["deleted"], told["unknown"]) == (2, 1)
    assert set(SearchIndex.open(index).ids()) == set(IDS) - {"a\u2028b", "größe"}


def test_a_file_that_is_not_utf_8_is_refused_by_name(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ids"
    file.write_bytes("größe".encode("latin-1"))
    assert main(["index", "delete", "--index", str(index), "--ids-from", str(file)]) == 2
    assert f"--ids-from {file} is not UTF-8" in capsys.readouterr().err
