"""Lance datasets: our own convention, other columns, fragments, versions."""

from pathlib import Path

import pyarrow as pa
import pytest

from rematch_ray.data.item import SchemaError
from rematch_ray.data.readers.files import look
from rematch_ray.data.readers.formats import detect, list_data, read_data
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.errors import UserError
from tests.data.readers.corpora import errors, read_items, texts
from tests.tiny import png

lance = pytest.importorskip("lance")


def write(path: Path, rows: list[dict], **options: object) -> Path:
    schema = pa.schema([
        ("id", pa.string()), ("image", pa.large_binary()), ("w", pa.int32()), ("h", pa.int32()),
        ("text", pa.string()), ("source", pa.string()), ("sha", pa.string()),
    ])  # fmt: skip
    lance.write_dataset(pa.Table.from_pylist(rows, schema=schema), str(path), **options)
    return path


def row(number: int, **changes: object) -> dict:
    common = {"image": png("red"), "w": 8, "h": 8, "source": "album", "sha": "0" * 64}
    return {"id": f"k{number}", "text": f"text {number}", **common, **changes}


def test_our_convention_is_read_without_a_mapping(tmp_path: Path) -> None:
    path = write(tmp_path / "a.lance", [row(n) for n in range(7)], max_rows_per_file=3)
    assert detect(look(path))[0].name == "lance"
    units = list_data(path)
    assert [(u.num_rows, u.first_row) for u in units] == [(3, 0), (3, 3), (1, 6)]
    rows = read_items(path)
    assert [r["id"] for r in rows] == [f"k{n}" for n in range(7)]
    assert texts(rows[4]) == ["text 4", png("red")]
    assert rows[4]["source"] == "album"
    assert rows[4]["payload"] == {"w": 8, "h": 8, "sha": "0" * 64}


def test_large_fragments_are_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.lance", [row(n) for n in range(7)])
    assert [u.num_rows for u in list_data(path, ReaderSettings(unit_files=3))] == [3, 3, 1]
    rows = read_items(path, unit_files=3)
    assert [r["id"] for r in rows] == [f"k{n}" for n in range(7)]


def test_a_folder_of_datasets_is_read_whole(tmp_path: Path) -> None:
    write(tmp_path / "b.lance", [row(1)])
    write(tmp_path / "a.lance", [row(0)])
    assert [r["id"] for r in read_items(tmp_path)] == ["k0", "k1"]


def test_what_is_written_meanwhile_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.lance", [row(0), row(1)])
    [unit] = list_data(path)
    lance.dataset(str(path)).delete("id = 'k0'")
    write(path, [row(2)], mode="append")
    ids = [name for batch in read_data(unit) for name in batch.column("id").to_pylist()]
    assert ids == ["k0", "k1"]
    assert [r["id"] for r in read_items(path)] == ["k1", "k2"]


def test_rows_and_columns_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.lance", [row(0, image=None, text=None), row(1)])
    assert "row 0: neither text nor image" in errors(read_items(path))[0]
    with pytest.raises(SchemaError, match=r"no column 'txt' for text; did you mean text\?"):
        list_data(path, ReaderSettings(columns="text=txt"))


def test_a_damaged_dataset_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.lance", [row(0)])
    [unit] = list_data(path)
    for file in (path / "data").iterdir():
        file.write_bytes(b"gone")
    with pytest.raises(UserError, match=r"a\.lance.*cannot be read"):
        list(read_data(unit))
    for file in (path / "_versions").iterdir():
        file.write_bytes(b"gone")
    with pytest.raises(UserError, match=r"a\.lance: not a readable Lance dataset"):
        list_data(path)


def test_cells_that_python_cannot_hold_are_rows_with_reasons(tmp_path: Path) -> None:
    when = pa.array([0, 2**60], pa.timestamp("us"))
    table = pa.table({"id": ["a", "b"], "text": ["fine", "late"], "when": when})
    lance.write_dataset(table, str(tmp_path / "a.lance"))
    rows = read_items(tmp_path / "a.lance")
    assert [r["id"] for r in rows] == ["a", "b"]
    [reason] = errors(rows)
    assert "row 1: column 'when' cannot be read" in reason
