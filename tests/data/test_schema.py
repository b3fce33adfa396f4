import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rematch_ray.data.columns import VERSION_KEY
from rematch_ray.data.schema import (
    Item,
    Negative,
    Part,
    Positive,
    Sample,
    SchemaError,
    item_schema,
    items_from_table,
    items_to_table,
    sample_schema,
    samples_from_table,
    samples_to_table,
    write_parquet,
)

parts = st.one_of(
    st.text().map(Part.of_text),
    st.binary(max_size=40).map(Part.of_image),
    st.text(min_size=1).map(lambda uri: Part("image", uri=uri)),
)
# a row whose payload lacks a field and one whose field is null read the same
payloads = st.fixed_dictionaries({"name": st.text(), "tags": st.lists(st.text(), max_size=2)})
items = st.builds(
    Item,
    id=st.text(min_size=1),
    parts=st.lists(parts, min_size=1, max_size=3).map(tuple),
    parent_id=st.none() | st.text(),
    source=st.text(),
    payload=payloads,
)
grades = st.floats(-4, 4, width=32)
samples = st.builds(
    Sample,
    query=items,
    positives=st.lists(st.builds(Positive, items, grades), min_size=1, max_size=2).map(tuple),
    negatives=st.lists(st.builds(Negative, items, st.text(), st.none() | grades), max_size=2).map(
        tuple
    ),
    instruction=st.none() | st.text(),
    target_modality=st.none() | st.text(),
    source=st.text(),
)


@given(st.lists(items, max_size=4))
@settings(max_examples=50, deadline=None)
def test_items_survive_the_round_trip_through_arrow(rows):
    assert items_from_table(items_to_table(rows)) == rows


@given(st.lists(samples, max_size=3))
@settings(max_examples=50, deadline=None)
def test_samples_survive_the_round_trip_through_arrow(rows):
    assert samples_from_table(samples_to_table(rows)) == rows


def test_samples_survive_parquet_and_need_no_extension_type(tmp_path):
    row = Sample(
        Item.of("a"),
        (Positive(Item.of(b"image", payload={"name": "n"}), 2.0),),
        (Negative(Item.of("b", "c"), "swap:position", -0.5),),
    )
    path = write_parquet(samples_to_table([row]), tmp_path / "deep" / "rows.parquet")
    table = pq.read_table(path)
    assert samples_from_table(table) == [row]
    assert "extension" not in str(table.schema)


def test_a_table_of_items_without_payload_has_no_payload_column(tmp_path):
    table = items_to_table([Item.of("a")])
    assert "payload" not in table.column_names
    write_parquet(table, tmp_path / "rows.parquet")


def test_items_of_different_payload_fields_share_the_union():
    rows = [Item.of("a", payload={"x": 1}), Item.of("b", payload={"y": "z"})]
    assert [dict(item.payload) for item in items_from_table(items_to_table(rows))] == [
        {"x": 1},
        {"y": "z"},
    ]


def test_payload_fields_of_different_types_are_refused():
    rows = [Item.of("a", payload={"x": 1}), Item.of("b", payload={"x": "one"})]
    with pytest.raises(SchemaError, match="one type in all items"):
        items_to_table(rows)


def test_a_missing_column_is_named_with_its_file():
    table = pa.table({"id": ["a"], "text": ["b"]})
    with pytest.raises(SchemaError, match=r"shard-7\.parquet: no column 'parts' .*id, text"):
        items_from_table(table, where="shard-7.parquet")


def test_a_column_of_the_wrong_type_is_named_down_to_the_field():
    wrong = pa.struct([("kind", pa.string()), ("image", pa.string())])
    table = pa.table({"parts": pa.array([[{"kind": "image", "image": "x"}]], pa.list_(wrong))})
    with pytest.raises(SchemaError, match="'parts', element, field 'image' has type string"):
        items_from_table(table)


def test_wider_and_narrower_arrow_types_are_read():
    part = pa.struct([("kind", pa.large_string()), ("image", pa.binary())])
    table = pa.table(
        {
            "id": pa.array(["a"]).dictionary_encode(),
            "parts": pa.array([[{"kind": "image", "image": b"x"}]], pa.large_list(part)),
            "further": [1],
        }
    )
    assert items_from_table(table) == [Item("a", (Part.of_image(b"x"),))]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a", "parts": []}, r"file, row 0 \(id 'a'\): 'parts' is empty"),
        ({"id": "a", "parts": None}, "'parts' is empty"),
        ({"id": "a", "parts": [{"kind": "sound"}]}, "part kind 'sound' is unknown"),
        ({"id": "a", "parts": [{"kind": "image"}]}, "neither image bytes nor a uri"),
    ],
)
def test_a_row_that_is_no_item_is_named(row, message):
    table = pa.Table.from_pylist([row], schema=item_schema())
    with pytest.raises(SchemaError, match=message):
        items_from_table(table, where="file")


def test_a_sample_without_positives_is_named():
    table = samples_to_table([Sample(Item.of("q"), ())])
    with pytest.raises(SchemaError, match="row 0: a sample needs"):
        samples_from_table(table)


def test_a_file_from_a_later_release_is_refused():
    table = items_to_table([Item.of("a")]).replace_schema_metadata({VERSION_KEY: b"99"})
    with pytest.raises(SchemaError, match=r"schema version 99.*upgrade"):
        items_from_table(table)


def test_row_groups_are_bounded_and_keep_the_order(tmp_path):
    rows = [Item.of(bytes([i]) * 1000 * (1 + i % 5), id=str(i)) for i in range(40)]
    table = items_to_table(rows)
    path = write_parquet(table, tmp_path / "rows.parquet", row_group_bytes=10_000)
    with pq.ParquetFile(path) as file:
        groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
    assert len(groups) > 5
    assert all(group.nbytes <= 11_000 for group in groups)
    assert items_from_table(pa.concat_tables(groups)) == rows


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_parquet(items_to_table([Item.of("old")]), tmp_path / "rows.parquet")
    unwritable = pa.table({"empty": pa.array([{}], pa.struct([]))})
    with pytest.raises(pa.ArrowException):
        write_parquet(unwritable, path)
    assert [item.text for item in items_from_table(pq.read_table(path))] == ["old"]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.parquet"]


def test_an_empty_table_is_a_readable_file(tmp_path):
    path = write_parquet(sample_schema().empty_table(), tmp_path / "rows.parquet")
    assert samples_from_table(pq.read_table(path)) == []
