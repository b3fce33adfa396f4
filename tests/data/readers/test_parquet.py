import dataclasses
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rematch_ray.data.readers.formats import list_data, read_data
from rematch_ray.data.readers.parquet import list_units, read_table, read_unit
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
