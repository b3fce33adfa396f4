"""The deployment that holds an index follows what is published, and nothing it cannot serve."""

import asyncio
import json
import logging
import queue
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rematch_ray.errors import UserError
from rematch_ray.index.build import build_index
from rematch_ray.index.changes import add_documents, delete_documents
from rematch_ray.index.generation import Generation
from rematch_ray.index.preload import Preloader
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.sharding import changes as shard_changes
from rematch_ray.index.sharding.build import build_sharded
from rematch_ray.serve.autoscaling import ASKED
from rematch_ray.serve.backend import DeadlineError
from rematch_ray.serve.held import HeldGenerations, Opened
from rematch_ray.serve.searching import search_opened, spent_on, stored_query, warm_up
from rematch_ray.serve.sets import _shard
from rematch_ray.serve.settings import ServeArgs, ShardSettings
from rematch_ray.serve.shard import Shard
from rematch_ray.serve.wire import Asked, GenerationGoneError
from tests.serve.local import build, embeddings, query

EVERYTHING = {"budget": "4x8", "candidates": "all"}


@pytest.fixture
def index(tmp_path: Path) -> Path:
    build_index(embeddings(tmp_path / "first", 3, 1, ids=["a", "b", "c"]), tmp_path / "index")
    return tmp_path / "index"


def ask(generation: str | None = None, **fields: Any) -> Asked:
    return Asked(generation=generation, query=query(), how=EVERYTHING, **fields)


def hits(held: HeldGenerations, generation: str | None = None) -> set[str]:
    found = search_opened(held.opened(generation), ask(), 0.0)
    return {hit.id for hit in found.result.hits}


def test_what_is_published_is_found_without_a_restart(index: Path, tmp_path: Path) -> None:
    held = HeldGenerations(index)
    assert hits(held) == {"a", "b", "c"}
    add_documents(index, embeddings(tmp_path / "more", 2, 5, ids=["c", "d"]))
    delete_documents(index, ["a"])
    assert hits(held) == {"a", "b", "c"}  # it did not look yet
    assert held.look()
    assert hits(held) == {"b", "c", "d"}
    assert not held.look()


def test_the_generation_before_stays_open_and_older_ones_are_gone(
    index: Path, tmp_path: Path
) -> None:
    held = HeldGenerations(index)
    for number in range(4):
        add_documents(index, embeddings(tmp_path / f"{number}", 1, number, ids=[f"n{number}"]))
        held.look()
    assert list(held.states) == ["generation-000004", "generation-000005"]
    assert len(hits(held, "generation-000004")) == 6
    assert len(hits(held, "generation-000005")) == 7
    with pytest.raises(GenerationGoneError, match="generation-000001"):
        held.opened("generation-000001")


@pytest.mark.parametrize("kind", ["scan", "ivf"])
def test_what_is_open_is_searched_although_its_files_are_gone(tmp_path: Path, kind: Any) -> None:
    path = build(tmp_path, 1)
    if kind != "scan":
        path = tmp_path / kind
        build_index(tmp_path / "embeddings", path, coarse_kind=kind)
    asked: list[dict[str, Any]] = [
        {"budget": budget, "candidates": candidates, "text": text}
        for budget in ("fused", "1x1", "4x8")
        for candidates in ("all", 20)
        for text in (None, "red boat")
    ]
    expected = [SearchIndex.open(path).search(query(), **fields)[0].hits for fields in asked]
    held = HeldGenerations(path)
    shutil.rmtree(path / "segments")
    opened = held.opened(None)
    assert [opened.index.search(query(), **fields)[0].hits for fields in asked] == expected
    name = expected[0][0].id
    assert opened.index.payload([name]) == [expected[0][0].payload]
    assert stored_query(opened, name) is not None


def test_a_generation_that_a_request_names_is_opened(index: Path, tmp_path: Path) -> None:
    add_documents(index, embeddings(tmp_path / "more", 1, 5, ids=["d"]))
    late = HeldGenerations(index)
    assert list(late.states) == ["generation-000002"]
    assert hits(late, "generation-000001") == {"a", "b", "c"}


def test_an_index_of_another_model_is_not_taken(
    index: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = HeldGenerations(index)
    other = embeddings(tmp_path / "other", 1, 9, ids=["x"])
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["identity"]["digest"] = "another"
    (other / "manifest.json").write_text(json.dumps(manifest))
    build_index(other, index)
    with caplog.at_level(logging.ERROR):
        assert not held.look()
        assert not held.look()
    assert caplog.text.count("still serving generation-000001") == 1
    assert hits(held) == {"a", "b", "c"}
    (index / "CURRENT").unlink()
    assert not held.look()
    assert hits(held) == {"a", "b", "c"}


def test_what_is_published_is_in_memory_before_it_is_searched(index: Path, tmp_path: Path) -> None:
    held = HeldGenerations(index, preload=True)
    for number in range(4):
        add_documents(index, embeddings(tmp_path / f"{number}", 1, number, ids=[f"n{number}"]))
        assert held.look()
    assert held._preloader is not None
    segments = held.newest.generation.segments
    assert len(segments) == 5
    assert all(held._preloader.held(segment) for segment in segments)
    assert len(hits(held)) == 7


def searched(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What `warm_up` asks for: rung and coarse choice."""
    asked = []
    search = SearchIndex.search

    def watch(self: SearchIndex, *values: Any, **named: Any) -> Any:
        results = search(self, *values, **named)
        asked.append((str(named["budget"]), named.get("coarse", "")))
        assert [len(result.hits) for result in results] == [min(10, len(self))]
        return results

    with monkeypatch.context() as patched:
        patched.setattr(SearchIndex, "search", watch)
        warm_up(opened)
    return asked


@pytest.mark.parametrize("kind", ["scan", "ivf"])
def test_every_rung_and_choice_is_searched_before_the_first_request(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build(tmp_path, 1)
    if kind != "scan":
        path = tmp_path / kind
        build_index(tmp_path / "embeddings", path, coarse_kind=kind)
    opened = HeldGenerations(path).newest
    rungs = [(rung, "") for rung in ("1x1", "2x4", "4x8")]
    choices = [("1x1", choice) for choice in opened.index.coarse_choices]
    assert choices
    assert searched(opened, monkeypatch) == rungs + choices


def test_an_index_without_documents_and_one_shard_of_several_are_warmed_up(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete_documents(index, ["a", "b", "c"])
    assert searched(HeldGenerations(index).newest, monkeypatch)
    split = build(tmp_path, 2)
    for number in range(2):
        assert searched(HeldGenerations(split, number).newest, monkeypatch)


def test_a_shard_is_warm_when_it_is_there(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warmed = []
    monkeypatch.setattr("rematch_ray.serve.shard.warm_up", warmed.append)
    shards = [Shard(str(index), 1, preload=preload) for preload in (True, False)]
    assert warmed == [shard._held.newest for shard in shards]
    assert [shard._held._preloader is None for shard in shards] == [False, True]
    for shard in shards:
        shard.close()
    args = ServeArgs(index=Path("i"), shard=ShardSettings(preload=False))
    deployment = _shard(args, "i", 0, None)._bound_deployment  # type: ignore[arg-type]
    assert deployment.init_kwargs["preload"] is False


def test_a_log_is_there_before_the_index_is_read(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    monkeypatch.setattr(Preloader, "take", lambda self, generation: happened.append("read"))
    monkeypatch.setattr("rematch_ray.serve.shard.warm_up", lambda opened: happened.append("warm"))

    def record() -> Any:
        happened.append("log")
        return SimpleNamespace(index=lambda shard, info: None, checked=None)

    Shard(str(index), 1, record=record).close()
    assert happened == ["log", "read", "warm"]


def test_a_replica_that_reads_a_large_state_says_that_it_lives(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, read_it = threading.Event(), threading.Event()
    take = Preloader.take

    def slowly(self: Preloader, generation: Generation) -> None:
        if generation.name != "generation-000001":
            reading.set()
            assert read_it.wait(60)
        take(self, generation)

    monkeypatch.setattr(Preloader, "take", slowly)
    monkeypatch.setattr("rematch_ray.serve.shard.LOOK_S", 0.02)
    told: queue.Queue[list[str]] = queue.Queue()
    shard = Shard(str(index), 1, tell=lambda report: told.put(list(report.states)))
    add_documents(index, embeddings(tmp_path / "more", 1, 5, ids=["d"]))
    assert reading.wait(60)
    while not told.empty():
        told.get()
    assert [told.get(timeout=60) for _ in range(3)] == [["generation-000001"]] * 3
    read_it.set()
    while told.get(timeout=60) == ["generation-000001"]:
        pass
    assert list(shard._held.states) == ["generation-000001", "generation-000002"]
    shard.close()


def test_looking_goes_on_after_a_failure(
    index: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rematch_ray.serve.shard.LOOK_S", 0.01)
    looked: queue.Queue[HeldGenerations] = queue.Queue()

    def fail(self: HeldGenerations) -> bool:
        looked.put(self)
        raise RuntimeError("a disk that went away")

    monkeypatch.setattr(HeldGenerations, "look", fail)
    shard = Shard(str(index), 1)
    # the thread of another shard may still look, too
    mine = (held for held in iter(lambda: looked.get(timeout=60), None) if held is shard._held)
    for _ in range(3):
        next(mine)
    assert caplog.text.count("a disk that went away") >= 2
    shard.close()


def test_a_shard_of_a_set_goes_by_what_the_set_names(tmp_path: Path) -> None:
    build_sharded(embeddings(tmp_path / "first", 20, 1), tmp_path / "set", 2)
    held = [HeldGenerations(tmp_path / "set", number) for number in range(2)]
    assert [one.states for one in held] == [{"set-000001": "generation-000001"}] * 2
    one = SearchIndex.open(tmp_path / "set").ids()[:1]
    shard_changes.delete_documents(tmp_path / "set", one)
    assert all(each.look() for each in held)
    named = [each.states["set-000002"] for each in held]
    assert sorted(named) == ["generation-000001", "generation-000002"]
    assert sum(each.facts("set-000002", name).live for each, name in zip(held, named)) == 19


async def test_a_search_that_waited_past_its_deadline_is_not_begun(index: Path) -> None:
    shard = Shard(str(index), num_threads=1)
    assert len((await shard.search(ask(left_s=60.0))).result.hits) == 3
    with pytest.raises(DeadlineError, match="queue"):
        await shard.search(ask(left_s=0.0))
    shard.close()


async def test_waiting_for_a_thread_is_measured(index: Path) -> None:
    shard = Shard(str(index), num_threads=1)
    release = asyncio.get_running_loop().run_in_executor(shard._pool, time.sleep, 0.2)
    found = await shard.search(ask())
    await release
    assert found.queue_ms > 150
    assert found.search_ms < found.queue_ms
    shard.close()


async def test_facts_do_not_wait_for_searches(index: Path) -> None:
    shard = Shard(str(index), num_threads=1)
    end = threading.Event()
    release = asyncio.get_running_loop().run_in_executor(shard._pool, end.wait)
    [(state, generation)] = (await shard.states()).items()
    facts = await asyncio.wait_for(shard.facts(state, generation), 10)
    assert facts.live == 3
    end.set()
    await release
    shard.close()


async def test_work_is_counted_as_it_was_asked_for(index: Path) -> None:
    shard = Shard(str(index), num_threads=1)
    for _ in range(3):
        await shard.search(ask(work=1000))
    assert shard.record_autoscaling_stats()[ASKED] == pytest.approx(300)
    shard.close()


def test_dot_products_are_those_that_the_plan_says(index: Path) -> None:
    whole = SearchIndex.open(index)
    lists = whole.info()["coarse_dot_products"]
    for budget, cost in (("4x8", 3 * 32), ("1x1", 3), ("fused", 3)):
        [result] = whole.search(query(), budget=budget, candidates="all")
        assert spent_on(result, lists) == cost
    [result] = whole.search(query(), budget="4x8", candidates=2, coarse="first", top_k=1)
    assert spent_on(result, lists) == 3 + 2 * 32


def test_a_document_as_a_query_finds_itself(index: Path) -> None:
    opened = HeldGenerations(index).newest
    stored = stored_query(opened, "b")
    assert stored is not None
    assert stored.vectors.shape == (1, 4, 16)
    for budget in ("1x1", "4x8", "fused"):
        [result] = opened.index.search(stored, budget=budget, top_k=1)
        assert result.hits[0].id == "b"
        assert result.hits[0].score == pytest.approx(1.0, abs=1e-3)
    assert stored_query(opened, "nothing") is None


async def test_a_replica_with_a_gpu_finds_the_same(index: Path) -> None:
    plain, held = Shard(str(index), 1), Shard(str(index), 1, device="cpu")
    first, second = await plain.search(ask()), await held.search(ask())
    assert second.result.hits == first.result.hits
    [segment] = held._held.newest.generation.segments
    assert "held" in vars(segment.planes[0].coded)
    plain.close()
    held.close()
    with pytest.raises(UserError, match="device 'cuda:99' is not there"):
        Shard(str(index), 1, device="cuda:99")


def test_gpus_of_a_shard_are_reserved_and_used() -> None:
    assert (ShardSettings().device, ShardSettings(num_gpus=0.5).device) == (None, "cuda")
    args = ServeArgs(index=Path("i"), shard=ShardSettings(num_gpus=0.5))
    shard = _shard(args, "i", 0, None)  # type: ignore[arg-type]
    deployment = shard._bound_deployment
    assert deployment.ray_actor_options["num_gpus"] == 0.5
    assert deployment.init_kwargs["device"] == "cuda"
