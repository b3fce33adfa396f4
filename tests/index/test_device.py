"""Search on a device of torch's: the hits and scores of the CPU's kernel, to the last bit.

The device is torch's own CPU, which runs the same program; on a machine with CUDA that one too.
"""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rematch_ray.errors import UserError
from rematch_ray.index import maxsim_device
from rematch_ray.index.build import build_index
from rematch_ray.index.changes import add_documents, delete_documents, merge_segments
from rematch_ray.index.maxsim_best import best_of_planes
from rematch_ray.index.maxsim_library import Vectors
from rematch_ray.index.plan import Plan
from rematch_ray.index.quantisation import pack, quantise, to_offset
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.sharding.build import build_sharded
from rematch_ray.scoring.budget import Budget
from tests.index.made import queries, unit, write_embeddings

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
WAYS: list[dict[str, Any]] = [
    {},
    {"candidates": "all"},
    {"candidates": "all", "budget": "1x1"},
    {"candidates": "all", "budget": "fused"},
    {"candidates": "all", "group_by": "number"},
    {"candidates": "all", "filter": {"group": "food"}, "top_k": 300},
    {"candidates": 60, "coarse": "fused"},
    {"candidates": 60, "coarse": "prefix", "filter": {"inner.half": True}},
    {"plan": Plan(Budget(4, 8), 200, ((Budget(1, 1), 90), (Budget(2, 4), 40)), "first")},
    {"plan": Plan(Budget(4, 8), None, ((Budget(2, 4), 30),))},
]


def answers(index: SearchIndex, **asked: Any) -> list[Any]:
    found = index.search(queries(3), **asked)
    return [([(hit.id, hit.score) for hit in one.hits], one.scored, one.exact) for one in found]


@pytest.fixture(scope="module", params=["one segment", "several, some deleted", "shards", "scan4"])
def changed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device")
    write_embeddings(folder / "some", unit((700, 8, 16), 1), unit((700, 24), 2))
    if request.param == "shards":
        build_sharded(folder / "some", folder / "index", num_shards=3)
    else:
        kind = "scan4" if request.param == "scan4" else "auto"
        build_index(folder / "some", folder / "index", coarse_kind=kind)
    if request.param.startswith("several"):
        more = [f"more-{row}" for row in range(90)]
        write_embeddings(folder / "more", unit((90, 8, 16), 3), unit((90, 24), 4), ids=more)
        add_documents(folder / "index", folder / "more")
        delete_documents(folder / "index", ["doc-0003", "more-7"])
    return folder / "index"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("asked", WAYS, ids=[str(way) for way in WAYS])
def test_hits_and_scores_are_those_of_the_kernel(
    changed: Path, asked: dict[str, Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # blocks of few documents, so that there are several
    monkeypatch.setattr(maxsim_device, "BLOCK_CELLS", 2000)
    expected = answers(SearchIndex.open(changed), **asked)
    assert expected[0][0]
    assert answers(SearchIndex.open(changed, device=device), **asked) == expected


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_what_is_kept_is_what_the_kernel_keeps(device: str, data: st.DataObject) -> None:
    draw = data.draw
    dim, num_vectors = draw(st.integers(1, 70)), draw(st.sampled_from([1, 3]))
    count, num_queries, r_q = (
        draw(st.integers(1, 60)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 9)),
    )
    kinds = draw(st.integers(1, 30))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    # of few kinds: many scores tie
    documents = unit((kinds, num_vectors, dim), 1)[random.integers(0, kinds, count)]
    codes, scales = quantise(documents)
    is_packed = num_vectors == 1 and draw(st.booleans())
    values = pack(to_offset(codes)) if is_packed else to_offset(codes)
    query_codes, query_scales = quantise(unit((num_queries, r_q, dim), 2))
    rows = draw(st.sampled_from([None, random.integers(0, count, 20)]))
    mask = random.random(count if rows is None else len(rows)) < 0.6
    asked: dict[str, Any] = {
        "limit": draw(st.integers(1, 70)),
        "rows": rows,
        "allowed": draw(st.sampled_from([None, mask])),
        "slack": np.full(num_queries, draw(st.sampled_from([0.0, 0.05]))),
    }
    held = Vectors(values, scales, is_packed, device)
    expected = best_of_planes(
        query_codes, query_scales, [Vectors(values, scales, is_packed)], **asked
    )
    found = best_of_planes(query_codes, query_scales, [held], **asked)
    for (places, scores), (right, right_scores) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(places, right)
        np.testing.assert_array_equal(scores, right_scores)


@pytest.mark.parametrize("count", [1, 16, 17, 40])
def test_integer_products_of_few_vectors_are_whole(count: int) -> None:
    # small enough for processors whose sums of pairs end at 2**15
    random = np.random.default_rng(count)
    codes = torch.from_numpy(random.integers(-60, 61, (count, 24), dtype=np.int8))
    query = torch.from_numpy(random.integers(-60, 61, (8, 24), dtype=np.int8))
    found = maxsim_device._by_integers(codes, query)
    assert found.dtype == torch.float32
    assert torch.equal(found, (codes.double() @ query.double().T).float())


@pytest.mark.parametrize("kind", ["scan", "scan4", "scan1"])
@pytest.mark.parametrize("device", DEVICES)
def test_what_is_held_on_a_device_outlives_its_files(
    device: str, kind: str, tmp_path: Path
) -> None:
    write_embeddings(tmp_path / "some", unit((300, 8, 16), 1), unit((300, 24), 2))
    build_index(tmp_path / "some", tmp_path / "index", coarse_kind=kind)
    asked = [{"candidates": 60, "coarse": key} for key in ("fused", "first")]
    index = SearchIndex.open(tmp_path / "index", device=device)
    before = [answers(index, **each) for each in asked]
    held = SearchIndex.open(tmp_path / "index", device=device, hold=True)
    del index
    delete_documents(tmp_path / "index", ["doc-0000"])
    merge_segments(tmp_path / "index")
    delete_documents(tmp_path / "index", ["doc-0001"])
    assert [answers(held, **each) for each in asked] == before


def test_generations_share_what_they_hold_and_let_go_of_it(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "some", unit((300, 8, 16), 1), unit((300, 24), 2))
    build_index(tmp_path / "some", tmp_path / "index")
    gc.collect()  # what other tests let go of
    before = len(maxsim_device._held)
    first = SearchIndex.open(tmp_path / "index", device="cpu")
    first._generation.hold()
    planes = len(maxsim_device._held) - before
    assert planes == 4
    delete_documents(tmp_path / "index", ["doc-0003"])
    second = first.latest()
    second._generation.hold()
    assert second is not first and len(maxsim_device._held) - before == planes
    [old], [new] = first._generation.segments, second._generation.segments
    assert old.planes[0].coded.held is new.planes[0].coded.held
    del first, old
    gc.collect()
    assert len(maxsim_device._held) - before == planes
    del second, new
    gc.collect()
    assert len(maxsim_device._held) == before


@pytest.mark.parametrize("name", ["tpu", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"device '{name}'"):
        SearchIndex.open(tmp_path, device=name)


def test_vectors_that_do_not_fit_are_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "zeros", full)
    codes, scales = quantise(unit((4, 2, 8), 1))
    with pytest.raises(UserError, match=r"GiB of vectors do not fit on cpu .*split it into shards"):
        maxsim_device.hold(Vectors(to_offset(codes), scales, device="cpu"))
