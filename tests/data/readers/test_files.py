"""Where files may lie: local paths, URIs, object stores, data sets on the Hub."""

import os
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import fsspec
import pyarrow.fs as pafs
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rematch_ray.data.readers import files
from rematch_ray.data.readers.files import absolute_path, look, read_bytes
from rematch_ray.data.readers.formats import list_data
from rematch_ray.data.readers.units import fingerprint
from rematch_ray.data.schema import Item, items_to_table, write_parquet
from rematch_ray.errors import UserError
from tests.data.readers.corpora import read_items, texts, write_lines
from tests.data.readers.test_webdataset import numbered
from tests.data.readers.test_webdataset import write as write_tar
from tests.tiny import png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A corpus in each of several formats."""
    (tmp_path / "tables" / "pictures").mkdir(parents=True)
    (tmp_path / "tables" / "pictures" / "a b.png").write_bytes(png("red"))
    rows = [{"id": str(n), "text": f"row {n}", "image": "pictures/a b.png"} for n in range(9)]
    write_lines(tmp_path / "tables" / "rows.jsonl", rows)
    write_parquet(items_to_table([Item.of("x", id="p")]), tmp_path / "ours" / "a.parquet")
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "a.tar", numbered(3))
    (tmp_path / "images" / "deep").mkdir(parents=True)
    (tmp_path / "images" / "deep" / "a.png").write_bytes(png("blue"))
    return tmp_path


def into_memory(folder: Path, root: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for path in folder.rglob("*"):
        if path.is_file():
            memory.pipe(f"/{root}/{path.relative_to(folder)}", path.read_bytes())


@pytest.mark.parametrize("name", ["tables", "ours", "tars", "images"])
def test_a_store_reads_as_a_folder_does(folder: Path, name: str) -> None:
    into_memory(folder, "bucket/corpora")
    local = read_items(folder / name)
    assert local
    assert read_items(f"file://{folder}/{name}") == local
    assert read_items(f"memory://bucket/corpora/{name}/") == local


def test_pieces_of_a_remote_file_hold_every_line_once(folder: Path) -> None:
    into_memory(folder, "bucket")
    rows = read_items("memory://bucket/tables/rows.jsonl", unit_bytes=10)
    assert [r["id"] for r in rows] == [str(n) for n in range(9)]


def test_images_may_lie_in_another_store(folder: Path) -> None:
    into_memory(folder / "tables" / "pictures", "elsewhere")
    path = write_lines(folder / "rows.jsonl", [{"image": "a b.png"}])
    assert texts(read_items(path, image_root="memory://elsewhere")[0]) == [png("red")]


class Hub(MemoryFileSystem):
    """Stands in for the Hub's file system: the same paths, nothing of the network."""

    protocol = "hf"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]


def test_a_data_set_on_the_hub_is_a_folder(folder: Path, monkeypatch) -> None:
    monkeypatch.setitem(import_module("fsspec.registry")._registry, "hf", Hub)
    files._through_fsspec.cache_clear()
    for path in (folder / "tables").rglob("*"):
        if path.is_file():
            name = path.relative_to(folder / "tables")
            Hub().pipe(f"/datasets/team/corpus/{name}", path.read_bytes())
    rows = read_items("hf://datasets/team/corpus")
    assert texts(rows[0]) == ["row 0", png("red")]
    [unit] = list_data("hf://datasets/team/corpus")
    assert unit.path == "hf://datasets/team/corpus/rows.jsonl"
    files._through_fsspec.cache_clear()


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_an_object_store_is_reached_by_pyarrow_itself(folder, monkeypatch, scheme) -> None:
    """The bucket is stood in for by a folder; what is asked of it are bucket and key."""
    asked = []

    def connect(*bucket: str) -> tuple[pafs.FileSystem, str]:
        asked.append(bucket)
        return pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem()), ""

    monkeypatch.setattr(files, "_native", connect)
    rows = read_items(f"{scheme}://tables/")
    assert texts(rows[0]) == ["row 0", png("red")]
    assert set(asked) == {(scheme, "tables")}
    [unit] = list_data(f"{scheme}://tables")
    assert unit.path == f"{scheme}://tables/rows.jsonl"


def test_hidden_files_are_none(folder: Path) -> None:
    (folder / "images" / ".cache").mkdir()
    (folder / "images" / ".cache" / "b.png").write_bytes(b"x")
    (folder / "images" / ".c.png").write_bytes(b"x")
    assert [entry.name for entry in look(folder / "images").files] == ["deep/a.png"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("memory://nowhere/at/all", "no such file or folder"),
        ("nonsense://bucket/a", "nonsense://: "),
        ("/no/such/place", "no such file or folder"),
    ],
)
def test_a_place_that_is_not_there_is_named(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list_data(path)


def test_paths_become_absolute_so_that_workers_find_them(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    assert list_data("tables")[0].path == str(folder / "tables" / "rows.jsonl")
    monkeypatch.setenv("HOME", str(folder))
    assert absolute_path("~/tables") == str(folder / "tables")
    assert absolute_path("file:///a%20b/c") == "/a b/c"


def test_a_file_whose_name_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with open(os.fsencode(tmp_path) + b"/gr\xf6sse.jsonl", "w") as file:
        file.write('{"text": "b"}\n')
    with pytest.raises(UserError, match=r"gr\\xf6sse\.jsonl' is not UTF-8, .* rename it"):
        list_data(tmp_path)


def test_a_moved_corpus_is_the_same_one_and_a_changed_one_is_not(folder: Path) -> None:
    before = fingerprint(list_data(folder / "tables"))
    (folder / "tables").rename(folder / "moved")
    assert fingerprint(list_data(folder / "moved")) == before
    lines = (folder / "moved" / "rows.jsonl").read_text()
    (folder / "moved" / "rows.jsonl").write_text(lines.replace("row 1", "row 0"))
    assert fingerprint(list_data(folder / "moved")) != before


def test_a_file_larger_than_asked_for_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    with pytest.raises(UserError, match="5 bytes; at most 4 are read"):
        read_bytes(str(tmp_path / "a"), limit=4)
