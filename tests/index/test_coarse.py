"""Coarse lists: exact where they say so, obedient to filters, the same in any order or batch."""

from pathlib import Path

import numpy as np
import pytest

from rematch_ray.errors import UserError
from rematch_ray.index.coarse import CoarseList, build_coarse
from tests.index.made import unit


def make(path: Path, vectors: np.ndarray, kind: str = "flat") -> CoarseList:
    return CoarseList(path.parent, build_coarse(path, vectors.astype(np.float16), kind=kind))


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


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_only_allowed_documents_are_returned(tmp_path: Path, kind: str) -> None:
    coarse = make(tmp_path / "c", unit((900, 24), 1), kind)
    allowed = np.zeros(900, bool)
    allowed[5::9] = True
    rows, _ = coarse.search(unit((24,), 2), 30, allowed=allowed)
    assert len(rows) >= 30
    assert allowed[rows].all()
    rows, _ = coarse.search(unit((24,), 2), 10, allowed=np.zeros(900, bool))
    assert len(rows) == 0


def test_inverted_lists_find_most_of_what_the_scan_finds(tmp_path: Path) -> None:
    vectors, queries = unit((2000, 24), 1), unit((20, 24), 2)
    flat, ivf = (make(tmp_path / kind, vectors, kind) for kind in ("flat", "ivf"))
    assert flat.is_exact
    assert not ivf.is_exact
    found = [len(set(flat.search(q, 10)[0][:10]) & set(ivf.search(q, 10)[0][:10])) for q in queries]
    assert sum(found) >= 150


def test_size_chooses_the_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit((900, 24), 1).astype(np.float16)
    assert build_coarse(tmp_path / "c", vectors)["kind"] == "flat"
    monkeypatch.setattr("rematch_ray.index.coarse.IVF_FROM_DOCUMENTS", 900)
    assert build_coarse(tmp_path / "c", vectors)["kind"] == "ivf"


def test_unknown_kinds_and_too_few_documents_are_refused(tmp_path: Path) -> None:
    vectors = unit((10, 24), 1).astype(np.float16)
    with pytest.raises(UserError, match="coarse kind 'tree' does not exist"):
        build_coarse(tmp_path / "c", vectors, kind="tree")
    with pytest.raises(UserError, match="10 documents are too few"):
        build_coarse(tmp_path / "c", vectors, kind="ivf")


def test_a_damaged_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="c cannot be read"):
        CoarseList(tmp_path, {"file": "c", "kind": "flat"})
