"""An index that is served from several shards answers as one that is searched in process."""

import asyncio
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rematch_ray.errors import UserError
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.sharding.hashing import shard_of
from rematch_ray.serve import ahead, partial
from rematch_ray.serve.backend import NotReadyError, Rerank, SearchPlan
from rematch_ray.serve.router import Router
from tests.index.made import narrow_small_indexes
from tests.serve.local import LocalShard, build, embeddings, query, router_over, shards_of

COUNTS = [1, 2, 5]
RUNGS = ["fused", "1x1", "2x4", "4x8"]
PLANS: list[dict[str, Any]] = [
    {"candidates": "all"},
    {"candidates": "all", "top_k": 250},
    {"candidates": "all", "filter": {"group": ["animals", "food"], "number": 2}},
    {"candidates": "all", "filter": {"group": "none"}},
    {"candidates": "all", "group_by": "number"},
    {"candidates": 40, "coarse": "first"},
    {"candidates": 41, "coarse": "both"},
    {"candidates": 60, "group_by": "group"},
    {"candidates": 60, "group_by": "source"},
    {"candidates": "all", "group_by": "source", "filter": {"number": 1}},
    {"candidates": 30, "filter": {"number": [1, 2]}},
    {"candidates": "auto"},
    {"candidates": "auto", "filter": {"number": 3}},
    {"candidates": "auto", "coarse": "both", "top_k": 20},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split")
    for count in COUNTS:
        build(folder, count)
    return folder


@pytest.fixture(autouse=True)
def _small_indexes_are_narrowed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow_small_indexes(monkeypatch, 120, floor=30, few=70)


def served(folder: Path, num_shards: int) -> tuple[Router, list[LocalShard]]:
    shards = shards_of(folder / f"index-{num_shards}", num_shards)
    return router_over(shards), shards


@pytest.mark.parametrize("num_shards", COUNTS)
async def test_hits_are_those_of_the_search_in_process_bit_for_bit(
    folder: Path, num_shards: int
) -> None:
    whole = SearchIndex.open(folder / "index-1")
    router, _ = served(folder, num_shards)
    for rung in RUNGS:
        for fields in PLANS:
            [expected] = whole.search(query(), budget=rung, **{"top_k": 10, **fields})
            answer = await router.search(query(), SearchPlan(budget=rung, **fields))
            found = answer.result
            assert [(hit.id, hit.score, hit.payload) for hit in found.hits] == [
                (hit.id, hit.score, hit.payload) for hit in expected.hits
            ], (rung, fields)
            assert (found.scored, found.live, found.exact, found.budget, found.candidates) == (
                expected.scored, expected.live, expected.exact, expected.budget,
                expected.candidates,
            ), (rung, fields)  # fmt: skip
            assert found.plan == expected.plan
            assert answer.degraded == ()


@pytest.mark.parametrize("spare", [0, -1000])
async def test_what_a_shard_did_not_foresee_is_asked_for_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spare: int
) -> None:
    whole = SearchIndex.open(folder / "index-1")
    router, shards = served(folder, 5)
    honest = ahead.share
    monkeypatch.setattr(ahead, "share", lambda kept, n: max(1, honest(kept, n) // 2))
    monkeypatch.setattr(ahead, "_SPARE", max(spare, 0))
    for number in range(5):
        for fields in PLANS:
            [expected] = whole.search(query(number), budget="4x8", **{"top_k": 10, **fields})
            answer = await router.search(query(number), SearchPlan(budget="4x8", **fields))
            assert [hit.id for hit in answer.result.hits] == [hit.id for hit in expected.hits]
    assert any("phase" in shard.calls for shard in shards)


@pytest.mark.parametrize("fusion", ["rrf", "weighted"])
@pytest.mark.parametrize("num_shards", COUNTS)
async def test_words_and_vectors_are_fused_once_over_all_shards_bit_for_bit(
    folder: Path, num_shards: int, fusion: str
) -> None:
    whole = SearchIndex.open(folder / "index-1")
    router, _ = served(folder, num_shards)
    for text in ("red otter", "boat", "nobody writes this"):
        words = {"text": text, "fusion": fusion, "lexical_weight": 0.3}
        for fields in [*PLANS, {"candidates": 60, "group_by": "group", "filter": {"number": 1}}]:
            for rung in ("fused", "2x4"):
                asked = {"top_k": 10, **fields, **words, "budget": rung}
                [expected] = whole.search(query(), **asked)
                found = (await router.search(query(), SearchPlan(**asked))).result
                assert found.hits == expected.hits, asked
                assert _without_times(found.stages) == _without_times(expected.stages), asked
                assert (found.scored, found.candidates, found.exact, found.plan) == (
                    expected.scored, expected.candidates, expected.exact, expected.plan,
                ), asked  # fmt: skip
                assert found.expected_recall is expected.expected_recall is None


def _without_times(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # how many originals were read for exact scores depends on the split
    return [
        {name: value for name, value in stage.items() if name != "ms"}
        for stage in stages
        if "lexical" in stage["name"] or "fusion" in stage["name"]
    ]


LOST = 1


@pytest.mark.parametrize("how", ["refused", "silent"])
async def test_a_lost_shard_is_left_out_where_the_request_allows_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(partial, "PATIENCE_S", 0.5)
    whole = SearchIndex.open(folder / "index-1")
    router, shards = served(folder, 5)
    asked = SearchPlan(budget="4x8", candidates="all", filter={"number": [1, 2]})
    await router.search(query(), SearchPlan())

    async def lose(method: str, *values: Any) -> Any:
        if how == "refused":
            raise NotReadyError("index shard 1 was lost")
        await asyncio.sleep(60)

    monkeypatch.setattr(shards[LOST], "ask", lose)
    if how == "refused":
        with pytest.raises(NotReadyError, match="was lost"):
            await router.search(query(), asked)
    for plan in (asked, replace(asked, filter=None), replace(asked, filter=None, text="red tea")):
        answer = await router.search(query(), replace(plan, allow_partial=True))
        found = answer.result
        assert answer.degraded == ("shard_missing",)
        assert (found.exact, found.expected_recall, found.live) == (False, None, 300)
        assert found.scored < 300
        [right] = whole.search(
            query(), budget="4x8", candidates="all", filter=plan.filter, top_k=300
        )
        left = [hit for hit in right.hits if shard_of(hit.id, 5) != LOST]
        if plan.text is None:
            assert [(hit.id, hit.score) for hit in found.hits] == [
                (hit.id, hit.score) for hit in left[:10]
            ]
        assert {hit.id for hit in found.hits} <= {hit.id for hit in left}
        assert len(found.hits) == 10
    for shard in shards:
        monkeypatch.setattr(shard, "ask", lose)
    with pytest.raises(NotReadyError, match="no shard of the index answers"):
        await router.search(query(), replace(asked, filter=None, allow_partial=True))


async def test_words_need_an_index_of_them(tmp_path: Path) -> None:
    embeddings(tmp_path / "embeddings", 20, 1, [{"number": n} for n in range(20)])
    for num_shards in (1, 2):
        build(tmp_path, num_shards)
        router, _ = served(tmp_path, num_shards)
        with pytest.raises(UserError, match="no lexical index"):
            await router.search(query(), SearchPlan(text="otter"))


async def test_a_search_takes_one_call_per_shard(folder: Path) -> None:
    router, shards = served(folder, 2)
    await router.search(query(), SearchPlan(budget="4x8"))
    for shard in shards:
        shard.calls.clear()
    for number in range(20):
        await router.search(query(number), SearchPlan(budget="4x8"))
    calls = [call for shard in shards for call in shard.calls]
    assert calls.count("ahead") == 40
    # nearly: with random vectors a coarse list says little of the final order
    assert len(calls) <= 52, calls


async def test_offset_score_exclusion_and_explanation_hold_over_shards(folder: Path) -> None:
    for num_shards in COUNTS:
        router, _ = served(folder, num_shards)
        all_hits = (
            await router.search(query(), SearchPlan(budget="4x8", candidates="all", top_k=20))
        ).result.hits
        plan = SearchPlan(
            budget="4x8",
            candidates="all",
            top_k=5,
            offset=2,
            exclude=all_hits[0].id,
            min_score=all_hits[6].score,
            with_explain=True,
        )
        answer = await router.search(query(), plan)
        assert answer.result.hits == all_hits[3:7]
        assert set(answer.explained) == {hit.id for hit in answer.result.hits}
        for hit in answer.result.hits:
            assert answer.explained[hit.id].max(axis=1).mean() == pytest.approx(hit.score, abs=1e-3)


@pytest.mark.parametrize("num_shards", COUNTS)
async def test_a_document_that_is_left_out_stands_for_no_group(
    folder: Path, num_shards: int
) -> None:
    router, _ = served(folder, num_shards)
    asked: list[dict[str, Any]] = [{"candidates": "all"}, {"candidates": 299}]
    for fields in [*asked, {"candidates": "all", "text": "tea"}]:
        plan = SearchPlan(budget="4x8", **fields)
        whole = replace(plan, top_k=300, candidates="all")
        ranked = (await router.search(query(), whole)).result.hits
        best = ranked[0].id
        grouped = replace(plan, group_by="number", exclude=best, top_k=10)
        found = (await router.search(query(), grouped)).result.hits
        others = [hit for hit in ranked if hit.id != best]
        expected: dict[int, str] = {}
        for hit in others:
            expected.setdefault(hit.payload["number"], hit.id)
        if "text" not in fields:  # of what stands in neither list a hybrid search says nothing
            assert [hit.id for hit in found] == list(expected.values())
        assert {hit.payload["number"] for hit in found} == set(range(5))
        assert len(found) == 5
        one = await router.search(query(), replace(grouped, top_k=1))
        assert one.result.hits == found[:1]


@pytest.mark.parametrize("num_shards", COUNTS)
async def test_vectors_of_another_model_are_refused_not_mixed(
    folder: Path, num_shards: int
) -> None:
    router, _ = served(folder, num_shards)
    digest = str(SearchIndex.open(folder / "index-1").identity["digest"])
    own, other = replace(query(), model=digest), replace(query(), model="e2" * 32)
    plan = SearchPlan(budget="4x8", with_explain=True)
    given = (await router.search(query(), plan)).result
    assert (await router.search(own, plan)).result.hits == given.hits
    for text in (None, "otter"):
        with pytest.raises(NotReadyError, match=r"e2e2e2e2e2e2, but .* d1d1d1d1d1d1.* ask again"):
            await router.search(other, replace(plan, text=text))
    stored = await router.like("doc-0007")
    assert stored is not None and stored.model == digest


async def test_documents_are_asked_of_the_shard_that_holds_them(folder: Path) -> None:
    for num_shards in COUNTS:
        router, _ = served(folder, num_shards)
        assert await router.payload("doc-0007") == {"group": "food", "number": 2, "text": "otter"}
        assert await router.payload("nothing") is None
        assert await router.like("nothing") is None
        stored = await router.like("doc-0007")
        assert stored is not None
        [best] = (await router.search(stored, SearchPlan(budget="4x8", top_k=1))).result.hits
        assert best.id == "doc-0007"


async def test_the_head_scores_hits_of_all_shards(folder: Path) -> None:
    for num_shards in COUNTS:
        router, _ = served(folder, num_shards)
        plan = SearchPlan(budget="4x8", top_k=3, rerank=Rerank(top_n=50))
        found = (await router.search(query(), SearchPlan(budget="4x8", top_k=50))).result.hits
        answer = await router.search(query(), plan)
        assert answer.rerank is not None
        assert answer.rerank["top_n"] == 50
        expected = sorted(
            ((hit.score + 0.01 * place, hit.id) for place, hit in enumerate(found)), reverse=True
        )
        assert [hit.id for hit in answer.result.hits] == [name for _, name in expected[:3]]


async def test_facts_of_shards_add_up(folder: Path) -> None:
    whole = SearchIndex.open(folder / "index-1").info()
    for num_shards in COUNTS:
        router, _ = served(folder, num_shards)
        info = (await router.served()).index
        assert (info["live"], info["documents"]) == (whole["live"], whole["documents"])
        assert info["shards"] == num_shards
        assert info["fields"] == whole["fields"]
        split = SearchIndex.open(folder / f"index-{num_shards}").info()
        assert info["coarse_dot_products"] == split["coarse_dot_products"]
        assert info["generation"] == split["generation"]
        assert info["calibration"] is None


async def test_what_cannot_be_asked_of_a_split_index_is_refused(folder: Path) -> None:
    router, _ = served(folder, 2)
    for fields, says in (
        ({"filter": {"nmae": 1}}, "nmae"),
        ({"group_by": "nmae"}, "nmae"),
        ({"budget": "3x3"}, "3x3"),
        ({"text": "words", "fusion": "sum"}, "fusion 'sum'"),
        ({"target_recall": 0.9}, "doctor"),
    ):
        with pytest.raises(UserError, match=says):
            await router.search(query(), SearchPlan(**fields))


@pytest.mark.parametrize("allow_partial", [False, True])
async def test_a_search_that_is_given_up_leaves_no_shard_working_for_it(
    folder: Path, allow_partial: bool
) -> None:
    router, shards = served(folder, 2)
    await router.search(query(), SearchPlan())
    given_up = 0

    async def mute(method: str, *values: Any) -> Any:
        nonlocal given_up
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            given_up += 1
            raise

    for shard in shards:
        shard.ask = mute  # type: ignore[method-assign]
    plan = SearchPlan(allow_partial=allow_partial)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(router.search(query(), plan), 0.05)
    await asyncio.sleep(0.01)
    assert given_up == 2


async def test_of_a_large_filter_only_its_count_is_remembered(folder: Path) -> None:
    router, shards = served(folder, 2)
    plan = SearchPlan(filter={"number": list(range(5, 10_000))})
    for _ in range(2):
        assert (await router.search(query(), plan)).result.hits == []
    assert [shard.calls.count("count") for shard in shards] == [1, 1]
    split: Any = router._searcher._split
    assert len(pickle.dumps(split._counts)) < 1000
