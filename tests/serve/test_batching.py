"""Which rows share a batch: bounded by work, whatever the count, and nobody waits for ever."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rematch_ray.serve.backend import Side
from rematch_ray.serve.batching import BatchSize, Pack, Queued, groups_of, packs_of


def queued(tokens: int, patches: int = 0, side: Side = "query") -> Queued:
    """A row of some tokens and patches, without meta tokens."""
    grid = np.array([[1, 1, patches]] if patches else [], np.int32).reshape(-1, 3)
    row: Any = SimpleNamespace(input_ids=np.zeros(tokens, np.int32), grid=grid)
    return Queued(row, side, 0)


def test_work_counts_tokens_meta_tokens_and_patches() -> None:
    row = queued(10, patches=64)
    assert (row.num_tokens, row.work) == (10, 74)
    assert Queued(row.row, "query", 16).work == 90


def pack(*tokens: int) -> Pack:
    """Rows that came together."""
    return Pack([queued(one) for one in tokens])


def test_a_batch_is_full_by_work_or_by_count() -> None:
    size = BatchSize(8, 800)
    assert size([pack(1)]) == 1
    assert size([pack(100)] * 8) == 8
    assert size([pack(1)] * 9) > 8
    assert size([pack(100), Pack([queued(300, patches=401)])]) > 8
    assert size([pack(1)] * 4) == 4


def test_rows_that_came_together_count_one_by_one() -> None:
    size = BatchSize(8, 800)
    assert size([pack(1, 1, 1), pack(1)]) == 4
    assert size([pack(200, 300), pack(300)]) == 8
    assert size([pack(1, 1, 1, 1, 1), pack(1, 1, 1, 1)]) > 8


def test_packs_are_no_larger_than_a_batch_and_keep_their_order() -> None:
    def places(rows: Sequence[Queued]) -> list[list[int]]:
        return list(packs_of(rows, max_size=3, max_tokens=100))

    assert places([queued(10)] * 7) == [[0, 1, 2], [3, 4, 5], [6]]
    assert places([queued(60), queued(60), queued(30)]) == [[0], [1, 2]]
    assert places([queued(10), queued(900), queued(10)]) == [[0], [1], [2]]
    assert places([]) == []


def test_a_row_of_more_work_than_a_batch_is_a_batch_of_its_own() -> None:
    size = BatchSize(8, 800)
    large = Pack([queued(100, patches=5000)])
    assert size([large]) == 8
    assert size([large, pack(1)]) > 8


def test_a_pack_that_was_put_back_is_taken_the_next_time() -> None:
    size = BatchSize(8, 800)
    large = pack(700)
    assert size([pack(200), large]) > 8
    assert size([pack(200), large]) == 8
    # and once only per batch: twice the work is the most
    other = pack(800)
    assert size([pack(200), other]) > 8
    assert size([pack(200), large, other]) > 8


def test_rows_of_one_pass_are_of_one_side_and_of_similar_length() -> None:
    rows = [queued(10), queued(90), queued(12, side="document"), queued(15), queued(100)]
    groups = list(groups_of(rows))
    assert sorted(place for group in groups for place in group) == [0, 1, 2, 3, 4]
    assert sorted(sorted(group) for group in groups) == [[0, 3], [1, 4], [2]]


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`serve.batch` outside a replica."""
    from ray import serve

    config = SimpleNamespace(max_ongoing_requests=100)
    context = SimpleNamespace(_deployment_config=config)
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    return serve.batch


async def test_serve_puts_rows_together_by_work_and_a_large_one_gets_its_turn(batch: Any) -> None:
    batches: list[list[int]] = []
    running = True

    class Model:
        def __init__(self) -> None:
            sizes = BatchSize(8, 800)
            self.embed = batch(max_batch_size=8, batch_wait_timeout_s=0.005, batch_size_fn=sizes)(
                self.embed_packs
            )

        async def embed_packs(self, packs: Sequence[Pack]) -> list[int]:
            works = [row.work for pack in packs for row in pack.rows]
            batches.append(works)
            await asyncio.sleep(0.01)
            return works

    model = Model()

    async def keep_asking() -> None:
        while running:
            await model.embed(pack(100))

    small = [asyncio.ensure_future(keep_asking()) for _ in range(12)]
    await asyncio.sleep(0.05)
    answers = await asyncio.wait_for(asyncio.gather(*(model.embed(pack(700)) for _ in range(3))), 5)
    running = False
    await asyncio.gather(*small)
    assert answers == [700, 700, 700]
    assert max(len(works) for works in batches) == 8
    assert max(sum(works) for works in batches) <= 1600
