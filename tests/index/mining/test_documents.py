"""Items come back by part and row, and every row of an index finds its line."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rematch_ray.data.item import Item
from rematch_ray.errors import UserError
from rematch_ray.index.mining.documents import Documents, ItemStore, write_items
from rematch_ray.index.mining.references import Reference, ReferenceMaker, References
from tests.tiny import png

ITEMS = [
    Item.of("a text", id="t", source="notes"),
    Item.of(png(), id="p", source="photos"),
    Item.of("a text", id="copy", source="photos"),
    Item.of(png("blue"), "and text", id="t", source="photos"),
]


def named(item: Item) -> tuple[str, Item, Reference]:
    return f"{item.source}:{item.id}", item, ReferenceMaker(10_000).of(item)


@pytest.fixture
def store(tmp_path: Path) -> ItemStore:
    """Two items, none, two items."""
    for part, items in enumerate((ITEMS[:2], [], ITEMS[2:])):
        write_items(tmp_path / f"{part:06d}.arrow", [named(item) for item in items])
    return ItemStore(tmp_path)


def test_lines_follow_the_rows_of_the_index_and_lead_back_to_the_items(store: ItemStore) -> None:
    order = [3, 0, 2]
    lines = store.documents(f"{ITEMS[n].source}:{ITEMS[n].id}" for n in order)
    assert lines["modality"].tolist() == [3, 1, 1]
    found = store.items(lines)
    assert [(item["id"], item["source"]) for item in found] == [
        (ITEMS[n].id, ITEMS[n].source) for n in order
    ]
    assert found[0]["parts"][0]["image"] == png("blue")
    assert store.items(lines[:0]) == []


def test_nobody_need_know_a_deleted_row_and_none_is_found(store: ItemStore) -> None:
    live = np.array([False, True, True])
    lines = store.documents(["notes:gone", "notes:t", "photos:copy"], live)
    assert lines["part"][1:].tolist() == [0, 2]
    lines[0] = lines[1]
    references = References(*(lines[name][1:2] for name in ("id_key", "source_key", "content")))
    assert [rows.tolist() for rows in Documents(lines).find(references)] == [[0, 1, 2]]
    assert [rows.tolist() for rows in Documents(lines, live).find(references)] == [[1, 2]]


def test_an_index_with_other_documents_is_refused_by_name(store: ItemStore) -> None:
    with pytest.raises(UserError, match=r"1 of 2 documents .* the first is 'notes:gone'"):
        store.documents(["notes:t", "notes:gone"])


def test_a_store_of_nothing_is_refused(tmp_path: Path) -> None:
    write_items(tmp_path / "000000.arrow", [])
    assert len(ItemStore(tmp_path).lines()) == 0
    with pytest.raises(UserError, match="1 of 1 documents"):
        ItemStore(tmp_path).documents(["notes:t"])


def test_documents_are_found_by_id_and_source_first_and_by_content(store: ItemStore) -> None:
    documents = Documents(store.lines())
    make = ReferenceMaker(10_000)
    asked = [
        make.of(ITEMS[0]),
        make.of(Item.of("other", id="t")),
        make.of(Item.of(png(), id="new", source="x")),
        make.of(Item.of("nothing", id="none")),
    ]
    found = documents.find(References.of(asked))
    assert [rows.tolist() for rows in found] == [[0, 2], [0, 3], [1], []]
    assert documents.modality(np.array([1])).tolist() == [2]


def test_a_part_is_plain_arrow_in_one_batch(store: ItemStore, tmp_path: Path) -> None:
    reader = pa.ipc.open_file(pa.memory_map(str(tmp_path / "000002.arrow")))
    assert reader.num_record_batches == 1
    assert not list(tmp_path.glob(".*"))
