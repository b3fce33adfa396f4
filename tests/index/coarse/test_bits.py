"""A scan of one-bit codes before the 8-bit ones: what it finds, filtered, split, and damaged."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rematch_ray.errors import UserError
from rematch_ray.index.build import build_index
from rematch_ray.index.changes import add_documents, delete_documents, merge_segments
from rematch_ray.index.coarse import bits
from rematch_ray.index.coarse.bits import BitsList, num_proposed, write_bits
from rematch_ray.index.coarse.entries import Entries
from rematch_ray.index.coarse.scan import ScanList
from rematch_ray.index.queries import Codes
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.sharding.build import build_sharded
from tests.index.made import Vectors, kinds, queries, unit, write_embeddings


def test_scores_are_those_of_eight_bits_and_few_are_missing(
    make_index: Callable[..., SearchIndex],
) -> None:
    index = make_index(unit((3000, 8, 32), 1), unit((3000, 64), 2), coarse_kind="scan1")
    [segment] = index._generation.segments
    missing = 0
    for key, dim in (("fused", 64), ("first", 32)):
        proposing = segment.coarse(key)
        assert isinstance(proposing, BitsList)
        assert not proposing.is_exact
        whole = ScanList(segment._listed(key))
        for seed in range(20):
            query = unit((dim,), 100 + seed)
            rows, scores = proposing.search(query, 20)
            known = dict(zip(*whole.search(query, 3000)))
            assert len(rows) == 20
            assert all(known[row] == score for row, score in zip(rows, scores))
            missing += len(set(whole.search(query, 20)[0].tolist()) - set(rows.tolist()))
        # a wish for more than half of those proposed is a scan
        np.testing.assert_array_equal(proposing.search(query, 200)[0], whole.search(query, 200)[0])
    # of 800, of vectors that lie anywhere: the hardest there are (at random some 750 would be)
    assert missing <= 200


def test_more_proposals_miss_less(
    make_index: Callable[..., SearchIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make_index(unit((4000, 8, 32), 1), unit((4000, 64), 2), coarse_kind="scan1")
    [segment] = index._generation.segments
    whole, proposing = ScanList(segment._listed("fused")), segment.coarse("fused")
    missing = []
    for each in (1, 4, 16, 64):
        monkeypatch.setattr(bits, "_PER_WANTED", each)
        missing.append(0)
        for seed in range(20):
            query = unit((64,), 100 + seed)
            best = set(whole.search(query, 20)[0].tolist())
            missing[-1] += len(best - set(proposing.search(query, 20)[0].tolist()))
    assert missing == sorted(missing, reverse=True)
    assert missing[0] > 100
    assert missing[-1] == 0


def test_a_filter_is_obeyed_few_or_many(make_index: Callable[..., SearchIndex]) -> None:
    index = make_index(unit((2000, 8, 16), 1), unit((2000, 24), 2), coarse_kind="scan1")
    [segment] = index._generation.segments
    whole, proposing = ScanList(segment._listed("fused")), segment.coarse("fused")
    for step in (2, 7, 300):
        allowed = np.zeros(2000, bool)
        allowed[::step] = True
        rows, _ = proposing.search(unit((24,), 3), 10, allowed=allowed)
        assert len(rows) == min(10, allowed.sum())
        assert allowed[rows].all()
    few = proposing.search(unit((24,), 3), 10, allowed=allowed)
    np.testing.assert_array_equal(few[0], whole.search(unit((24,), 3), 10, allowed=allowed)[0])
    nothing = proposing.search(unit((24,), 3), 10, allowed=np.zeros(2000, bool))
    assert not len(nothing[0])


def test_changes_and_merges_keep_the_kind(tmp_path: Path) -> None:
    index = tmp_path / "index"
    write_embeddings(tmp_path / "a", unit((900, 8, 16), 1), unit((900, 24), 2))
    new = [f"new-{row}" for row in range(30)]
    write_embeddings(tmp_path / "b", unit((30, 8, 16), 3), unit((30, 24), 4), ids=new)
    build_index(tmp_path / "a", index, coarse_kind="scan1")
    add_documents(index, tmp_path / "b")
    delete_documents(index, ["new-7", "doc-0003"])
    for kept in (["scan1", "scan"], ["scan1"]):
        opened = SearchIndex.open(index)
        assert [found["fused"] for found in kinds(opened)] == kept
        for row in (0, 14, 7):
            of = slice(row, row + 1)
            query = Vectors(unit((30, 8, 16), 3)[of, :4], unit((30, 24), 4)[of])
            [result] = opened.search(query, candidates=20, top_k=20)
            assert (f"new-{row}" in {hit.id for hit in result.hits}) == (row != 7)
        opened.verify()
        merge_segments(index)


def test_shards_find_what_one_index_finds_or_more(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "a", unit((3000, 8, 16), 1), unit((3000, 24), 2))
    build_index(tmp_path / "a", tmp_path / "one", coarse_kind="scan1")
    build_sharded(tmp_path / "a", tmp_path / "three", 3, coarse_kind="scan1")
    one, split = SearchIndex.open(tmp_path / "one"), SearchIndex.open(tmp_path / "three")
    whole = one.search(queries(20), candidates="all", budget="fused", top_k=30)
    missing = []
    for index in (one, split):
        found = index.search(queries(20), candidates=30, budget="fused", top_k=30, coarse="fused")
        pairs = zip(whole, found)
        known = [{hit.id for hit in a.hits} - {hit.id for hit in b.hits} for a, b in pairs]
        missing.append(sum(map(len, known)))
    # of 600; each shard proposes as many as the whole index
    assert missing[1] < missing[0] < 200
    assert len(list((tmp_path / "three").glob("**/coarse_fused.npy"))) == 3


def test_without_the_compiled_kernel_the_same_is_found(
    make_index: Callable[..., SearchIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make_index(unit((2000, 8, 16), 1), unit((2000, 24), 2), coarse_kind="scan1")
    found = [
        [(hit.id, hit.score) for hit in result.hits]
        for result in index.search(queries(5), candidates=40, top_k=20)
    ]
    for place in ("one_bit", "maxsim_best"):
        monkeypatch.setattr(f"rematch_ray.index.{place}.path_in_use", lambda: "numpy")
    again = index.search(queries(5), candidates=40, top_k=20)
    assert [[(hit.id, hit.score) for hit in result.hits] for result in again] == found


def test_a_device_scans_its_8_bit_codes(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "a", unit((2000, 8, 16), 1), unit((2000, 24), 2))
    build_index(tmp_path / "a", tmp_path / "index", coarse_kind="scan1")
    [segment] = SearchIndex.open(tmp_path / "index", device="cpu")._generation.segments
    query = Codes.of(unit((1, 1, 24), 3))
    found = segment.coarse("fused").search_coded(query, 15)
    whole = ScanList(segment._listed("fused")).search_coded(query, 15)
    np.testing.assert_array_equal(found[0], whole[0])


def test_a_share_of_all_is_proposed_however_few_are_wanted() -> None:
    assert num_proposed(10, 1_000_000) == 15_625
    assert num_proposed(10, 1000) == 80


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "a", unit((50, 8, 16), 1), unit((50, 24), 2))
    build_index(tmp_path / "a", tmp_path / "index", coarse_kind="scan1")
    [segment] = SearchIndex.open(tmp_path / "index")._generation.segments
    description = dict(segment.manifest.coarse["fused"])
    [listed] = segment._listed("fused")
    write_bits(tmp_path, "fused", Entries.of(unit((50, 16), 1)))
    with pytest.raises(UserError, match=r"coarse_fused\.npy holds uint8 .* the index is damaged"):
        BitsList(tmp_path, description, listed)
    (tmp_path / "coarse_fused.npy").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"coarse_fused\.npy cannot be mapped"):
        BitsList(tmp_path, description, listed)
