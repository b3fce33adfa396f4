"""Where files may lie: local paths, URIs, object stores, data sets on the Hub."""

import os
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import fsspec
import pyarrow.fs as pafs
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from rematch_ray.data.readers import files
from rematch_ray.data.readers.files import StorageError, absolute_path, look, read_bytes
from rematch_ray.data.readers.formats import list_data, read_data
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import fingerprint
from rematch_ray.data.schema import Item, Part, items_to_table, write_parquet
from rematch_ray.errors import UserError
from tests.data.readers.corpora import errors, good, read_items, texts, write_lines
from tests.data.readers.pdfs import pdf
from tests.data.readers.stores import FailingStore, stored
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


def test_options_of_a_store_stand_behind_the_bucket_and_nowhere_else(folder, monkeypatch) -> None:
    asked = []

    def connect(*bucket: str) -> tuple[pafs.FileSystem, str]:
        asked.append(bucket)
        return pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem()), ""

    monkeypatch.setattr(files, "_native", connect)
    rows = read_items("s3://tables?region=eu-west-1/")
    assert texts(rows[0]) == ["row 0", png("red")]
    assert set(asked) == {("s3", "tables?region=eu-west-1")}
    [unit] = list_data("s3://tables?region=eu-west-1")
    assert unit.path == "s3://tables?region=eu-west-1/rows.jsonl"
    asked.clear()
    (folder / "tables" / "pictures").rename(folder / "tables" / "pictures?region=x")
    with pytest.raises(UserError, match="no such file"):
        list_data("s3://tables/other?endpoint_override=127.0.0.1:1")
    name = "pictures?region=x/a b.png"
    write_lines(folder / "tables" / "rows.jsonl", [{"image": name}])
    assert texts(read_items("s3://tables")[0]) == [png("red")]
    assert set(asked) == {("s3", "tables")}


def test_hidden_files_are_none(folder: Path) -> None:
    (folder / "images" / ".cache").mkdir()
    (folder / "images" / ".cache" / "b.png").write_bytes(b"x")
    (folder / "images" / ".c.png").write_bytes(b"x")
    assert [entry.name for entry in look(folder / "images").files] == ["deep/a.png"]


def test_a_link_to_a_folder_around_it_is_not_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "deep").mkdir(parents=True)
    for name in ("x.png", "deep/y.png"):
        (corpus / name).write_bytes(png("red"))
    before = look(corpus).files
    (corpus / "self").symlink_to(".")
    (corpus / "deep" / "up").symlink_to(corpus)
    (corpus / "a copy").symlink_to("deep")
    (corpus / "nowhere").symlink_to("gone")
    (corpus / "round").symlink_to("round")
    assert [entry.name for entry in before] == ["deep/y.png", "x.png"]
    assert list(look(corpus).files) == list(before)
    assert [r["id"] for r in read_items(corpus)] == ["deep/y.png", "x.png"]
    assert f"{corpus}/self is left out: it leads to {corpus}, which is read already" in caplog.text
    assert f"{corpus}/a copy is left out: it leads to {corpus}/deep" in caplog.text


def test_a_link_to_a_folder_elsewhere_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "a.png").write_bytes(png("red"))
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "b.png").write_bytes(png("blue"))
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus" / "twice").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "way in").symlink_to("corpus")
    for folder in ("corpus", "way in"):
        rows = read_items(tmp_path / folder)
        assert [r["id"] for r in rows] == ["b.png", "link/deep/a.png"]


def test_a_tree_is_listed_as_pyarrow_lists_it(folder: Path) -> None:
    """Stamps too: an unchanged corpus keeps its fingerprint."""
    found = pafs.LocalFileSystem().get_file_info(pafs.FileSelector(str(folder), recursive=True))
    plain = {(i.path, f"{i.size}:{i.mtime_ns}") for i in found if i.type == pafs.FileType.File}
    assert {(entry.path, entry.stamp) for entry in look(folder).files} == plain


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


@pytest.fixture(params=["image", "caption", "named image", "linked image", "pdf"])
def files_by_row(request, tmp_path: Path) -> tuple[Path, str]:
    """A corpus whose rows are made of files, or name them, and the name of one of these."""
    kind, folder = request.param, tmp_path / "corpus"
    folder.mkdir()
    for name in ("a.png", "b.png") if kind != "pdf" else ():
        (folder / name).write_bytes(png("red"))
    if kind == "caption":
        (folder / "b.txt").write_text("words")
    if kind == "named image":
        write_lines(folder / "rows.jsonl", [{"image": "a.png"}, {"image": "b.png"}])
    if kind == "linked image":
        rows = [Item.of(Part("image", uri=name), id=name) for name in ("a.png", "b.png")]
        write_parquet(items_to_table(rows), folder / "rows.parquet")
    if kind == "pdf":
        pytest.importorskip("pypdfium2")
        (folder / "a.pdf").write_bytes(pdf(["one"]))
        (folder / "b.pdf").write_bytes(pdf(["two", "three"]))
    return folder, {"caption": "b.txt", "pdf": "b.pdf"}.get(kind, "b.png")


def read_all(units: list) -> list[dict]:
    return [row for unit in units for batch in read_data(unit) for row in batch.to_pylist()]


def test_storage_that_fails_for_a_moment_spoils_no_row(files_by_row, monkeypatch) -> None:
    folder, name = files_by_row
    uri = stored(folder, monkeypatch)
    units = list_data(uri)
    FailingStore.failures[name] = 2
    rows = read_all(units)
    assert len(rows) >= 2
    assert not errors(rows)
    assert FailingStore.asked.count(name) >= 3


def test_storage_that_goes_on_failing_ends_the_reading(files_by_row, monkeypatch) -> None:
    folder, name = files_by_row
    uri = stored(folder, monkeypatch)
    units = list_data(uri)
    FailingStore.failures[name] = 100
    with pytest.raises(StorageError, match=rf"{name}: storage does not give it: .*503 slow down"):
        read_all(units)


def test_storage_that_fails_while_listing_ends_the_listing(tmp_path, monkeypatch) -> None:
    pytest.importorskip("pypdfium2")
    (tmp_path / "a.pdf").write_bytes(pdf([f"page {n}" for n in range(40)]))
    uri = stored(tmp_path, monkeypatch)
    FailingStore.failures["a.pdf"] = 100
    with pytest.raises(StorageError, match="503 slow down"):
        list_data(uri)
    FailingStore.failures["a.pdf"] = 1
    assert len(list_data(uri, ReaderSettings(unit_files=10))) == 4


def test_a_failure_that_looks_like_a_missing_file_is_none(tmp_path, monkeypatch) -> None:
    """fsspec's isfile takes every failure for no; what stands there is asked again."""
    (tmp_path / "a.png").write_bytes(png("red"))
    uri = stored(tmp_path, monkeypatch)
    monkeypatch.setattr(FailingStore, "isfile", lambda self, path: False)
    with pytest.raises(StorageError):
        read_bytes(f"{uri}/a.png")
    with pytest.raises(UserError, match="cannot be opened") as raised:
        read_bytes(f"{uri}/gone.png")
    assert not isinstance(raised.value, StorageError)


def test_what_may_not_be_read_is_not_asked_for_again(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.png").write_bytes(png("red"))
    uri = stored(tmp_path, monkeypatch)
    FailingStore.failures["a.png"] = 100
    monkeypatch.setattr(FailingStore, "error", PermissionError(13, "not yours"))
    with pytest.raises(StorageError, match="not yours"):
        read_bytes(f"{uri}/a.png")
    assert FailingStore.asked == ["a.png"]


@pytest.mark.parametrize("root", ["", "memory://elsewhere"])
def test_a_name_that_no_file_can_have_is_a_bad_row(folder: Path, root: str) -> None:
    into_memory(folder / "tables" / "pictures", "elsewhere")
    names = ["gone.png", "a b.png/x", "x" * 5000, "\ud800.png", "..", "a\0b", "../elsewhere"]
    path = write_lines(folder / "tables" / "pictures" / "rows.jsonl", [{"image": n} for n in names])
    rows = read_items(path, **({"image_root": root} if root else {}))
    assert len(errors(rows)) == len(names)
    assert not good(rows)


def test_an_archive_that_storage_stops_giving_is_not_damaged(tmp_path, monkeypatch) -> None:
    write_tar(tmp_path / "a.tar", numbered(1000))
    uri = stored(tmp_path, monkeypatch)
    units = list_data(uri)
    read, failing = MemoryFile.read, [True]

    def once(self: MemoryFile, size: int = -1) -> bytes:
        if self.tell() > 500_000 and failing:
            raise OSError(failing.pop() and "503 slow down")
        return read(self, size)

    monkeypatch.setattr(MemoryFile, "read", once)
    with pytest.raises(StorageError, match=r"a\.tar, from byte \d+: cannot be read: 503"):
        read_all(units)
    assert len(read_all(units)) == 1000
