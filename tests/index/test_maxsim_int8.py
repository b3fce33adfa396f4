"""8-bit MaxSim: every path gives the bits of a plain loop, whatever the order and the slicing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rematch_ray.index import maxsim_int8, maxsim_library
from rematch_ray.index.maxsim_int8 import (
    available_paths,
    carry_maxima,
    mean_of_maxima,
    new_maxima,
    path_in_use,
)
from rematch_ray.index.quantisation import from_offset, quantise, to_offset
from tests.index.made import unit

DIMS = [4, 7, 8, 64, 100, 128, 132, 256]
PATHS = available_paths()


def drawn(seed: int, num_rows: int, documents: int, vectors: int, dim: int) -> tuple:
    """Codes over the whole range, scales of every size, as (query, stored codes, scales)."""
    rng = np.random.default_rng(seed)
    query = rng.integers(-127, 128, (num_rows, dim)).astype(np.int8)
    codes = rng.integers(-127, 128, (documents, vectors, dim)).astype(np.int8)
    scales = (2.0 ** rng.uniform(-12, 0, (documents, vectors))).astype(np.float32)
    return query, to_offset(codes), scales


def plain_maxima(query: np.ndarray, stored: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The definition, one document vector and query vector at a time."""
    best = np.full((len(stored), len(query)), -np.inf, np.float32)
    for row, codes in enumerate(from_offset(stored).astype(np.int64)):
        for vector, scale in zip(codes, scales[row], strict=True):
            for i, q in enumerate(query.astype(np.int64)):
                best[row, i] = max(best[row, i], scale * np.float32(q @ vector))
    return best


def test_the_compiled_kernel_is_used_where_it_is_built() -> None:
    assert path_in_use() == PATHS[0]
    assert PATHS[-1] == "numpy"
    assert ("c" in PATHS) == maxsim_library.is_built()


@pytest.mark.parametrize("path", PATHS)
@given(
    seed=st.integers(0, 2**31),
    num_rows=st.integers(1, 40),
    documents=st.integers(1, 9),
    vectors=st.integers(1, 70),
    dim=st.sampled_from(DIMS),
)
@settings(max_examples=25, deadline=None)
def test_every_path_equals_the_plain_loop(
    path: str, seed: int, num_rows: int, documents: int, vectors: int, dim: int
) -> None:
    # the plain loop is slow: few cells, of any shape
    documents = max(1, min(documents, 3000 // (num_rows * vectors)))
    query, stored, scales = drawn(seed, num_rows, documents, vectors, dim)
    best = new_maxima(documents, num_rows)
    carry_maxima(best, query, stored, scales, path=path)
    assert np.array_equal(best, plain_maxima(query, stored, scales))


@pytest.mark.parametrize("path", PATHS)
@given(
    seed=st.integers(0, 2**31),
    num_rows=st.integers(1, 40),
    vectors=st.one_of(st.integers(1, 4), st.integers(5, 70)),
    count=st.integers(0, 200),
    threads=st.integers(1, 3),
)
@settings(max_examples=25, deadline=None)
def test_gathered_rows_equal_the_scan_of_all(
    path: str, seed: int, num_rows: int, vectors: int, count: int, threads: int
) -> None:
    query, stored, scales = drawn(seed, num_rows, 12, vectors, 64)
    scan = new_maxima(12, num_rows)
    carry_maxima(scan, query, stored, scales, path=path)
    rows = np.random.default_rng(seed).integers(0, 12, count)
    best = new_maxima(count, num_rows)
    carry_maxima(best, query, stored, scales, rows, path=path, threads=threads)
    assert np.array_equal(best, scan[rows])


@pytest.mark.parametrize("path", PATHS)
def test_maxima_carried_over_planes_and_more_query_vectors_equal_those_computed_at_once(
    path: str,
) -> None:
    query, stored, scales = drawn(7, 16, 20, 24, 128)
    rows = np.random.default_rng(1).permutation(20)[:13]
    best = new_maxima(13, 16)
    for start, stop, old, new in [(0, 1, 0, 1), (1, 4, 1, 2), (4, 8, 2, 5), (8, 24, 5, 16)]:
        # old rows see the new vectors, new rows see all of them
        parts = [(slice(start, stop), slice(0, old)), (slice(0, stop), slice(old, new))]
        for vectors, columns in parts:
            codes, some = stored[:, vectors].copy(), scales[:, vectors].copy()
            carry_maxima(best[:, columns], query[columns], codes, some, rows, path=path)
        assert np.array_equal(
            best[:, :new], plain_maxima(query[:new], stored[rows, :stop], scales[rows, :stop])
        )
        assert np.isneginf(best[:, new:]).all()


@pytest.mark.parametrize("path", PATHS)
def test_negative_maxima_survive(path: str) -> None:
    query = np.full((3, 20), 127, np.int8)
    stored = to_offset(np.full((5, 3, 20), -127, np.int8))
    scales = np.full((5, 3), 0.5, np.float32)
    best = new_maxima(5, 3)
    carry_maxima(best, query, stored, scales, path=path)
    assert (best == -0.5 * 127 * 127 * 20).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dim", [512, 1040, 4096])
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_codes_neither_saturate_nor_round(path: str, dim: int, sign: int) -> None:
    query = np.full((17, dim), 127, np.int8)
    codes = np.full((3, 2, dim), 127 * sign, np.int8)
    # an odd number, so that a sum that was rounded on the way shows
    codes[:, :, -1] = 126
    stored, scales = to_offset(codes), np.ones((3, 2), np.float32)
    best = new_maxima(3, 17)
    carry_maxima(best, query, stored, scales, path=path)
    assert np.array_equal(best, plain_maxima(query, stored, scales))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("num_rows", "columns"), [(5, 12), (3, 4), (16, 17), (1, 2), (2, 2)])
@pytest.mark.parametrize("vectors", [1, 4])
def test_a_slice_of_columns_leaves_the_others_alone(
    path: str, num_rows: int, columns: int, vectors: int
) -> None:
    query, stored, scales = drawn(3, num_rows, 70, vectors, 64)
    for first in range(columns - num_rows + 1):
        wide = np.full((70, columns), -7, np.float32)
        chosen = slice(first, first + num_rows)
        wide[:, chosen] = -np.inf
        carry_maxima(wide[:, chosen], query, stored, scales, path=path)
        assert np.array_equal(wide[:, chosen], plain_maxima(query, stored, scales))
        assert (np.delete(wide, np.s_[chosen], axis=1) == -7).all()


@pytest.mark.parametrize("path", PATHS)
def test_many_threads_give_the_same_bits(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maxsim_int8, "_SLICE_BYTES", 1)
    query, stored, scales = drawn(5, 16, 101, 5, 64)
    rows = np.random.default_rng(2).integers(0, 101, 333)
    for chosen in (None, rows):
        count = 101 if chosen is None else len(chosen)
        alone, together = new_maxima(count, 16), new_maxima(count, 16)
        carry_maxima(alone, query, stored, scales, chosen, path=path)
        carry_maxima(together, query, stored, scales, chosen, path=path, threads=7)
        assert np.array_equal(alone, together)


@pytest.mark.parametrize("path", PATHS)
def test_nothing_to_do_is_done(path: str) -> None:
    query, stored, scales = drawn(1, 2, 3, 4, 8)
    nothing = np.empty(0, np.int64)
    carry_maxima(new_maxima(0, 2), query, stored, scales, nothing, path=path)
    carry_maxima(new_maxima(0, 2), query, stored[:0], scales[:0], path=path)
    carry_maxima(new_maxima(3, 0), query[:0], stored, scales, path=path)
    best = new_maxima(3, 2)
    empty = np.ascontiguousarray(stored[:, :0])
    carry_maxima(best, query, empty, np.ascontiguousarray(scales[:, :0]), path=path)
    assert np.isneginf(best).all()


@pytest.mark.parametrize("path", PATHS)
def test_a_vector_of_zeros_scores_zero(path: str) -> None:
    codes, scales = quantise(np.zeros((2, 1, 16)))
    best = new_maxima(2, 3)
    carry_maxima(best, drawn(1, 3, 1, 1, 16)[0], to_offset(codes), scales, path=path)
    assert not best.any()


@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_the_mean_of_maxima_is_added_in_order(seed: int, num_rows: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    best = rng.standard_normal((count, num_rows + 2)).astype(np.float32)[:, 1 : num_rows + 1]
    scales = rng.random(num_rows).astype(np.float32)
    best[rng.random(best.shape) < 0.1] = -0.0
    r_q = int(rng.integers(1, num_rows + 1))
    wanted = []
    for row in best:
        total = 0.0
        for i in range(r_q):
            total += float(row[i] * scales[i])
        wanted.append(np.float32(total / r_q))
    found = mean_of_maxima(best, scales, r_q)
    assert found.tobytes() == np.array(wanted, np.float32).tobytes()


def test_without_the_compiled_kernel_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    query, stored, scales = drawn(9, 16, 50, 12, 128)
    query_scales = np.random.default_rng(3).random(16).astype(np.float32)

    def scores() -> np.ndarray:
        best = new_maxima(50, 16)
        carry_maxima(best, query, stored, scales)
        return mean_of_maxima(best, query_scales, 11)

    with_kernel = scores()
    monkeypatch.setattr(maxsim_library, "functions", lambda: None)
    monkeypatch.setattr(maxsim_library, "compiled_paths", lambda: ())
    assert path_in_use() in ("torch", "numpy")
    assert np.array_equal(scores(), with_kernel)


def test_rows_outside_the_plane_are_refused() -> None:
    query, stored, scales = drawn(1, 2, 3, 4, 8)
    for row in (-1, 3):
        with pytest.raises(AssertionError):
            carry_maxima(new_maxima(1, 2), query, stored, scales, np.array([row]))


def test_arrays_that_do_not_fit_are_refused() -> None:
    query, stored, scales = drawn(1, 2, 3, 4, 8)
    best = new_maxima(3, 2)
    for arguments in [
        (best[:2], query, stored, scales),
        (best, query[:, :4].copy(), stored, scales),
        (best, query, stored[:, ::2], scales[:, ::2].copy()),
        (best, query, stored, scales.astype(np.float64)),
        (best, query, from_offset(stored), scales),
        (best.T.copy().T, query, stored, scales),
    ]:
        with pytest.raises(AssertionError):
            carry_maxima(*arguments)


def test_scores_are_those_of_the_vectors_that_are_read_back() -> None:
    documents, queries = unit((30, 8, 128), 1), unit((4, 128), 2)
    codes, scales = quantise(documents)
    query_codes, query_scales = quantise(queries[None])
    best = new_maxima(30, 4)
    carry_maxima(best, query_codes[0], to_offset(codes), scales)
    found = mean_of_maxima(best, query_scales[0], 4)
    wanted = (queries @ documents.transpose(0, 2, 1)).max(axis=2).mean(axis=1)
    assert np.abs(found - wanted).max() < 0.01
