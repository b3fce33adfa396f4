"""Row keys: the same everywhere for the same row, another for any other."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from rematch_ray.data.readers.keys import row_keys
from rematch_ray.data.schema import Item, Part, items_to_table

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
