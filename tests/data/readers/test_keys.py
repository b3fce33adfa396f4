"""Row keys: the same everywhere for the same row, another for any other."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rematch_ray.data.readers.content import content_of
from rematch_ray.data.readers.formats import list_data, read_data, read_keyed
from rematch_ray.data.readers.keys import row_keys
from rematch_ray.data.schema import Item, Part, items_to_table, write_parquet
from tests.data.readers.layouts import write_rows

ITEMS = [
    Item.of("a", b"image", id="x", source="s", payload={"n": 1, "tags": ["p", "q"]}),
    Item.of("ab", id="x", source="s"),
    Item.of("a", "b", id="x", source="s"),
    Item.of("", id="y", parent_id="x"),
]


def keys(*items: Item) -> list[int]:
    return row_keys(items_to_table(items)).to_pylist()


def test_keys_are_63_bits_and_differ() -> None:
    found = keys(*ITEMS)
    assert len(set(found)) == len(found)
    assert all(0 <= key < 2**63 for key in found)
    many = row_keys(items_to_table([Item.of(str(n), id="i") for n in range(20_000)])).to_numpy()
    assert len(np.unique(many)) == 20_000
    # every bit of the 63 is used
    assert int(np.bitwise_or.reduce(many)) == 2**63 - 1


@pytest.mark.parametrize(
    "other",
    [
        Item.of("a", b"image", id="y", source="s", payload={"n": 1, "tags": ["p", "q"]}),
        Item.of("a", b"image", id="x", source="t", payload={"n": 1, "tags": ["p", "q"]}),
        Item.of("b", b"image", id="x", source="s", payload={"n": 1, "tags": ["p", "q"]}),
        Item.of("a", b"Image", id="x", source="s", payload={"n": 1, "tags": ["p", "q"]}),
        Item.of(b"image", "a", id="x", source="s", payload={"n": 1, "tags": ["p", "q"]}),
        Item.of("a", b"image", id="x", source="s", payload={"n": 2, "tags": ["p", "q"]}),
        Item.of("a", b"image", id="x", source="s", payload={"n": 1, "tags": ["pq"]}),
        Item.of("a", b"image", id="x", source="s", payload={"n": 1}),
        Item.of("a", b"image", id="x", source="s", parent_id="p", payload={"n": 1, "tags": ["p"]}),
    ],
)
def test_whatever_changes_changes_the_key(other: Item) -> None:
    assert keys(ITEMS[0]) != keys(other)


def test_where_an_image_lay_does_not_matter_once_it_is_read() -> None:
    here, there = (Item("x", (Part("image", image=b"i", uri=uri),)) for uri in ("a/i", "b/i"))
    assert keys(here) == keys(there)
    unread = [Item("x", (Part("image", uri=uri),)) for uri in ("a/i", "b/i")]
    assert len(set(keys(*unread))) == 2


def test_a_key_does_not_depend_on_the_row_s_neighbours_or_batch() -> None:
    table = items_to_table(ITEMS)
    together = row_keys(table).to_pylist()
    assert [keys(item)[0] for item in ITEMS] == together
    batch = table.combine_chunks().to_batches()[0]
    assert row_keys(batch.slice(1, 2)).to_pylist() == together[1:3]
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert row_keys(chunked).to_pylist() == together


def test_other_types_of_the_same_columns_are_the_same_row() -> None:
    table = items_to_table(ITEMS)
    wide = pa.struct(
        [("extra", pa.string()), ("tags", pa.large_list(pa.large_string())), ("n", pa.float64())]
    )
    rows = table.drop_columns("payload").append_column("payload", table["payload"].cast(wide))
    assert row_keys(rows).to_pylist() == row_keys(table).to_pylist()
    plain = items_to_table([Item.of("a", id="x")])
    assert row_keys(plain).to_pylist() == row_keys(plain.drop_columns("parent_id")).to_pylist()


def test_a_key_is_the_same_in_another_process_and_release() -> None:
    found = keys(ITEMS[0])[0]
    program = (
        "from rematch_ray.data.readers.keys import row_keys\n"
        "from rematch_ray.data.schema import Item, items_to_table\n"
        "item = Item.of('a', b'image', id='x', source='s', payload={'n': 1, 'tags': ['p', 'q']})\n"
        "print(row_keys(items_to_table([item]))[0])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert int(done.stdout) == found, done.stderr
    # kept by every directory of embeddings that is topped up: it may never change
    assert found == 1332279129907737416


def test_rows_that_could_not_be_read_differ_by_their_reason() -> None:
    schema = items_to_table([Item.of("a")]).schema.append(pa.field("error", pa.string()))
    reasons = ["byte 1: not JSON", "byte 9: not JSON", None]
    parts = [None, None, [{"kind": "text", "text": "a"}]]
    rows = [{"id": "x", "parts": p, "error": e} for p, e in zip(parts, reasons)]
    batch = pa.RecordBatch.from_pylist(rows, schema=schema)
    found = row_keys(batch).to_pylist()
    assert len(set(found)) == 3
    assert found[2] == row_keys(batch.slice(2).drop_columns("error")).to_pylist()[0]
    assert row_keys(batch.slice(0, 0)).to_pylist() == []


def keys_of(path: Path) -> dict[str, int]:
    """The keys of all rows of a corpus by id."""
    return {
        name: key
        for unit in list_data(path, rows="items")
        for batch, found in read_keyed(unit)
        for name, key in zip(batch["id"].to_pylist(), found.to_pylist())
    }


def unchanged(path: Path, before: dict[str, int]) -> bool:
    now = keys_of(path)
    assert len(now) > len(before)
    return all(now[name] == key for name, key in before.items())


def test_a_file_with_other_types_changes_no_key_of_the_others(tmp_path: Path) -> None:
    rows = [
        {"id": f"a{n}", "text": "x", "price": float(n), "count": n, "tags": [1.0, "t"], "ok": True}
        for n in range(20)
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    before = keys_of(tmp_path)
    other = {"price": "n/a", "count": 0.5, "tags": "none", "ok": 1, "new": {"of": 1}}
    write_rows(tmp_path / "b.jsonl", [{"id": "b", "text": "y", **other}])
    assert unchanged(tmp_path, before)
    # and they are those that a corpus of these types alone always had
    fields = ("price", "count", "ok")
    items = [
        Item.of("x", id=row["id"], payload={f: row[f] for f in fields} | {"tags": '[1.0, "t"]'})
        for row in rows
    ]
    assert list(before.values()) == keys(*items)


def test_a_field_that_comes_late_has_the_same_key_in_a_column_of_its_own(tmp_path: Path) -> None:
    # beyond the beginning of the file, by which columns are told
    rows = [{"id": f"a{n}", "text": "x" * 3000} for n in range(400)] + [
        {"id": f"late{n}", "text": "x", "late": n, "name": "é"} for n in range(9)
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    before = keys_of(tmp_path)
    [unit] = list_data(tmp_path, rows="items")
    last = list(read_data(unit))[-1]["payload"].to_pylist()[-1]
    assert last == {"other_fields": '{"late": 8, "name": "\\u00e9"}'}
    write_rows(tmp_path / "b.jsonl", [{"id": "b", "text": "y", "late": 1.5, "name": "b"}])
    assert unchanged(tmp_path, before)


def test_a_cell_of_csv_is_what_is_written_there_whatever_its_column_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text,price\n" + "".join(f"a{n},x,{n}.0\n" for n in range(9)))
    before = keys_of(path)
    path.write_text(path.read_text() + "b,x,n/a\n")
    assert unchanged(path, before)
    path.write_text(path.read_text().replace("a1,x,1.0", "a1,x,1.00"))
    assert not unchanged(path, before)


def test_a_parquet_file_of_wider_types_changes_no_key(tmp_path: Path) -> None:
    def write(name: str, real: pa.DataType, time: pa.DataType, **more: list[str]) -> None:
        columns = {
            "id": [f"{name}{n}" for n in range(9)],
            "text": ["x"] * 9,
            "real": pa.array([n / 10 for n in range(9)], real),
            "time": pa.array(range(9), time),
        }
        pq.write_table(pa.table(columns | more), tmp_path / f"{name}.parquet")

    write("a", pa.float32(), pa.timestamp("s"))
    before = keys_of(tmp_path)
    write("b", pa.float64(), pa.timestamp("us"), more=["y"] * 9)
    assert unchanged(tmp_path, before)
    assert all(
        batch.schema.names[-1] == "error"
        for unit in list_data(tmp_path, rows="items")
        for batch in read_data(unit)
    )


def test_a_number_that_the_shared_type_cannot_hold_is_a_row_with_a_reason(tmp_path: Path) -> None:
    for name, numbers in {"a": [1, 2**60 + 1], "b": [0.5, 1.5]}.items():
        table = pa.table({"id": [f"{name}0", f"{name}1"], "text": ["x", "x"], "n": numbers})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    rows = [
        row
        for unit in list_data(tmp_path, rows="items")
        for batch in read_data(unit)
        for row in batch.to_pylist()
    ]
    assert [bool(row["error"]) for row in rows] == [False, True, False, False]
    assert [row["payload"] for row in rows if not row["error"]] == [{"n": n} for n in (1, 0.5, 1.5)]


def test_our_own_files_of_several_types_keep_their_keys(tmp_path: Path) -> None:
    def write(name: str, kind: pa.DataType) -> None:
        items = [Item.of("x", id=f"{name}{n}", payload={"real": n / 10}) for n in range(5)]
        table = items_to_table(items, pa.struct([("real", kind)]))
        write_parquet(table, tmp_path / f"{name}.parquet")

    write("a", pa.float32())
    before = keys_of(tmp_path)
    write("b", pa.float64())
    assert unchanged(tmp_path, before)


@pytest.mark.parametrize(
    "number", [0.0, 1.0, -2.5, 0.1, 1e-4, 1e-5, 3e9, 1e10, 1.5e17, 2.0**53, 1e300, float("nan")]
)
def test_a_number_is_spelled_as_a_column_of_its_type_is(number: float) -> None:
    typed = keys(Item.of("x", payload={"n": number}))
    table = items_to_table([Item.of("x")])
    content = pa.array([content_of({"n": number})], pa.large_binary())
    assert row_keys(table.append_column("payload_content", content)).to_pylist() == typed
