"""Mining over an index equals brute force over the stored vectors."""

from pathlib import Path

import numpy as np
import pytest

from rematch_ray.data.item import Item, Negative, Positive, Sample
from rematch_ray.data.schema import samples_to_table
from rematch_ray.errors import UserError
from rematch_ray.index.build import build_index
from rematch_ray.index.changes import add_documents
from rematch_ray.index.mining.documents import ItemStore, write_items
from rematch_ray.index.mining.miner import Gallery, Mined, Miner, MinerSettings
from rematch_ray.index.mining.references import ReferenceMaker
from rematch_ray.index.mining.rows import RowScanner, links_of
from rematch_ray.index.mining.selection import MiningRules
from rematch_ray.index.sharding.opened import open_generation
from tests.index.made import Vectors, queries, unit, write_embeddings

COUNT, ROWS = 60, 12
HARDEST = MiningRules(per_row=5, ranks=(2, 20), max_share=0.7, max_similarity=None, draw="hardest")
MAKE = ReferenceMaker(10_000)


def document(number: int, source: str = "s0") -> Item:
    return Item.of(f"text {number}", id=f"doc-{number:04d}", source=source)


def gallery(folder: Path, vectors: np.ndarray, fused: np.ndarray | None, first: int = 0) -> Gallery:
    items = [document(first + row, f"source-{row % 2}") for row in range(len(vectors))]
    names = [item.id for item in items]
    build_index(write_embeddings(folder / "v", vectors, fused, ids=names), folder / "index")
    (folder / "items").mkdir()
    write_items(
        folder / "items" / "000000.arrow", [(item.id, item, MAKE.of(item)) for item in items]
    )
    generation = open_generation(folder / "index")
    return Gallery.of(generation, ItemStore(folder / "items").documents(generation.ids()))


def rows_of(positives: list[list[int]], negatives: int = 0) -> list[Sample]:
    return [
        Sample(
            Item.of(f"query {row}", id=f"q{row}"),
            tuple(Positive(document(number, f"source-{number % 2}")) for number in right),
            tuple(Negative(document(row + n, f"source-{(row + n) % 2}")) for n in range(negatives)),
            source="source-1",
        )
        for row, right in enumerate(positives)
    ]


def mine(
    miner: Gallery,
    samples: list[Sample],
    query: Vectors,
    settings: MinerSettings,
    outside: Gallery | None = None,
) -> list[Mined]:
    scan = RowScanner(10_000)(samples_to_table(samples)).rows
    built = Miner(miner, settings, links_of([scan]), outside)
    return built.mine(scan, query, np.arange(len(samples)))


def max_sim(query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(B, C) at the top rung, from float16 documents."""
    stored = vectors.astype(np.float16).astype(np.float64)
    return np.einsum("brd,csd->bcrs", query.astype(np.float64), stored).max(3).mean(2)


@pytest.fixture(scope="module")
def vectors() -> tuple[np.ndarray, np.ndarray]:
    return unit((COUNT, 8, 16), 5), unit((COUNT, 24), 6)


@pytest.mark.parametrize("candidates", ["auto", "all"])
def test_negatives_are_the_best_below_the_limit_without_the_positives(
    tmp_path: Path, vectors: tuple[np.ndarray, np.ndarray], candidates: str
) -> None:
    query, positives = queries(ROWS), [[row, row + 30] for row in range(ROWS)]
    settings = MinerSettings(HARDEST, "full", candidates)  # type: ignore[arg-type]
    mined = mine(gallery(tmp_path, *vectors), rows_of(positives), query, settings)
    scores = max_sim(query.vectors, vectors[0])
    for row, right in enumerate(positives):
        ranked = [c for c in np.argsort(-scores[row]).tolist() if c not in right]
        limit = 0.7 * scores[row, right].min()
        expected = [c for c in ranked[1:20] if scores[row, c] <= limit][:5]
        assert mined[row].rows.tolist() == expected
        assert np.allclose(mined[row].scores, scores[row, expected], atol=1e-6)


def test_positives_take_no_place_in_the_window(
    tmp_path: Path, vectors: tuple[np.ndarray, np.ndarray]
) -> None:
    query = queries(1)
    ranked = np.argsort(-max_sim(query.vectors, vectors[0])[0]).tolist()
    rules = MiningRules(per_row=50, ranks=(1, 10), max_share=None, max_similarity=None)
    made = gallery(tmp_path, *vectors)
    [mined] = mine(made, rows_of([ranked[1:5]]), query, MinerSettings(rules))
    assert mined.rows.tolist() == [ranked[0], *ranked[5:14]]


def test_every_budget_scores_at_its_own_rung(
    tmp_path: Path, vectors: tuple[np.ndarray, np.ndarray]
) -> None:
    made, query = gallery(tmp_path, *vectors), queries(3)
    rules = HARDEST.model_copy(update={"max_share": None, "ranks": (1, 59)})
    for budget in ("fused", "1x1", "fast"):
        mined = mine(made, rows_of([[0], [1], [2]]), query, MinerSettings(rules, budget))
        for row, one in enumerate(mined):
            if budget == "fused":
                scores = query.fused[row] @ vectors[1].astype(np.float16).T
            else:
                r_q, r_d = (1, 1) if budget == "1x1" else (2, 4)
                scores = max_sim(query.vectors[row : row + 1, :r_q], vectors[0][:, :r_d])[0]
            ranked = [c for c in np.argsort(-scores).tolist() if c != row]
            assert one.rows.tolist() == ranked[:5]


def test_near_duplicates_of_a_positive_go_by_the_stored_key(
    tmp_path: Path, vectors: tuple[np.ndarray, np.ndarray]
) -> None:
    query = queries(1)
    rules = MiningRules(per_row=59, ranks=(1, 59), max_share=None, max_similarity=0.2)
    for name, fused in (("fused", vectors[1]), ("first", None)):
        made = gallery(tmp_path / name, vectors[0], fused)
        [mined] = mine(made, rows_of([[7, 9]]), query, MinerSettings(rules))
        keys = (fused if fused is not None else vectors[0][:, 0]).astype(np.float16)
        similar = (keys.astype(np.float32) @ keys[[7, 9]].astype(np.float32).T).max(1)
        expected = set(np.flatnonzero(similar <= 0.2).tolist()) - {7, 9}
        assert set(mined.rows.tolist()) == expected


def test_own_negatives_and_positives_of_the_same_query_are_never_mined(
    tmp_path: Path, vectors: tuple[np.ndarray, np.ndarray]
) -> None:
    samples = rows_of([[20], [21], [22]], negatives=3)
    same = Item.of("query 0", id="under another id")
    samples[1] = Sample(same, samples[1].positives, samples[1].negatives, source="source-1")
    rules = MiningRules(per_row=59, ranks=(1, 59), max_share=None, max_similarity=None)
    mined = mine(gallery(tmp_path, *vectors), samples, queries(3), MinerSettings(rules))
    everything = set(range(COUNT))
    assert set(mined[0].rows.tolist()) == everything - {20, 21, 0, 1, 2}
    assert set(mined[1].rows.tolist()) == everything - {20, 21, 1, 2, 3}
    assert set(mined[2].rows.tolist()) == everything - {22, 2, 3, 4}


def test_own_source_keeps_to_documents_of_the_rows_source(
    tmp_path: Path, vectors: tuple[np.ndarray, np.ndarray]
) -> None:
    # `write_embeddings` calls the sources of its documents source-0 and source-1, by place in shard
    made = gallery(tmp_path, *vectors)
    rules = MiningRules(per_row=59, ranks=(1, 59), max_share=None, max_similarity=None)
    [mined] = mine(made, rows_of([[1]]), queries(1), MinerSettings(rules, own_source=True))
    assert len(mined.rows)
    assert {row % 2 for row in mined.rows.tolist()} == {1}


def test_a_positive_outside_the_corpus_still_sets_the_limit(
    tmp_path: Path, vectors: tuple[np.ndarray, np.ndarray]
) -> None:
    made = gallery(tmp_path / "in", *vectors)
    outside = gallery(tmp_path / "out", unit((4, 8, 16), 50), unit((4, 24), 51), first=900)
    query = queries(1)
    [mined] = mine(made, rows_of([[902]]), query, MinerSettings(HARDEST), outside)
    limit = 0.7 * max_sim(query.vectors, unit((4, 8, 16), 50))[0, 2]
    scores = max_sim(query.vectors, vectors[0])[0]
    ranked = np.argsort(-scores).tolist()[1:20]
    assert mined.rows.tolist() == [c for c in ranked if scores[c] <= limit][:5]
    [lost] = mine(made, rows_of([[902]]), query, MinerSettings(HARDEST))
    assert lost.selection is None
    assert not len(lost.rows)


def test_a_positive_that_was_replaced_counts_with_its_new_vectors(
    tmp_path: Path, vectors: tuple[np.ndarray, np.ndarray]
) -> None:
    before = gallery(tmp_path, *vectors)
    query, ranked = queries(1), np.argsort(-max_sim(queries(1).vectors, vectors[0])[0]).tolist()
    name, new = f"doc-{ranked[0]:04d}", (vectors[0][ranked[-1:]], vectors[1][ranked[-1:]])
    add_documents(tmp_path / "index", write_embeddings(tmp_path / "new", *new, ids=[name]))
    generation = open_generation(tmp_path / "index")
    made = Gallery.of(generation, ItemStore(tmp_path / "items").documents(generation.ids()))
    rules = MiningRules(per_row=60, ranks=(1, 60), max_share=1, max_similarity=None)
    settings = MinerSettings(rules, candidates="all")
    [old] = mine(before, rows_of([[ranked[0]]]), query, settings)
    assert len(old.rows) == COUNT - 1
    # all score above the new vectors, which are those of the last, but that one
    [mined] = mine(made, rows_of([[ranked[0]]]), query, settings)
    assert mined.rows.tolist() == ranked[-1:]


def test_lines_of_another_state_of_the_index_are_refused(
    tmp_path: Path, vectors: tuple[np.ndarray, np.ndarray]
) -> None:
    made = gallery(tmp_path, *vectors)
    with pytest.raises(UserError, match=r"holds 60 rows at generation-000001, .* are 59: .* again"):
        Gallery.of(made.generation, made.documents.lines[1:])


def test_draws_depend_on_the_rows_number_and_not_on_the_block(
    tmp_path: Path, vectors: tuple[np.ndarray, np.ndarray]
) -> None:
    made, query, samples = gallery(tmp_path, *vectors), queries(6), rows_of([[n] for n in range(6)])
    scan = RowScanner(10_000)(samples_to_table(samples)).rows
    settings = MinerSettings(MiningRules(per_row=3, max_share=None))
    miner = Miner(made, settings, links_of([scan]))
    whole = miner.mine(scan, query, np.arange(6))
    parts = miner.mine(scan.slice(0, 2), query[:2], np.arange(2))
    parts += miner.mine(scan.slice(2), query[2:], np.arange(2, 6))
    assert [m.rows.tolist() for m in whole] == [m.rows.tolist() for m in parts]
    other = Miner(
        made, MinerSettings(MiningRules(per_row=3, max_share=None, seed=1)), links_of([scan])
    )
    drawn = other.mine(scan, query, np.arange(6))
    assert [m.rows.tolist() for m in whole] != [m.rows.tolist() for m in drawn]
