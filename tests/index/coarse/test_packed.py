"""A scan of 4-bit codes: near that of 8 bits, for every choice, in shards, and damaged."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rematch_ray.errors import UserError
from rematch_ray.index.build import build_index
from rematch_ray.index.changes import add_documents
from rematch_ray.index.coarse.entries import Entries
from rematch_ray.index.coarse.keys import COARSE_CHOICES
from rematch_ray.index.coarse.packed import PackedList, write_packed
from rematch_ray.index.coarse.scan import ScanList
from rematch_ray.index.quantisation import pack, unpack
from rematch_ray.index.search import SearchIndex
from tests.index.made import Vectors, kinds, queries, unit, write_embeddings


@given(dim=st.integers(1, 40), seed=st.integers(0, 1000))
def test_packed_codes_keep_their_high_bits(dim: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 256, (3, 2, dim), dtype=np.uint8)
    packed = pack(codes)
    assert packed.shape == (3, 2, (dim + 1) // 2)
    back = unpack(packed, dim)
    np.testing.assert_array_equal(back >> 4, codes >> 4)
    assert (back & 15 == 8).all()


def test_scores_are_near_those_of_eight_bits(make_index: Callable[..., SearchIndex]) -> None:
    index = make_index(unit((3000, 8, 32), 1), unit((3000, 64), 2), coarse_kind="scan4")
    [segment] = index._generation.segments
    for key, dim in (("fused", 64), ("first", 32)):
        packed = segment.coarse(key)
        assert isinstance(packed, PackedList)
        query = unit((dim,), 3)
        rows, scores = packed.search(query, 3000)
        whole, whole_scores = ScanList(segment._listed(key)).search(query, 3000)
        np.testing.assert_array_equal(rows, whole)
        # of 16 levels where the larger has 255: a thirtieth of the largest entry, at random
        assert np.abs(scores - whole_scores).max() < 0.1
        assert np.corrcoef(scores, whole_scores)[0, 1] > 0.99
        best = whole[np.argsort(-whole_scores)[:10]]
        found, _ = packed.search(query, 60)
        assert set(best.tolist()) <= set(found.tolist())


@pytest.mark.parametrize("kind", ["scan4", "scan1"])
@pytest.mark.parametrize("coarse", COARSE_CHOICES)
def test_every_choice_finds_documents_and_scores_them_exactly(
    make_index: Callable[..., SearchIndex], coarse: str, kind: str
) -> None:
    # few enough candidates for proposals of one bit to be read
    vectors, fused = unit((1500, 8, 16), 1), unit((1500, 24), 2)
    index = make_index(vectors, fused, coarse="all", coarse_kind=kind)
    assert kinds(index) == [{"fused": kind, "first": kind, "prefix": "scan"}]
    everything = index.search(queries(4), candidates="all", top_k=1500)
    found = index.search(queries(4), candidates=60, top_k=20, coarse=coarse)
    for result, whole in zip(found, everything):
        known = {hit.id: hit.score for hit in whole.hits}
        assert len(result.hits) == 20
        assert all(known[hit.id] == hit.score for hit in result.hits)


def test_a_key_without_a_file_is_scanned_from_the_planes(
    make_index: Callable[..., SearchIndex],
) -> None:
    index = make_index(unit((300, 8, 16), 1), unit((300, 24), 2), coarse_kind="scan4")
    assert kinds(index) == [{"fused": "scan4", "first": "scan4"}]
    assert "prefix" in index.coarse_choices
    [result] = index.search(queries(1), candidates=50, top_k=10, coarse="prefix")
    assert len(result.hits) == 10


def test_added_documents_are_found_beside_packed_ones(tmp_path: Path) -> None:
    index = tmp_path / "index"
    write_embeddings(tmp_path / "a", unit((400, 8, 16), 1), unit((400, 24), 2))
    new = [f"new-{row}" for row in range(30)]
    write_embeddings(tmp_path / "b", unit((30, 8, 16), 3), unit((30, 24), 4), ids=new)
    build_index(tmp_path / "a", index, coarse_kind="scan4")
    add_documents(index, tmp_path / "b")
    opened = SearchIndex.open(index)
    assert [set(found.values()) for found in kinds(opened)] == [{"scan4"}, {"scan"}]
    for row in range(0, 30, 7):
        query = Vectors(unit((30, 8, 16), 3)[row : row + 1, :4], unit((30, 24), 4)[row : row + 1])
        [result] = opened.search(query, candidates=20, top_k=20)
        assert f"new-{row}" in {hit.id for hit in result.hits}


def test_a_filter_is_obeyed(make_index: Callable[..., SearchIndex]) -> None:
    index = make_index(unit((500, 8, 16), 1), unit((500, 24), 2), coarse_kind="scan4")
    allowed = np.zeros(500, bool)
    allowed[::7] = True
    [segment] = index._generation.segments
    rows, _ = segment.coarse("fused").search(unit((24,), 3), 20, allowed=allowed)
    assert len(rows) >= 20
    assert (rows % 7 == 0).all()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "a", unit((50, 8, 16), 1), unit((50, 24), 2))
    build_index(tmp_path / "a", tmp_path / "index", coarse_kind="scan4")
    opened = SearchIndex.open(tmp_path / "index")
    [segment] = opened._generation.segments
    description = dict(segment.manifest.coarse["fused"])
    [listed] = segment._listed("fused")
    write_packed(tmp_path, "fused", Entries.of(unit((50, 16), 1)))
    with pytest.raises(UserError, match=r"coarse_fused\.npy holds uint8 .* the index is damaged"):
        PackedList(tmp_path, description, listed)
    (tmp_path / "coarse_fused.npy").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"coarse_fused\.npy cannot be mapped"):
        PackedList(tmp_path, description, listed)
