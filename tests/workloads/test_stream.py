"""The stream executes the plan: in order, complete, the same at every world size and restart."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray.data

from rematch_ray.config import DataSettings
from rematch_ray.data.order import OrderSettings, Step
from rematch_ray.data.schema import Item, Positive, Sample, samples_to_table
from rematch_ray.data.sources import SourceSettings
from rematch_ray.errors import UserError
from rematch_ray.workloads import stream

ROWS = {"left": 90, "right": 40}


def sample(source: str, number: int) -> Sample:
    query = Item.of(f"{source} {number}", id=f"{source}-{number}", source=source)
    return Sample(query, (Positive(Item.of(b"image bytes", id=f"d{number}")),), source=source)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    folder = tmp_path_factory.mktemp("samples")
    sources = []
    for name, count in ROWS.items():
        (folder / name).mkdir()
        table = samples_to_table(sample(name, i) for i in range(count))
        pq.write_table(table, folder / name / "a.parquet", row_group_size=16)
        sources.append(SourceSettings(name=name, path=folder / name))
    order = OrderSettings(global_batch=16, sub_batch=4, window=2)
    return DataSettings(sources=tuple(sources), order=order)


def ids_of(tables: list[pa.Table], index: int, masked_rows: int) -> pa.Table:
    """Stands in for decoding and the processor."""
    ids = [query["id"] for table in tables for query in table["query"].to_pylist()]
    ids += [""] * masked_rows
    return pa.table({"id": ids, "index": [index] * len(ids)})


def refuses_step_2(tables: list[pa.Table], index: int, masked_rows: int) -> pa.Table:
    if index == 2:
        raise UserError("item 'left-7': the image is truncated")
    return ids_of(tables, index, masked_rows)


def planned_ids(data: stream.TrainingData, step: Step) -> list[str]:
    """The ids of a step, read off the plan and the files without the stream."""
    found = []
    for batch in step.sub_batches:
        units = data.units[batch.source]
        for group, row in zip(batch.row_groups, batch.rows, strict=True):
            number = units[group].first_row + row
            found.append(f"{data.plan.sources[batch.source].name}-{number}")
    return found


def taken(
    iterator: Any, plan: stream.Plan, start: int, stop: int, **options: int
) -> Iterator[stream.RankStep]:
    given = {"rank": 0, "world_size": 1, "prefetch": 0, **options}
    return stream.batches(iterator, plan, start=start, stop=stop, **given)


@ray.remote(num_cpus=0)
def consume(
    iterator: ray.data.DataIterator,
    plan: stream.Plan,
    start: int,
    stop: int,
    rank: int,
    world_size: int,
) -> list[stream.RankStep]:
    return list(taken(iterator, plan, start, stop, rank=rank, world_size=world_size, prefetch=1))


def run(
    data: stream.TrainingData,
    start: int,
    stop: int,
    world_size: int,
    encode: stream.EncodeStep = ids_of,
) -> list[list[stream.RankStep]]:
    dataset = stream.rank_steps(data, encode, start=start, stop=stop, world_size=world_size)
    iterators = stream.split(dataset, world_size)
    return ray.get(
        [
            consume.remote(it, data.plan, start, stop, rank, world_size)
            for rank, it in enumerate(iterators)
        ]
    )


@pytest.fixture(autouse=True)
def _restored_data_context(request: pytest.FixtureRequest) -> Iterator[None]:
    if "ray_cluster" not in request.fixturenames:
        yield
        return
    before = ray.data.DataContext.get_current().copy()
    yield
    ray.data.DataContext._set_current(before)


def test_sources_become_row_groups_in_file_order(settings: DataSettings) -> None:
    data = stream.open_data(settings, 0)
    assert [sum(unit.num_rows for unit in units) for units in data.units] == [90, 40]
    assert data.plan.sources[0].row_groups == (16, 16, 16, 16, 16, 10)


def test_a_file_that_changes_changes_the_digest(settings: DataSettings, tmp_path: Path) -> None:
    digests = set()
    for count in (20, 20, 21):
        pq.write_table(
            samples_to_table(sample("x", i) for i in range(count)), tmp_path / "a.parquet"
        )
        source = SourceSettings(name="x", path=tmp_path)
        opened = stream.open_data(DataSettings(sources=(source,), order=settings.order), 0)
        digests.add(opened.plan.digest)
    assert len(digests) == 2


@pytest.mark.parametrize("rule", ["end_epoch", "leave_out"])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_an_epoch_reads_at_most_twice_the_bytes_of_the_data(
    settings: DataSettings, monkeypatch: pytest.MonkeyPatch, rule: str, window: int
) -> None:
    order = settings.order.model_copy(update={"window": window, "when_source_ends": rule})
    data = stream.open_data(DataSettings(sources=settings.sources, order=order), 0)
    sizes = {unit: _bytes(unit) for units in data.units for unit in units}
    reads: list[stream.Unit] = []

    def counted(unit: stream.Unit) -> Iterator[pa.RecordBatch]:
        reads.append(unit)
        return read_links(unit)

    read_links = stream.read_links
    monkeypatch.setattr(stream, "read_links", counted)
    # from the middle of one epoch on, to the same place three epochs later
    begin = data.plan.steps_per_epoch // 2
    for call in stream.read_tasks(data, begin, begin + 3 * data.plan.steps_per_epoch, 3):
        assert len(list(call.read())) == call.num_rows
    assert sum(sizes[unit] for unit in reads) <= 3 * 2 * sum(sizes.values())


def _bytes(unit: stream.Unit) -> int:
    return sum(batch.nbytes for batch in stream.read_links(unit))


def test_a_block_says_where_it_belongs_and_survives_plain_arrow(settings: DataSettings) -> None:
    data = stream.open_data(settings, 0)
    [first, *_] = stream.ReadStretch(data, 3, 4, 2)()
    assert first.num_rows == 1
    assert [first[name][0].as_py() for name in ("epoch", "step", "index", "rank")] == [0, 3, 3, 0]
    assert "ray" not in str(first.schema)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_rank_gets_its_steps_of_the_plan_in_order(
    settings: DataSettings, world_size: int
) -> None:
    data = stream.open_data(settings, 3)
    steps = data.plan.steps_per_epoch + 2
    dealt = run(data, 0, steps, world_size)
    assert [[batch.index for batch in rank] for rank in dealt] == [list(range(steps))] * world_size
    for step in data.plan.steps(0, steps):
        tables = [rank[step.index].table for rank in dealt]
        assert len({table.num_rows for table in tables}) == 1
        seen = [name for table in tables for name in table["id"].to_pylist() if name]
        assert sorted(seen) == sorted(planned_ids(data, step))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_stream_that_goes_on_in_mid_epoch_equals_the_unbroken_one(
    settings: DataSettings,
) -> None:
    data = stream.open_data(settings, 3)
    [unbroken] = run(data, 0, 9, 1)
    [resumed] = run(data, 5, 9, 1)
    assert [b.table["id"].to_pylist() for b in resumed] == [
        b.table["id"].to_pylist() for b in unbroken[5:]
    ]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_row_that_cannot_be_encoded_is_named_and_the_rest_goes_on(
    settings: DataSettings,
) -> None:
    [got] = run(stream.open_data(settings, 0), 0, 4, 1, refuses_step_2)
    assert [batch.error for batch in got] == ["", "", "item 'left-7': the image is truncated", ""]
    assert got[2].table is None


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_any_batch_but_the_next_is_refused(settings: DataSettings) -> None:
    data = stream.open_data(settings, 0)
    dataset = stream.rank_steps(data, ids_of, start=1, stop=3, world_size=1)
    iterator = dataset.iterator()
    with pytest.raises(
        stream.StreamError, match=r"expected epoch 0, step 0 .* was handed epoch 0, step 1"
    ):
        list(taken(iterator, data.plan, 0, 2))
    with pytest.raises(stream.StreamError, match="ended before step 3 of 5"):
        list(taken(iterator, data.plan, 1, 5))


class Blocks:
    """Stands in for a rank's iterator: hands on what it was given."""

    def __init__(self, *blocks: pa.Table) -> None:
        self._blocks = blocks

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        return iter(self._blocks)


def labelled(block: pa.Table, **labels: int) -> pa.Table:
    for name, value in labels.items():
        place = block.schema.get_field_index(name)
        block = block.set_column(place, block.schema.field(name), pa.array([[value]]).flatten())
    return block


def test_rows_of_another_place_are_refused_whatever_their_label_says(
    settings: DataSettings,
) -> None:
    data = stream.open_data(settings, 0)
    first, second = stream.ReadStretch(data, 0, 2, 1)()
    assert [got.index for got in taken(Blocks(first, second), data.plan, 0, 2)] == [0, 1]
    wrong = labelled(second, step=0, index=0)
    with pytest.raises(stream.StreamError, match=r"step 0 .* other rows.* sub-batch 0.* source"):
        list(taken(Blocks(wrong), data.plan, 0, 1))
    # dealt for two ranks, and taken by one that is alone
    [half, _] = stream.ReadStretch(data, 0, 1, 2)()
    with pytest.raises(stream.StreamError, match="2 sub-batches instead of 4"):
        list(taken(Blocks(half), data.plan, 0, 1))
    # what an encoder makes of a block is still known to be of its rows
    encoded = stream._EncodeBlock(ids_of)(second)
    assert [got.index for got in taken(Blocks(encoded), data.plan, 1, 2)] == [1]
    with pytest.raises(stream.StreamError, match="other rows"):
        list(taken(Blocks(labelled(encoded, step=0, index=0)), data.plan, 0, 1))


def test_a_row_that_is_taken_from_the_wrong_place_is_refused(
    settings: DataSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = stream.open_data(settings, 0)
    read = stream.RowGroups._row_group

    def turned(self: stream.RowGroups, source: int, group: int) -> pa.Table:
        table = read(self, source, group)
        return table.take(pa.array(range(len(table) - 1, -1, -1)))

    monkeypatch.setattr(stream.RowGroups, "_row_group", turned)
    [block] = stream.ReadStretch(data, 0, 1, 1)()
    with pytest.raises(stream.StreamError, match="other rows"):
        list(taken(Blocks(block), data.plan, 0, 1))


class Marks:
    """Stands in for decoding: leaves a file for every step that it saw."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, tables: list[pa.Table], index: int, masked_rows: int) -> pa.Table:
        (self._folder / str(index)).touch()
        return ids_of(tables, index, masked_rows)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_nothing_is_encoded_far_ahead_of_whoever_takes_it(
    settings: DataSettings, tmp_path: Path
) -> None:
    data = stream.open_data(settings, 0)
    dataset = stream.rank_steps(data, Marks(tmp_path), start=0, stop=500, world_size=1, ahead=4)
    [iterator] = stream.split(dataset, 1)
    assert ray.get(take_three_and_pause.remote(iterator, data.plan)) == [0, 1, 2]
    assert 4 < len(list(tmp_path.iterdir())) <= 3 + 4 + 4


# a process of its own, which ends with what it left unread
@ray.remote(num_cpus=0, max_calls=1)
def take_three_and_pause(iterator: ray.data.DataIterator, plan: stream.Plan) -> list[int]:
    batches = taken(iterator, plan, 0, 500, prefetch=1)
    seen = [next(batches).index for _ in range(3)]
    time.sleep(3)
    return seen
