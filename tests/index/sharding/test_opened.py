"""An index of several shards answers as one does, bit for bit, and is never seen half changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rematch_ray.errors import UserError
from rematch_ray.index import changes, planner
from rematch_ray.index.build import build_index
from rematch_ray.index.mining.documents import DOCUMENTS
from rematch_ray.index.mining.miner import Gallery
from rematch_ray.index.planner import Plan
from rematch_ray.index.queries import Queries
from rematch_ray.index.search import SearchIndex, SearchResult
from rematch_ray.index.sharding import changes as shard_changes
from rematch_ray.index.sharding.build import build_sharded
from rematch_ray.index.sharding.hashing import shard_name, shard_of
from rematch_ray.index.sharding.opened import ShardedGeneration, open_generation
from rematch_ray.index.sharding.scatter import ShardedRequest, search_shards
from rematch_ray.index.sharding.sets import SET_FILE
from rematch_ray.index.store import hold_lock
from rematch_ray.scoring.budget import Budget
from tests.index.made import LADDER, queries, unit, write_embeddings
from tests.index.test_changes import embeddings_of

COUNTS = [1, 2, 5]
RUNGS = ["fused", *LADDER]
SEARCHES: list[dict[str, Any]] = [
    {"candidates": "all"},
    {"candidates": "all", "top_k": 300},
    {"candidates": "all", "filter": {"group": ["animals", "food"], "number": 2}},
    {"candidates": "all", "filter": {"group": "none"}},
    {"candidates": "all", "group_by": "number"},
    {"candidates": "all", "group_by": "source"},
    {"candidates": "all", "group_by": "inner.half", "filter": {"tags": "t1"}},
    {"candidates": 40, "coarse": "fused"},
    {"candidates": 40, "coarse": "first"},
    {"candidates": 41, "coarse": "both"},
    {"candidates": 10, "coarse": "both", "filter": {"inner.half": True}},
    {"candidates": 60, "group_by": "group"},
    {"candidates": "auto"},
]


def seen(results: list[SearchResult]) -> list[Any]:
    """All of a result but times, the name of the generation, and how many originals were read: each
    shard must be certain of its own best.
    """
    return [
        (
            [(hit.id, hit.score, hit.payload) for hit in result.hits],
            (result.budget, result.candidates, result.scored, result.live, result.exact),
            result.scores,
            [(stage["name"], stage["in"]) for stage in result.stages if stage["name"] != "exact"],
        )
        for result in results
    ]


def answers(index: SearchIndex, searches: list[dict[str, Any]] = SEARCHES) -> list[Any]:
    return [
        seen(index.search(queries(4), budget=rung, **options))
        for rung in RUNGS
        for options in searches
    ]


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 documents of which every vector occurs twice or more, so that keys decide every cut."""
    pick = np.random.default_rng(0).integers(0, 120, 300)
    folder = tmp_path_factory.mktemp("tied") / "embeddings"
    return write_embeddings(folder, unit((120, 8, 16), 1)[pick], unit((120, 24), 2)[pick])


@pytest.fixture(scope="module")
def one(tied: Path) -> SearchIndex:
    build_index(tied, tied.parent / "one")
    return SearchIndex.open(tied.parent / "one")


@pytest.fixture(scope="module", params=COUNTS)
def several(tied: Path, request: pytest.FixtureRequest) -> SearchIndex:
    build_sharded(tied, tied.parent / f"of-{request.param}", request.param)
    return SearchIndex.open(tied.parent / f"of-{request.param}")


def test_any_number_of_shards_gives_the_hits_of_one_index(
    one: SearchIndex, several: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answers(several) == answers(one)
    # a plan that narrows on the way, which a small corpus does not get
    monkeypatch.setattr(planner, "EXHAUSTIVE_COST", 1)
    monkeypatch.setattr(planner, "AUTO_CANDIDATES", 250)
    narrowed = answers(several, [{}, {"coarse": "both"}, {"group_by": "number"}])
    assert [name for name, _ in narrowed[-1][0][3]] == ["filter", "coarse:fused", "2x4", "4x8"]
    assert narrowed == answers(one, [{}, {"coarse": "both"}, {"group_by": "number"}])


def test_everything_else_of_an_index_is_there_too(one: SearchIndex, several: SearchIndex) -> None:
    ids = one.ids({"group": "food"})
    assert sorted(several.ids({"group": "food"})) == sorted(ids)
    assert several.payload([*ids, "nobody"]) == one.payload([*ids, "nobody"])
    np.testing.assert_array_equal(several.fused_vectors(ids), one.fused_vectors(ids))
    query = queries(1)
    np.testing.assert_array_equal(
        several.explain(query, ids[0], budget="2x4"), one.explain(query, ids[0], budget="2x4")
    )
    mine, theirs = several.score_all(query), one.score_all(query)
    columns = [several.ids().index(name) for name in one.ids()]
    for rung in RUNGS:
        np.testing.assert_array_equal(mine[rung][:, columns], theirs[rung])
    assert (len(several), several.budgets, several.identity) == (300, one.budgets, one.identity)
    assert several.info()["shards"] == len(list(Path(several.info()["path"]).glob("shard-*")))
    assert several.info()["fields"] == one.info()["fields"]
    assert several.verify()["documents"] == 300
    assert several.latest() is several
    several.check_model(one.identity)


def test_a_document_lies_in_the_shard_that_its_id_names(tied: Path) -> None:
    build_sharded(tied, tied.parent / "placed", 5)
    for number in range(5):
        shard = SearchIndex.open(tied.parent / "placed" / shard_name(number, 5))
        assert {shard_of(name, 5) for name in shard.ids()} == {number}


def test_a_field_that_one_shard_alone_has_may_be_asked_for(tmp_path: Path) -> None:
    index = built(tmp_path, {f"d{n}": n for n in range(12)}, 5)
    folder = write_embeddings(
        tmp_path / "more",
        unit((1, 8, 16), 3),
        unit((1, 24), 4),
        ids=["new"],
        payloads=[{"colour": "red"}],
        num_shards=1,
    )
    shard_changes.add_documents(index, folder)
    opened = SearchIndex.open(index)
    for candidates in ("all", 1):
        [found] = opened.search(
            queries(1), candidates=candidates, top_k=1, filter={"colour": "red"}
        )
        assert [hit.id for hit in found.hits] == ["new"]
    with pytest.raises(UserError, match="filter field 'color' is not there; did you mean"):
        opened.search(queries(1), filter={"color": "red"})


def built(folder: Path, documents: dict[str, int], num_shards: int) -> Path:
    build_sharded(embeddings_of(folder / "first", documents), folder / "index", num_shards)
    return folder / "index"


SOME: list[dict[str, Any]] = [
    {"candidates": "all"},
    {"candidates": 12, "coarse": "both"},
    {"candidates": "all", "filter": {"odd": True}},
    {"candidates": 12, "group_by": "odd"},
]


@pytest.mark.parametrize("num_shards", COUNTS)
def test_after_add_delete_and_merge_the_hits_are_those_of_one_index(
    num_shards: int, tmp_path: Path
) -> None:
    start = {f"d{n}": n for n in range(40)}
    index = built(tmp_path, start, num_shards)
    build_index(tmp_path / "first", tmp_path / "one")
    more = embeddings_of(tmp_path / "more", {f"d{n}": 100 + n for n in range(30, 50)})
    steps: list[Callable[[Any, Path], Any]] = [
        lambda changer, path: changer.add_documents(path, more),
        lambda changer, path: changer.delete_documents(path, ["d1", "d35", "d1", "nobody"]),
        lambda changer, path: changer.merge_segments(path),
        lambda changer, path: changer.delete_documents(path, [f"d{n}" for n in range(38)]),
        lambda changer, path: changer.delete_documents(path, [f"d{n}" for n in range(50)]),
        lambda changer, path: changer.add_documents(path, more),
    ]
    for step in steps:
        before = SearchIndex.open(index)
        expected = answers(before, SOME)
        mine, theirs = step(shard_changes, index), step(changes, tmp_path / "one")
        counts = ("added", "replaced", "deleted", "unknown")
        assert [getattr(mine, c) for c in counts] == [getattr(theirs, c) for c in counts]
        assert mine.info.documents == theirs.info.documents
        latest = before.latest()
        assert latest is not before
        assert answers(latest, SOME) == answers(SearchIndex.open(tmp_path / "one"), SOME)
        assert answers(before, SOME) == expected, "an open index changed"
        latest.verify()


def test_shards_may_be_empty(tmp_path: Path) -> None:
    index = built(tmp_path, {"a": 1, "b": 2}, 5)
    build_index(tmp_path / "first", tmp_path / "one")
    opened = SearchIndex.open(index)
    assert answers(opened, SOME[:1]) == answers(SearchIndex.open(tmp_path / "one"), SOME[:1])
    shard_changes.merge_segments(index)
    shard_changes.add_documents(index, embeddings_of(tmp_path / "more", {"d1": 3, "d2": 4}))
    assert sorted(SearchIndex.open(index).ids()) == ["a", "b", "d1", "d2"]


def test_a_change_of_nothing_publishes_nothing(tmp_path: Path) -> None:
    index = built(tmp_path, {"a": 1, "b": 2, "c": 3}, 2)
    before = (index / SET_FILE).read_text()
    assert shard_changes.delete_documents(index, ["nobody"]).unknown == 1
    assert shard_changes.merge_segments(index).merged == 0
    assert (index / SET_FILE).read_text() == before


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """d0 to d19 in three shards."""
    return built(tmp_path, {f"d{n}": n for n in range(20)}, 3)


def edit(index: Path, **changed: Any) -> None:
    fields = json.loads((index / SET_FILE).read_text())
    (index / SET_FILE).write_text(json.dumps({**fields, **changed}))


def swap(index: Path, first: int, second: int) -> None:
    """Exchange two shards, and let the set believe it."""
    one, two = (index / shard_name(n, 3) for n in (first, second))
    one.rename(index / "other")
    two.rename(one)
    (index / "other").rename(two)
    entries = json.loads((index / SET_FILE).read_text())["shards"]
    entries[first], entries[second] = (
        {**entries[second], "name": entries[first]["name"]},
        {**entries[first], "name": entries[second]["name"]},
    )
    edit(index, shards=entries)


def lose(index: Path, field: str) -> None:
    fields = json.loads((index / SET_FILE).read_text())
    del fields[field]
    (index / SET_FILE).write_text(json.dumps(fields))


def shard_of_another_model(index: Path) -> None:
    [file] = (index / shard_name(1, 3) / "generations").iterdir()
    file.write_text(file.read_text().replace("d1" * 32, "e2" * 32))


def touch_manifest(index: Path) -> None:
    [file] = (index / shard_name(1, 3) / "generations").iterdir()
    file.write_text(file.read_text() + "\n")


DAMAGED: dict[str, Callable[[Path], Any]] = {
    "says 2 shards, but names 3": lambda index: edit(index, num_shards=2),
    "shard-00001-of-00003 is missing, shards.json names it": lambda index: (
        index / shard_name(1, 3)
    ).rename(index.parent / "elsewhere"),
    "holds documents that belong to another shard": lambda index: swap(index, 0, 2),
    r"shard-00001-of-00003 differs from shards.json in model": shard_of_another_model,
    "differs from shards.json in instruction": lambda index: edit(index, instruction="other"),
    "does not match its checksum in shards.json": touch_manifest,
    "has format version 99": lambda index: edit(index, format_version=99),
    "spreads documents by 'crc32'": lambda index: edit(index, hash="crc32"),
    r"shards.json is no manifest .*'shards'.* is damaged": lambda index: lose(index, "shards"),
    r"shards.json is no manifest .*'ladder'.* is damaged": lambda index: lose(index, "ladder"),
    r"shards.json is no manifest .*'num_shards'.* is damaged": lambda index: lose(
        index, "num_shards"
    ),
    r"shards.json is no manifest .*'three'.* is damaged": lambda index: edit(
        index, num_shards="three"
    ),
    "is not JSON": lambda index: (index / SET_FILE).write_text("{"),
    "is missing, its manifest says": lambda index: next(index.rglob("keys.npy")).unlink(),
}


@pytest.mark.parametrize("message", DAMAGED)
def test_a_damaged_set_is_refused_by_readers_and_writers(message: str, index: Path) -> None:
    DAMAGED[message](index)
    with pytest.raises(UserError, match=message):
        SearchIndex.open(index)
    if "documents that belong" in message or "manifest says" in message:
        return  # what a writer does not look at
    with pytest.raises(UserError, match=message):
        shard_changes.delete_documents(index, ["d1"])


def test_what_is_no_place_for_a_set_or_a_change_is_refused(index: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    with pytest.raises(UserError, match="holds an index of 3 shards, asked for are 4"):
        build_sharded(first, index, 4)
    with pytest.raises(UserError, match="which is not part of an index"):
        build_index(first, index)
    build_index(first, tmp_path / "one")
    with pytest.raises(UserError, match="which is not part of an index of 3 shards"):
        build_sharded(first, tmp_path / "one", 3)
    with pytest.raises(UserError, match="--shards 0 is not possible"):
        build_sharded(first, tmp_path / "new", 0)
    with pytest.raises(UserError, match="is a shard of the index"):
        shard_changes.delete_documents(index / shard_name(0, 3), ["d1"])
    with (
        hold_lock(index),
        pytest.raises(UserError, match="is being written by another process"),
    ):
        shard_changes.delete_documents(index, ["d1"])
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="is not an index"):
        shard_changes.delete_documents(tmp_path / "new", ["d1"])


def test_embeddings_that_do_not_fit_leave_every_shard_as_it_was(
    index: Path, tmp_path: Path
) -> None:
    before = answers(SearchIndex.open(index), SOME)
    files = {file: file.stat().st_size for file in index.rglob("*") if file.is_file()}
    twice = {f"e{n}": n for n in range(20)}
    folder = embeddings_of(tmp_path / "bad", twice)
    vectors = np.stack([unit((8, 16), n) for n in range(20)])
    # the shard that comes last holds an id twice: the others have published by then
    last = next(name for name in twice if shard_of(name, 3) == 2)
    names = [last if shard_of(name, 3) == 2 else name for name in twice]
    folder = write_embeddings(tmp_path / "twice", vectors, unit((20, 24), 1), ids=names)
    with pytest.raises(UserError, match="ids must be unique"):
        shard_changes.add_documents(index, folder)
    assert {file: file.stat().st_size for file in index.rglob("*") if file.is_file()} == files
    assert answers(SearchIndex.open(index), SOME) == before


def test_what_a_killed_writer_left_is_not_seen_and_goes_with_the_next_change(index: Path) -> None:
    before = answers(SearchIndex.open(index), SOME)
    doomed = {number: [] for number in range(3)}
    for name in SearchIndex.open(index).ids():
        doomed[shard_of(name, 3)].append(name)
    # a writer that dies after it has published two of three shards leaves exactly this
    for number in (0, 1):
        changes.delete_documents(index / shard_name(number, 3), doomed[number])
    assert answers(SearchIndex.open(index), SOME) == before
    assert SearchIndex.open(index).latest().generation == "set-000001"
    shard_changes.delete_documents(index, doomed[2][:1])
    opened = SearchIndex.open(index)
    assert set(opened.ids()) == {f"d{n}" for n in range(20)} - {doomed[2][0]}
    opened.verify()


def test_a_reader_that_was_overtaken_opens_the_set_that_is_there_now(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rematch_ray.index.sharding import opened as sharded

    real, overtaken = sharded.ShardedGeneration, []

    def open_late(path: Path, found: Any, **options: Any) -> Any:
        if not overtaken:
            overtaken.append(found.name)
            for n in range(20):  # the generations that `found` names are gone after that
                shard_changes.delete_documents(index, [f"d{n}"])
        return real(path, found, **options)

    monkeypatch.setattr(sharded, "ShardedGeneration", open_late)
    opened = sharded.open_generation(index)
    assert overtaken == ["set-000001"]
    assert opened.manifest.live == 0


def test_shards_without_originals_agree_by_8_bit_scores(
    tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(tied, tmp_path / "one", originals=False)
    build_sharded(tied, tmp_path / "five", 5, originals=False)
    monkeypatch.setattr(planner, "EXHAUSTIVE_COST", 1)
    monkeypatch.setattr(planner, "AUTO_CANDIDATES", 250)
    mine, theirs = (answers(SearchIndex.open(tmp_path / name)) for name in ("five", "one"))
    assert {result[2] for results in mine for result in results} == {"float", "int8"}
    assert mine == theirs


def test_shards_of_packed_codes_agree_with_one_index(tied: Path, tmp_path: Path) -> None:
    build_index(tied, tmp_path / "one", coarse_kind="scan4")
    build_sharded(tied, tmp_path / "five", 5, coarse_kind="scan4")
    mine, theirs = (answers(SearchIndex.open(tmp_path / name)) for name in ("five", "one"))
    assert mine == theirs
    assert len(list((tmp_path / "five").glob("**/coarse_fused.npy"))) == 5


def test_a_miner_reads_shards_as_one_gallery(tied: Path, one: SearchIndex, tmp_path: Path) -> None:
    build_sharded(tied, tmp_path / "set", 5)
    lines = np.empty(300, DOCUMENTS)
    folders = Path(one.info()["path"]), tmp_path / "set"
    whole, split = (Gallery.of(open_generation(folder), lines) for folder in folders)
    ids = whole.generation.ids()[:7]
    mine = np.array([split.generation.rows_of(ids)[name] for name in ids])
    theirs = np.array([whole.generation.rows_of(ids)[name] for name in ids])
    query = queries(3)
    np.testing.assert_array_equal(
        split.scores(query, mine, "4x8"), whole.scores(query, theirs, "4x8")
    )
    np.testing.assert_array_equal(split.keys(mine), whole.keys(theirs))


def test_where_few_pass_all_of_them_are_narrowed(several: SearchIndex) -> None:
    generation = open_generation(Path(several.info()["path"]))
    assert isinstance(generation, ShardedGeneration)
    plan = Plan(Budget(4, 8), None, ((Budget(2, 4), 50),))
    wanted = {"group": "food"}
    request = ShardedRequest(
        plan=plan,
        coarse="first",
        filter=wanted,
        nprobe=None,
        top_k=10,
        group_by=None,
        filter_stage={"name": "filter", "in": 300, "out": 100, "ms": 0.0},
        live=300,
        is_float=True,
        generation="any",
    )
    queries_of = Queries.check(queries(1), num_vectors=4, dim=16, fused_dim=24)
    [found] = search_shards(generation.group, queries_of, request)
    entered = [(stage["name"], stage["in"]) for stage in found.stages[1:3]]
    assert entered == [("2x4", 100), ("4x8", 50)]
    [exact] = several.search(queries(1), filter=wanted, candidates="all")
    [narrowed] = several.search(queries(1), budget="2x4", filter=wanted, candidates="all", top_k=50)
    kept = {hit.id for hit in narrowed.hits}
    assert {hit.id for hit in exact.hits} & kept <= {hit.id for hit in found.hits}
    assert not found.exact


@pytest.mark.parametrize("num_shards", COUNTS)
def test_words_weigh_the_same_in_any_number_of_shards(num_shards: int, tmp_path: Path) -> None:
    words = ["otter", "boat", "red boat", "an otter in a red boat", "tea", "red tea"]
    payloads = [{"text": words[row % 6] + f" {row % 4}"} for row in range(24)]
    folder = write_embeddings(
        tmp_path / "texts", unit((24, 8, 16), 1), unit((24, 24), 2), payloads=payloads
    )
    build_index(folder, tmp_path / "one", lexical=["text"])
    build_sharded(folder, tmp_path / "set", num_shards, lexical=["text"])
    for fusion in ("rrf", "weighted"):
        for options in ({"candidates": "all"}, {"candidates": 12}):
            found = [
                seen(
                    SearchIndex.open(tmp_path / name).search(
                        queries(2), text=["red otter", "tea 3"], fusion=fusion, **options
                    )
                )
                for name in ("set", "one")
            ]
            assert found[0] == found[1]
