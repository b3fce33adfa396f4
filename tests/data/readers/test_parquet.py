import dataclasses
import os
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rematch_ray.data.readers.formats import list_data, read_data
from rematch_ray.data.readers.keys import row_keys
from rematch_ray.data.readers.parquet import list_units, read_table, read_unit
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import fingerprint
from rematch_ray.data.schema import (
    Item,
    Positive,
    Sample,
    SchemaError,
    items_from_table,
    items_to_table,
    samples_to_table,
    write_parquet,
)
from rematch_ray.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Two files of Items, the first of several row groups."""
    rows = [Item.of("x" * 500, str(i), id=f"item-{i}") for i in range(30)]
    write_parquet(items_to_table(rows[:20]), tmp_path / "a.parquet", row_group_bytes=4_000)
    write_parquet(items_to_table(rows[20:]), tmp_path / "b.parquet")
    return tmp_path


def test_units_cover_every_row_once_and_in_order(folder):
    units = list_units(folder)
    assert len(units) > 3
    read = [item.id for unit in units for b in read_unit(unit) for item in items_from_table(b)]
    assert read == [f"item-{i}" for i in range(30)]
    assert [u.first_row for u in units if u.path.endswith("a.parquet")][1] == units[0].num_rows


def test_files_are_read_in_the_order_given_and_folders_by_name(folder):
    b, a = folder / "b.parquet", folder / "a.parquet"
    assert list_units([b, a])[0].path == str(b)
    assert list_units(folder)[0].path == str(a)


def test_a_unit_can_be_sent_to_another_process(folder):
    unit = list_units(folder)[1]
    assert pickle.loads(pickle.dumps(unit)) == unit


def test_batches_and_columns_are_bounded_on_request(folder):
    unit = list_units(folder / "b.parquet")[0]
    batches = list(read_unit(unit, columns=["id"], batch_rows=3))
    assert [batch.num_rows for batch in batches] == [3, 3, 3, 1]
    assert batches[0].schema.names == ["id"]


def test_a_row_group_of_any_size_is_read_a_few_rows_at_a_time(tmp_path):
    rows = [Item.of("x" * 2000 + str(i), id=str(i)) for i in range(10_000)]
    pq.write_table(items_to_table(rows), tmp_path / "a.parquet", use_dictionary=False)
    del rows
    [unit] = list_data(tmp_path)
    before, most, ids = pa.total_allocated_bytes(), 0, []
    for batch in read_data(unit):
        most = max(most, pa.total_allocated_bytes() - before)
        ids += batch.column("id").to_pylist()
    assert ids == [str(i) for i in range(10_000)]
    assert most < 8 * 2**20


def test_empty_row_groups_and_files_are_left_out_but_no_rows_at_all_is_an_error(tmp_path):
    empty = items_to_table([])
    write_parquet(empty, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no rows in"):
        list_units(tmp_path)
    write_parquet(items_to_table([Item.of("x")]), tmp_path / "b.parquet")
    assert [unit.num_rows for unit in list_units(tmp_path)] == [1]


def test_what_is_missing_or_unreadable_is_named(tmp_path, folder):
    with pytest.raises(UserError, match=r"gone\.parquet: no such file"):
        list_units(tmp_path / "gone.parquet")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"none: the folder holds no"):
        list_units(tmp_path / "none")
    bad = tmp_path / "bad" / "bad.parquet"
    bad.parent.mkdir()
    bad.write_bytes((folder / "a.parquet").read_bytes()[:-20])
    with pytest.raises(UserError, match=r"bad\.parquet: not a readable Parquet file"):
        list_units(bad)


def test_a_column_that_is_not_there_is_named_with_the_file(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "rows.parquet")
    with pytest.raises(SchemaError, match=r"rows\.parquet: neither Items .* columns: text"):
        list_units(tmp_path)
    with pytest.raises(SchemaError, match=r"rows\.parquet: no column 'parts'"):
        list_units(tmp_path, rows="items")
    pq.write_table(pa.table({"query": ["a"]}), tmp_path / "rows.parquet")
    with pytest.raises(SchemaError, match="no column 'positives'"):
        list_units(tmp_path)


def test_one_bad_shard_among_good_ones_is_found_before_anything_is_read(folder):
    pq.write_table(pa.table({"parts": [1]}), folder / "c.parquet")
    with pytest.raises(SchemaError, match=r"c\.parquet: column 'parts' has type int64"):
        list_units(folder)


def test_items_and_samples_do_not_mix(folder):
    sample = Sample(Item.of("q"), (Positive(Item.of("d")),))
    write_parquet(samples_to_table([sample]), folder / "c.parquet")
    with pytest.raises(SchemaError, match=r"c\.parquet: no column 'parts'"):
        list_units(folder)


def test_a_file_that_changed_since_it_was_listed_is_refused(folder):
    unit = list_units(folder)[0]
    write_parquet(items_to_table([Item.of("new")]), folder / "a.parquet")
    with pytest.raises(UserError, match="no longer what it was"):
        list(read_unit(unit))
    (folder / "a.parquet").unlink()
    with pytest.raises(UserError, match=r"a\.parquet: row group 0 cannot be read"):
        list(read_unit(unit))


def test_damaged_pages_are_named_when_read(folder):
    unit = list_units(folder)[0]
    data = bytearray((folder / "a.parquet").read_bytes())
    data[4:600] = bytes(596)
    (folder / "a.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.parquet: row group 0 cannot be read"):
        list(read_unit(unit))


def test_a_whole_folder_reads_as_one_table(folder):
    assert len(items_from_table(read_table(folder))) == 30


def test_units_are_immutable(folder):
    with pytest.raises(dataclasses.FrozenInstanceError):
        list_units(folder)[0].num_rows = 1


def changed(path, group, find, put):
    """Change bytes of a row group that was written as it stands."""
    column = pq.read_metadata(path).row_group(group)
    begin = min(column.column(i).data_page_offset for i in range(column.num_columns))
    content = path.read_bytes()
    place = content.index(find, begin)
    path.write_bytes(content[:place] + put + content[place + len(put) :])


@pytest.fixture
def plain(tmp_path):
    """Three row groups of three items, neither compressed nor encoded."""
    rows = [Item.of(f"text {i}", id=f"item-{i}", payload={"n": i}) for i in range(9)]
    path = tmp_path / "a.parquet"
    options = {"compression": "none", "use_dictionary": False, "row_group_size": 3}
    pq.write_table(items_to_table(rows), path, **options)
    return path


def read_rows(path, **settings):
    units = list_data(path, ReaderSettings(**settings))
    tables = [pa.Table.from_batches(read_data(unit)) for unit in units]
    return pa.concat_tables(tables).to_pylist()


def test_a_text_that_is_not_utf_8_is_a_row_with_a_reason(plain):
    changed(plain, 1, b"text 4", b"text \xff")
    rows = read_rows(plain, source="album")
    assert [row["id"] for row in rows] == [f"item-{i}" for i in range(9)]
    assert [row["id"] for row in rows if row["error"]] == ["item-4"]
    assert "column 'parts' cannot be read: 'utf-8' codec" in rows[4]["error"]
    assert rows[5]["payload"] == {"n": 5}
    for unit in list_data(plain):
        assert sum(len(row_keys(batch)) for batch in read_data(unit)) == 3


def test_a_time_in_a_payload_that_python_does_not_know_is_a_row_with_a_reason(tmp_path):
    table = items_to_table([Item.of("a", id="x"), Item.of("b", id="y")])
    when = pa.StructArray.from_arrays([pa.array([1, 2**60], pa.timestamp("us"))], ["when"])
    pq.write_table(table.append_column("payload", when), tmp_path / "a.parquet")
    rows = read_rows(tmp_path)
    assert [bool(row["error"]) for row in rows] == [False, True]
    assert "column 'payload' cannot be read" in rows[1]["error"]


def test_every_row_of_a_damaged_row_group_is_a_row_with_a_reason(plain):
    column = pq.read_metadata(plain).row_group(1).column(0)
    content = bytearray(plain.read_bytes())
    content[column.data_page_offset : column.data_page_offset + 20] = b"\xff" * 20
    plain.write_bytes(content)
    rows = read_rows(plain, source="album")
    wanted = ["item-0", "item-1", "item-2", None, None, None, "item-6", "item-7", "item-8"]
    assert [row["id"] for row in rows] == wanted
    assert "a.parquet, row 3: " in rows[3]["error"]
    assert {row["source"] for row in rows[3:6]} == {"album"}
    keys = [key for u in list_data(plain) for b in read_data(u) for key in row_keys(b).to_pylist()]
    assert len(set(keys)) == 9


def test_damaged_samples_are_rows_with_reasons(tmp_path):
    samples = [Sample(Item.of(f"q{i}"), (Positive(Item.of("d")),)) for i in range(4)]
    pq.write_table(samples_to_table(samples), tmp_path / "a.parquet", row_group_size=2)
    column = pq.read_metadata(tmp_path / "a.parquet").row_group(1).column(0)
    begin = column.dictionary_page_offset or column.data_page_offset
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[begin : begin + 20] = b"\xff" * 20
    (tmp_path / "a.parquet").write_bytes(content)
    rows = read_rows(tmp_path)
    assert [bool(row["error"]) for row in rows] == [False, False, True, True]
    assert rows[2]["query"] is None


def test_any_change_of_items_shows_and_a_copy_of_samples_is_the_same(plain, tmp_path):
    before = fingerprint(list_data(plain))
    changed(plain, 1, b"text 4", b"text X")
    assert fingerprint(list_data(plain)) != before
    sample = Sample(Item.of("q"), (Positive(Item.of("d")),))
    path = write_parquet(samples_to_table([sample]), tmp_path / "train" / "a.parquet")
    before = fingerprint(list_data(path))
    os.utime(path, (1, 1))
    assert fingerprint(list_data(path)) == before
