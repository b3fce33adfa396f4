"""Hybrid search: both lists, fused once, within filters, with what it did reported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rematch_ray.errors import UserError
from rematch_ray.index.build import build_index
from rematch_ray.index.calibration_writer import publish_calibration
from rematch_ray.index.changes import add_documents, delete_documents, merge_segments
from rematch_ray.index.generation import Generation
from rematch_ray.index.lexical.bm25 import LexicalIndex
from rematch_ray.index.lexical.fusion import FUSIONS, fuse_candidates
from rematch_ray.index.payload import document_key
from rematch_ray.index.search import SearchIndex
from tests.index.made import queries, unit, write_embeddings
from tests.index.tables import row, table

ROWS = 300
COLOURS = ["red", "blue", "green", "黄色い", "grün"]
SHAPES = ["circle", "bar", "star"]
TEXTS = ["red star", "黄色い bar", "blue unknown"]


def payload_of(row: int) -> dict[str, Any]:
    text = f"{COLOURS[row % 5]} {SHAPES[row % 3]}" + " of note" * (row % 7 == 0)
    return {"text": text, "group": f"g{row % 4}", "odd": bool(row % 2)}


def embeddings_of(path: Path, rows: range, **changes: Any) -> Path:
    return write_embeddings(
        path,
        unit((ROWS, 8, 16), 1)[rows.start : rows.stop],
        unit((ROWS, 24), 2)[rows.start : rows.stop],
        ids=[f"doc-{row}" for row in rows],
        payloads=[payload_of(row) | changes for row in rows],
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    build_index(embeddings_of(tmp_path / "embeddings", range(ROWS)), tmp_path / "index")
    return tmp_path / "index"


def naive(
    index: SearchIndex, fusion: Any, filter: Any = None, weight: float = 0.5
) -> list[dict[str, float]]:
    """Fused scores of all documents, from brute force of both kinds."""
    scores = index.score_all(queries(3), ["4x8"], filter=filter)["4x8"]
    lexical = LexicalIndex(Generation(Path(index.info()["path"])))
    allowed = lexical._generation.select(filter)
    names = index.ids(filter)
    keys = np.array([document_key(name) for name in names], np.uint64)
    found = []
    for vector, text in zip(scores, TEXTS, strict=True):
        places, fused = fuse_candidates(
            vector,
            lexical.scores(text)[allowed],
            keys,
            depth=100,
            fusion=fusion,
            lexical_weight=weight,
        )
        found.append({names[p]: float(s) for p, s in zip(places, fused, strict=True)})
    return found


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("filter", [None, {"odd": True}])
def test_all_candidates_give_the_fusion_of_both_full_rankings(
    fusion: str, filter: Any, path: Path
) -> None:
    index = SearchIndex.open(path)
    results = index.search(
        queries(3), candidates="all", text=TEXTS, fusion=fusion, filter=filter, lexical_weight=0.3
    )
    for result, expected in zip(results, naive(index, fusion, filter, 0.3), strict=True):
        best = sorted(expected, key=lambda n: (-np.float32(expected[n]), document_key(n)))[:10]
        assert [hit.id for hit in result.hits] == best
        assert [hit.score for hit in result.hits] == [float(np.float32(expected[n])) for n in best]
        assert result.exact
        assert result.scored == result.candidates == (150 if filter else ROWS)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_hits_say_what_their_score_is_made_of(fusion: str, path: Path) -> None:
    index = SearchIndex.open(path)
    [vector] = index.score_all(queries(1), ["4x8"])["4x8"]
    lexical = LexicalIndex(Generation(path)).scores(TEXTS[0])
    for candidates in ("all", 20):
        [result] = index.search(
            queries(1), candidates=candidates, text=TEXTS[0], fusion=fusion, top_k=20
        )
        assert len(result.hits) == 20
        for hit in result.hits:
            row = int(hit.id.removeprefix("doc-"))
            assert hit.parts == {"vector": float(vector[row]), "lexical": float(lexical[row])}
    [plain] = index.search(queries(1))
    assert all(hit.parts is None for hit in plain.hits)


def test_what_only_the_words_find_is_found_and_scored_by_its_vectors_too(path: Path) -> None:
    index = SearchIndex.open(path)
    [alone] = index.search(queries(1), candidates=5, top_k=5)
    [result] = index.search(
        queries(1), candidates=5, top_k=5, text="note", fusion="weighted", lexical_weight=1.0
    )
    assert all("note" in hit.payload["text"] for hit in result.hits)
    assert not {hit.id for hit in result.hits} <= {hit.id for hit in alone.hits}
    assert not result.exact
    assert (alone.scored, alone.candidates) == (5, 5)
    assert result.scored == result.candidates > 5


def test_the_stages_are_reported_with_counts_and_times(path: Path) -> None:
    [result] = SearchIndex.open(path).search(
        queries(1), candidates=20, text="red star", filter={"odd": True}
    )
    stages = {stage["name"]: (stage["in"], stage["out"]) for stage in result.stages}
    assert list(stages) == [
        "filter", "coarse:fused", "4x8", "exact", "lexical", "lexical:4x8", "fusion:rrf",
    ]  # fmt: skip
    matching = [r for r in range(1, ROWS, 2) if r % 5 == 0 or r % 3 == 2]
    assert stages["lexical"] == (150, len(matching))
    assert stages["lexical:4x8"][0] == len(matching)
    assert stages["fusion:rrf"] == (20 + stages["lexical:4x8"][1], 10)
    assert all(stage["ms"] >= 0 for stage in result.stages)


def test_one_source_gives_one_hit(path: Path) -> None:
    index = SearchIndex.open(path)
    for result in index.search(queries(3), candidates="all", text=TEXTS, group_by="source"):
        sources = [int(hit.id.removeprefix("doc-")) % 2 for hit in result.hits]
        assert sorted(sources) == [0, 1]


def test_one_group_gives_one_hit_the_best_by_the_fused_score(path: Path) -> None:
    index = SearchIndex.open(path)
    scores = naive(index, "rrf")
    results = index.search(queries(3), candidates="all", text=TEXTS, group_by="group")
    for result, fused in zip(results, scores, strict=True):
        best: dict[str, str] = {}
        for name in sorted(fused, key=lambda n: (-np.float32(fused[n]), document_key(n))):
            best.setdefault(payload_of(int(name.removeprefix("doc-")))["group"], name)
        assert [hit.id for hit in result.hits] == list(best.values())
        assert len(best) == 4


def test_a_plan_that_the_index_chooses_gives_the_whole_list_that_is_fused(path: Path) -> None:
    short = row("4x8", 50, 0.999, 1.0, coarse="fused")
    long = row("4x8", 150, 0.999, 3.0, coarse="fused")
    standing = SearchIndex.open(path).standing
    publish_calibration(path, table(short, long, standing=standing))
    index = SearchIndex.open(path)

    def found(**asked: Any) -> list[int]:
        [result] = index.search(queries(1), **asked)
        stages = {stage["name"]: stage["out"] for stage in result.stages}
        return [stages["coarse:fused"], stages["exact"]]

    for goal in ({}, {"budget": "4x8"}, {"target_recall": 0.9}, {"max_ms": 9.0}):
        assert found(**goal) == [50, 10]
        assert found(text="red star", **goal) == [150, 100]
    # who says how many documents the vectors find gets those
    assert found(text="red star", candidates=20) == [20, 20]
    assert found(text="red star", plan=short.plan) == [50, 50]


@pytest.mark.parametrize("text", ["", "\x00 ?", "never heard"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_words_that_nothing_matches_leave_the_order_of_the_vectors(
    text: str, fusion: str, path: Path
) -> None:
    index = SearchIndex.open(path)
    [plain] = index.search(queries(1), candidates="all")
    [result] = index.search(queries(1), candidates="all", text=text, fusion=fusion)
    assert [hit.id for hit in result.hits] == [hit.id for hit in plain.hits]


def test_an_index_without_originals_scores_all_candidates_alike(tmp_path: Path) -> None:
    embeddings = embeddings_of(tmp_path / "embeddings", range(ROWS))
    build_index(embeddings, tmp_path / "index", originals=False)
    index = SearchIndex.open(tmp_path / "index")
    [plain] = index.search(queries(1), candidates="all", top_k=ROWS)
    scores = {hit.id: hit.score for hit in plain.hits}
    for candidates in ("all", 10):
        [result] = index.search(queries(1), candidates=candidates, text="red star")
        assert result.scores == "int8"
        assert all(hit.parts["vector"] == scores[hit.id] for hit in result.hits)


def test_a_filter_that_nothing_passes_finds_nothing(path: Path) -> None:
    [result] = SearchIndex.open(path).search(queries(1), text="red", filter={"group": "none"})
    assert result.hits == []


def test_the_fused_rung_takes_words_too(path: Path) -> None:
    [result] = SearchIndex.open(path).search(queries(1), budget="fused", text="red", candidates=10)
    assert len(result.hits) == 10
    assert result.stages[-2]["name"] == "lexical:fused"


def answers(path: Path) -> Any:
    index = SearchIndex.open(path)
    found = []
    for fusion in FUSIONS:
        for options in ({}, {"filter": {"odd": True}}, {"budget": "1x1"}):
            results = index.search(queries(3), text=TEXTS, fusion=fusion, **options)
            found.append([[(h.id, h.score, h.payload, h.parts) for h in r.hits] for r in results])
    return found


def test_after_changes_hits_are_those_of_an_index_built_anew(path: Path, tmp_path: Path) -> None:
    gone = [f"doc-{row}" for row in range(200, ROWS)]
    delete_documents(path, gone)
    add_documents(path, embeddings_of(tmp_path / "changed", range(50, 90), text="red bar"))
    add_documents(path, embeddings_of(tmp_path / "back", range(50, 90)))
    build_index(embeddings_of(tmp_path / "anew", range(200)), tmp_path / "other")
    expected = answers(tmp_path / "other")
    assert answers(path) == expected
    merge_segments(path)
    assert answers(path) == expected


MISTAKES: dict[str, dict[str, Any]] = {
    "fusion 'rrf' .* needs the text": {"fusion": "rrf"},
    "lexical_weight 0.7 needs the text": {"lexical_weight": 0.7},
    "fusion 'sum' does not exist; allowed: rrf, weighted": {"text": "a", "fusion": "sum"},
    "lexical_weight 1.5 is not possible": {"text": "a", "lexical_weight": 1.5},
    "lexical_weight nan is not possible": {"text": "a", "lexical_weight": float("nan")},
    "1 texts for 2 queries": {"text": "a"},
    "3 texts for 2 queries": {"text": TEXTS},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_named(message: str, path: Path) -> None:
    with pytest.raises(UserError, match=message):
        SearchIndex.open(path).search(queries(2), **MISTAKES[message])


def test_an_index_without_texts_says_how_to_get_them(index: SearchIndex) -> None:
    with pytest.raises(UserError, match="no lexical index: build it with --lexical FIELD"):
        index.search(queries(1), text="red")
