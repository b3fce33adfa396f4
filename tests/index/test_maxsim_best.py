"""The best documents of one pass: the set of a plain cut, on every path, whatever is left out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rematch_ray.index import maxsim_library
from rematch_ray.index.maxsim_best import best_of_planes, choose_rows
from rematch_ray.index.maxsim_int8 import (
    available_paths,
    carry_maxima,
    mean_of_maxima,
    new_maxima,
)
from rematch_ray.index.maxsim_library import Vectors
from rematch_ray.index.quantisation import pack, to_offset, unpack

PATHS = available_paths()
# single vectors of some dims have a scan of their own
DIMS = [7, 16, 24, 32, 64, 100, 128]


def drawn(seed: int, documents: int, planes: list[int], dim: int, levels: int = 127) -> list:
    """Planes of codes over the whole range; few levels make ties."""
    rng = np.random.default_rng(seed)
    made = []
    for vectors in planes:
        codes = rng.integers(-levels, levels + 1, (documents, vectors, dim)).astype(np.int8)
        scales = np.full((documents, vectors), 2.0**-7, np.float32)
        if levels == 127:
            scales *= rng.uniform(0.5, 1, scales.shape).astype(np.float32)
        made.append(Vectors(to_offset(codes), scales))
    return made


def asked(seed: int, num_queries: int, r_q: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed + 1)
    codes = rng.integers(-127, 128, (num_queries, r_q, dim)).astype(np.int8)
    return codes, rng.uniform(0.5, 1, (num_queries, r_q)).astype(np.float32)


def plain(
    codes: np.ndarray,
    scales: np.ndarray,
    planes: list,
    limit: int,
    rows: np.ndarray,
    allowed: np.ndarray,
    slack: np.ndarray,
) -> list[tuple[list[int], list[float]]]:
    """Every score is computed alone; then those that are near the limit-th best are kept."""
    found = []
    for query, query_scales, width in zip(codes, scales, slack):
        best = new_maxima(len(rows), len(query))
        for plane in planes:
            carry_maxima(best, query, plane.values, plane.scales, rows, path="numpy")
        score = mean_of_maxima(best, query_scales, len(query))
        may = np.flatnonzero(allowed)
        ordered = np.sort(score[may])[::-1]
        if len(may) > limit:
            may = may[score[may] >= np.float64(ordered[limit - 1]) - width]
        found.append((may.tolist(), score[may].tolist()))
    return found


def listed(found: list) -> list[tuple[list[int], list[float]]]:
    return [(places.tolist(), scores.tolist()) for places, scores in found]


@pytest.mark.parametrize("path", PATHS)
@given(
    seed=st.integers(0, 2**31),
    documents=st.integers(1, 90),
    planes=st.sampled_from([[1], [4], [1, 3], [1, 3, 4]]),
    num_queries=st.integers(1, 3),
    r_q=st.sampled_from([1, 2, 4, 17]),
    dim=st.sampled_from(DIMS),
    limit=st.integers(1, 100),
    width=st.sampled_from([0.0, 3.0]),
    chosen=st.sampled_from(["all", "rows", "mask"]),
)
@settings(max_examples=60, deadline=None)
def test_every_path_keeps_what_a_plain_cut_keeps(
    path: str,
    seed: int,
    documents: int,
    planes: list[int],
    num_queries: int,
    r_q: int,
    dim: int,
    limit: int,
    width: float,
    chosen: str,
) -> None:
    held = drawn(seed, documents, planes, dim)
    codes, scales = asked(seed, num_queries, r_q, dim)
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, documents, 30) if chosen == "rows" else np.arange(documents)
    allowed = rng.random(len(rows)) < (0.5 if chosen == "mask" else 2.0)
    slack = width * np.arange(num_queries, dtype=np.float64)
    found = best_of_planes(
        codes,
        scales,
        held,
        limit,
        rows=rows if chosen == "rows" else None,
        allowed=allowed if chosen == "mask" else None,
        slack=slack,
        path=path,
    )
    assert listed(found) == plain(codes, scales, held, limit, rows, allowed, slack)


@pytest.mark.parametrize("path", PATHS)
@given(
    seed=st.integers(0, 2**31),
    documents=st.integers(1, 90),
    num_queries=st.integers(1, 2),
    r_q=st.sampled_from([1, 2, 17]),
    dim=st.sampled_from([1, 7, 31, 32, 64, 96, 128, 256]),
    limit=st.integers(1, 100),
    chosen=st.sampled_from(["all", "rows", "mask"]),
)
@settings(max_examples=60, deadline=None)
def test_packed_codes_score_as_the_codes_that_they_stand_for(
    path: str,
    seed: int,
    documents: int,
    num_queries: int,
    r_q: int,
    dim: int,
    limit: int,
    chosen: str,
) -> None:
    [held] = drawn(seed, documents, [1], dim)
    packed = pack(held.values)
    stands_for = [Vectors(unpack(packed, dim), held.scales)]
    codes, scales = asked(seed, num_queries, r_q, dim)
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, documents, 30) if chosen == "rows" else np.arange(documents)
    allowed = rng.random(len(rows)) < (0.5 if chosen == "mask" else 2.0)
    found = best_of_planes(
        codes,
        scales,
        [Vectors(packed, held.scales, is_packed=True)],
        limit,
        rows=rows if chosen == "rows" else None,
        allowed=allowed if chosen == "mask" else None,
        path=path,
    )
    slack = np.zeros(num_queries)
    assert listed(found) == plain(codes, scales, stands_for, limit, rows, allowed, slack)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dim", [32, 40, 128])
def test_packed_codes_of_many_blocks(path: str, dim: int) -> None:
    [held] = drawn(3, 9001, [1], dim)
    packed = pack(held.values)
    codes, scales = asked(3, 1, 1, dim)
    found = best_of_planes(
        codes, scales, [Vectors(packed, held.scales, is_packed=True)], 10, path=path
    )
    stands_for = [Vectors(unpack(packed, dim), held.scales)]
    everything = np.arange(9001), np.ones(9001, bool)
    assert listed(found) == plain(codes, scales, stands_for, 10, *everything, np.zeros(1))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dim", [32, 40])
@pytest.mark.parametrize("limit", [1, 10, 3000])
@pytest.mark.parametrize("levels", [1, 127])
def test_many_blocks_and_many_ties_change_nothing(
    path: str, dim: int, limit: int, levels: int
) -> None:
    held = drawn(3, 9001, [1], dim, levels)
    codes, scales = asked(3, 2, 1, dim)
    slack = np.array([0.0, 0.01])
    everything = np.arange(9001), np.ones(9001, bool)
    found = best_of_planes(codes, scales, held, limit, slack=slack, path=path)
    assert listed(found) == plain(codes, scales, held, limit, *everything, slack)
    for query in range(2):
        one = slice(query, query + 1)
        alone = best_of_planes(
            codes[one], scales[one], held, limit, slack=slack[one].copy(), path=path
        )
        assert listed(alone) == listed(found)[query : query + 1]


def test_scores_that_fall_are_kept_as_well_as_scores_that_rise() -> None:
    """The worst orders for a cut that moves: everything is kept at first, or everything later."""
    codes = np.full((5000, 1, 32), 1, np.int8)
    factors = np.linspace(0.1, 1, 5000, dtype=np.float32)[:, None]
    query = np.ones((1, 1, 32), np.int8), np.ones((1, 1), np.float32)
    for scales, wanted in ((factors, range(4990, 5000)), (factors[::-1].copy(), range(10))):
        [(places, _)] = best_of_planes(*query, [Vectors(to_offset(codes), scales)], 10)
        assert places.tolist() == list(wanted)


@pytest.mark.parametrize("path", PATHS)
def test_where_nothing_may_be_found_nothing_is(path: str) -> None:
    held = drawn(1, 20, [1], 32)
    query = asked(1, 1, 1, 32)
    for options in ({"allowed": np.zeros(20, bool)}, {"rows": np.empty(0, np.int64)}):
        [(places, scores)] = best_of_planes(*query, held, 5, path=path, **options)
        assert (len(places), len(scores)) == (0, 0)


def test_few_allowed_documents_are_listed_and_many_are_picked_out() -> None:
    mask = np.ones(10, bool)
    assert choose_rows(mask) == (None, None)
    mask[3] = False
    rows, picked = choose_rows(mask)
    assert rows is None and picked is mask
    mask[4:] = False
    rows, picked = choose_rows(mask)
    assert picked is None and rows is not None and rows.tolist() == [0, 1, 2]


def test_rows_and_masks_that_do_not_fit_are_refused() -> None:
    held = drawn(1, 20, [1], 32)
    query = asked(1, 1, 1, 32)
    for options in (
        {"rows": np.array([20])},
        {"rows": np.array([-1])},
        {"allowed": np.ones(19, bool)},
        {"allowed": np.ones(20, np.int8)},
    ):
        with pytest.raises(AssertionError):
            best_of_planes(*query, held, 5, **options)


@pytest.mark.parametrize("path", maxsim_library.compiled_paths())
def test_a_limit_that_no_kernel_can_cut_at_never_reaches_it(path: str) -> None:
    codes, scales = asked(1, 1, 4, 16)
    planes = drawn(1, 20, [4], 16)
    for limit in (0, -1, -(2**63)):
        with pytest.raises(AssertionError):
            best_of_planes(codes, scales, planes, limit, path=path)
    [(places, _)] = best_of_planes(codes, scales, planes, 2**63, path=path)
    assert len(places) == 20


def test_the_tests_run_the_compiled_kernel_where_it_is_built() -> None:
    assert set(maxsim_library.compiled_paths()) <= set(PATHS)
