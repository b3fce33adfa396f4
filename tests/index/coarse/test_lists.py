"""Coarse lists: exact where they say so, obedient to filters, the same in any order or batch."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rematch_ray.errors import UserError
from rematch_ray.index.coarse.building import build_coarse
from rematch_ray.index.coarse.documents import gather_documents
from rematch_ray.index.coarse.entries import Entries
from rematch_ray.index.coarse.kinds import COARSE_KINDS, kind_for
from rematch_ray.index.coarse.lists import CoarseList
from rematch_ray.index.coarse.sizes import SCANS
from tests.index.made import unit

KINDS = [kind for kind in COARSE_KINDS if kind not in ("auto", *SCANS)]
APPROXIMATE = [kind for kind in KINDS if kind != "flat"]


def make(path: Path, vectors: np.ndarray, kind: str = "flat") -> CoarseList:
    return CoarseList(path.parent, build_coarse(path, vectors.astype(np.float16), kind=kind))


def max_sim(vectors_NWD: np.ndarray, query_KD: np.ndarray) -> np.ndarray:
    exact = vectors_NWD.astype(np.float16).astype(np.float64)
    return np.einsum("nwd,kd->nwk", exact, query_KD).max(axis=1).mean(axis=1).astype(np.float32)


def test_the_flat_list_returns_the_largest_inner_products(tmp_path: Path) -> None:
    vectors, query = unit((500, 24), 1), unit((24,), 2)
    rows, scores = make(tmp_path / "c", vectors).search(query, 20)
    expected = vectors.astype(np.float16).astype(np.float64) @ query
    assert rows[:20].tolist() == np.argsort(-expected)[:20].tolist()
    np.testing.assert_allclose(scores, expected[rows], atol=1e-6)


def test_scores_do_not_depend_on_the_documents_around(tmp_path: Path) -> None:
    vectors, query = unit((501, 24), 1), unit((24,), 2)
    order = np.random.default_rng(0).permutation(501)
    rows, scores = make(tmp_path / "a", vectors).search(query, 501)
    shuffled, shuffled_scores = make(tmp_path / "b", vectors[order]).search(query, 501)
    by_row = dict(zip(rows.tolist(), scores.tolist()))
    by_shuffled = dict(zip(order[shuffled].tolist(), shuffled_scores.tolist()))
    assert by_row == by_shuffled


def test_all_documents_tied_at_the_cut_are_returned(tmp_path: Path) -> None:
    vectors = np.repeat(unit((2, 24), 1), [5, 60], axis=0)
    rows, scores = make(tmp_path / "c", vectors).search(unit((2, 24), 1)[0], 10)
    assert set(range(5)) <= set(rows.tolist())
    assert len(rows) == 65
    assert len(np.unique(scores)) == 2


@settings(max_examples=40, deadline=None)
@given(
    num_documents=st.integers(1, 120),
    width=st.integers(1, 5),
    num_query_vectors=st.integers(1, 3),
    limit=st.integers(1, 130),
    distinct=st.integers(1, 120),
    seed=st.integers(0, 10**6),
)
def test_several_vectors_on_a_flat_list_rank_by_maxsim(
    tmp_path_factory: pytest.TempPathFactory,
    num_documents: int,
    width: int,
    num_query_vectors: int,
    limit: int,
    distinct: int,
    seed: int,
) -> None:
    # repeated documents make ties, at the cut too
    drawn = np.random.default_rng(seed).integers(0, distinct, num_documents)
    vectors = unit((distinct, width, 12), seed)[drawn]
    query = unit((num_query_vectors, 12), seed + 1)
    coarse = make(tmp_path_factory.mktemp("flat") / "c", vectors)
    rows, scores = coarse.search(query, limit)
    expected = max_sim(vectors, query)
    threshold = np.sort(expected)[::-1][min(limit, num_documents) - 1]
    # one vector on each side is FAISS's own sum, several are summed in double precision
    slack = 1e-6 if width == num_query_vectors == 1 else 0
    assert set(np.flatnonzero(expected > threshold + slack)) <= set(rows.tolist())
    assert len(rows) >= min(limit, num_documents)
    assert len(np.unique(rows)) == len(rows)
    np.testing.assert_allclose(scores, expected[rows], atol=slack or 1e-7)
    if not slack:
        assert set(rows.tolist()) == set(np.flatnonzero(expected >= threshold))


def test_the_prefix_search_stops_early_and_is_still_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, query = unit((5000, 4, 16), 1), unit((2, 16), 2)
    coarse = make(tmp_path / "c", vectors)
    asked: list[int] = []
    search = coarse._index.search

    def noting(query: np.ndarray, count: int, **options: object) -> object:
        asked.append(count)
        return search(query, count, **options)

    monkeypatch.setattr(coarse._index, "search", noting)
    rows, scores = coarse.search(query, 10)
    expected = max_sim(vectors, query)
    assert rows.tolist() == np.argsort(-expected, kind="stable")[:10].tolist()
    np.testing.assert_array_equal(scores, expected[rows])
    assert asked[-1] < 20_000


def test_what_a_query_vector_did_not_find_counts_as_its_worst() -> None:
    scores = np.float32([[0.9, 0.8, 0.7], [0.6, 0.5, -1.0]])
    entries = np.array([[8, 9, 0], [1, 8, -1]])
    found = gather_documents(scores, entries, 4)
    assert found.rows.tolist() == [0, 2]
    np.testing.assert_allclose(found.sums, [0.7 + 0.6, 0.9 + 0.5])
    scores, entries = np.float32([[0.9, 0.3], [0.2, 0.1]]), np.array([[0, 4], [9, 8]])
    found = gather_documents(scores, entries, 4)
    np.testing.assert_allclose(found.sums, [0.9 + 0.1, 0.3 + 0.1, 0.3 + 0.2])
    assert not found.holds_best(1)


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_only_allowed_documents_are_returned(tmp_path: Path, kind: str, width: int) -> None:
    coarse = make(tmp_path / "c", unit((900, width, 24), 1), kind)
    query = unit((2, 24), 2)[: min(2, width)]
    allowed = np.zeros(900, bool)
    allowed[5::9] = True
    rows, scores = coarse.search(query, 30, allowed=allowed)
    assert len(rows) >= 30
    assert allowed[rows].all()
    assert len(np.unique(rows)) == len(rows)
    assert (np.diff(scores) <= 0).all()
    rows, _ = coarse.search(query, 10, allowed=np.zeros(900, bool))
    assert len(rows) == 0


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_a_filter_that_leaves_few_makes_every_kind_look_at_all_of_them(
    tmp_path: Path, kind: str
) -> None:
    coarse = make(tmp_path / "c", unit((3000, 24), 1), kind)
    allowed = np.zeros(3000, bool)
    allowed[::150] = True
    rows, _ = coarse.search(unit((24,), 2), 20, allowed=allowed, nprobe=1)
    assert sorted(rows.tolist()) == np.flatnonzero(allowed).tolist()


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_finds_the_document_that_a_query_resembles(
    tmp_path: Path, kind: str, width: int
) -> None:
    vectors = unit((2000, width, 24), 1)
    queries = vectors[:50, : min(2, width)] + 0.5 * unit((50, min(2, width), 24), 2)
    coarse = make(tmp_path / "c", vectors, kind)
    assert coarse.is_exact == (kind == "flat")
    found = [row in coarse.search(query, 40)[0] for row, query in enumerate(queries)]
    assert sum(found) >= 48


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_opened_twice_answers_the_same(tmp_path: Path, kind: str) -> None:
    description = build_coarse(tmp_path / "c", unit((600, 4, 24), 1).astype(np.float16), kind=kind)
    one, other = (CoarseList(tmp_path, description) for _ in range(2))
    for query in unit((5, 2, 24), 2):
        for found, again in zip(one.search(query, 25), other.search(query, 25)):
            np.testing.assert_array_equal(found, again)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_that_look_differently_far_get_what_each_gets_alone(
    tmp_path: Path, kind: str
) -> None:
    coarse = make(tmp_path / "c", unit((1500, 24), 1), kind)
    queries = unit((40, 24), 2)
    masks = [np.arange(1500) % 7 != k for k in range(4)]

    def search(job: tuple[int, int]) -> list[int]:
        row, k = job
        allowed = masks[k] if k else None
        return coarse.search(queries[row], 30, allowed=allowed, nprobe=1 + 9 * k)[0].tolist()

    jobs = [(row, k) for row in range(40) for k in range(4)]
    alone = [search(job) for job in jobs]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(search, jobs)) == alone
    if kind.startswith("ivf"):
        assert alone[0::4] != alone[1::4]


def test_more_probes_find_more(tmp_path: Path) -> None:
    vectors, queries = unit((2000, 24), 1), unit((20, 24), 2)
    flat, ivf = (make(tmp_path / kind, vectors, kind) for kind in ("flat", "ivf"))
    best = [set(flat.search(q, 10)[0][:10].tolist()) for q in queries]
    found = [
        sum(len(b & set(ivf.search(q, 10, nprobe=n)[0].tolist())) for q, b in zip(queries, best))
        for n in (1, 8, 10**6)
    ]
    assert found == sorted(set(found))
    assert found[-1] == 200


def test_entries_lie_document_by_document_whatever_they_are_made_of() -> None:
    parts = [unit((30, 1, 8), 1), unit((30, 3, 8), 2)]
    entries = Entries(parts)
    whole = np.concatenate(parts, axis=1)
    assert (entries.rows, entries.width, entries.dim, len(entries)) == (30, 4, 8, 120)
    np.testing.assert_array_equal(
        entries.of_documents(slice(3, 5)), whole[3:5].reshape(-1, 8).astype(np.float32)
    )
    sample = entries.sample(20, seed=3)
    assert sample.shape == (20, 8)
    np.testing.assert_array_equal(sample, entries.sample(20, seed=3))
    assert {row.tobytes() for row in sample} <= {
        row.tobytes() for row in whole.reshape(-1, 8).astype(np.float32)
    }
    assert len(entries.sample(1000, seed=3)) == 120


def test_size_chooses_the_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit((900, 24), 1).astype(np.float16)
    assert kind_for("auto", len(vectors)) == "scan"
    monkeypatch.setattr("rematch_ray.index.coarse.sizes.PACKED_FROM_DOCUMENTS", 900)
    assert kind_for("auto", len(vectors)) == "scan4"
    monkeypatch.setattr("rematch_ray.index.coarse.sizes.BITS_FROM_DOCUMENTS", 900)
    assert kind_for("auto", len(vectors)) == "scan1"
    monkeypatch.setattr("rematch_ray.index.coarse.sizes.LISTS_FROM_DOCUMENTS", 900)
    assert build_coarse(tmp_path / "c", vectors)["kind"] == "ivf_sq8"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("ivf")])
def test_too_few_documents_for_a_kind_are_refused_with_advice(tmp_path: Path, kind: str) -> None:
    vectors = unit((10, 24), 1).astype(np.float16)
    with pytest.raises(UserError, match=f"10 documents are too few for coarse kind '{kind}'.*scan"):
        build_coarse(tmp_path / "c", vectors, kind=kind)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    vectors = unit((300, 23), 1).astype(np.float16)
    with pytest.raises(UserError, match="coarse kind 'tree' does not exist; allowed: auto, flat"):
        build_coarse(tmp_path / "c", vectors, kind="tree")
    for kind in SCANS:
        with pytest.raises(UserError, match=f"'{kind}' has no list of its own: use flat"):
            build_coarse(tmp_path / "c", vectors, kind=kind)
    with pytest.raises(UserError, match="'ivf_pq' needs vectors of an even dim, not 23"):
        build_coarse(tmp_path / "c", vectors, kind="ivf_pq")
    coarse = make(tmp_path / "c", vectors)
    with pytest.raises(UserError, match="dim 24 does not fit a coarse list of dim 23"):
        coarse.search(unit((24,), 2), 5)
    for options in ({"limit": 0}, {"limit": 5, "nprobe": 0}):
        with pytest.raises(UserError, match="0 is not possible"):
            coarse.search(unit((23,), 2), **options)


def test_a_damaged_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="c cannot be read"):
        CoarseList(tmp_path, {"file": "c", "kind": "flat"})
