"""8-bit vectors: how far they and the scores made with them can be off."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rematch_ray.index.maxsim_int8 import carry_maxima, mean_of_maxima, new_maxima
from rematch_ray.index.quantisation import (
    dequantise,
    error_bound,
    from_offset,
    norms,
    quantise,
    residual_norms,
    score_bound,
    to_offset,
)
from rematch_ray.scoring.budget import Budget
from rematch_ray.scoring.maxsim import maxsim
from tests.index.made import unit

# half a unit in the last place of float16, at entries of at most 1
FLOAT16_ERROR = 2.0**-11


def spiky(shape: tuple[int, ...], seed: int, power: float) -> np.ndarray:
    """Unit vectors of which few entries are large when the power is high."""
    drawn = unit(shape, seed)
    wide = np.sign(drawn) * np.abs(drawn) ** power
    return wide / np.linalg.norm(wide, axis=-1, keepdims=True)


@given(st.integers(0, 2**31), st.sampled_from([1, 2, 16, 128, 513]), st.floats(1, 8))
@settings(max_examples=60, deadline=None)
def test_no_vector_is_further_off_than_the_bound(seed: int, dim: int, power: float) -> None:
    vectors = spiky((5, 3, dim), seed, power)
    codes, scales = quantise(vectors)
    assert (codes.dtype, scales.dtype) == (np.int8, np.float32)
    assert (np.abs(codes).max(axis=-1) == 127).all()
    exact = codes * scales[..., None]
    error = np.linalg.norm(exact - vectors, axis=-1)
    assert (error <= error_bound(vectors) + 1e-6).all()
    assert np.allclose(np.linalg.norm(exact, axis=-1), 1, atol=1e-5)
    rounding = FLOAT16_ERROR * np.sqrt(dim)
    assert np.abs(dequantise(codes, scales) - exact).max() <= FLOAT16_ERROR
    assert np.abs(np.linalg.norm(dequantise(codes, scales), axis=-1) - 1).max() <= rounding + 1e-3


@pytest.mark.parametrize("power", [1, 4])
def test_maxsim_moves_by_no_more_than_the_largest_vector_does(power: float) -> None:
    queries, documents = unit((20, 4, 64), 1), spiky((200, 8, 64), 2, power)
    stored = dequantise(*quantise(documents)).astype(np.float32)
    scores = [
        maxsim(torch.from_numpy(queries), torch.from_numpy(each.astype(np.float32)), Budget(4, 8))
        for each in (documents, stored)
    ]
    off = (scores[0] - scores[1]).abs().max().item()
    assert 0 < off <= error_bound(documents).max() + 8 * FLOAT16_ERROR
    # what it comes to in practice, on vectors like a model's
    if power == 1:
        assert off < 0.003


def test_a_vector_of_zeros_stays_one() -> None:
    codes, scales = quantise(np.zeros((1, 2, 4)))
    assert not codes.any()
    assert not scales.any()
    assert not dequantise(codes, scales).any()


def test_the_stored_form_is_the_code_plus_128_and_reads_back() -> None:
    codes = np.arange(-128, 128).astype(np.int8).reshape(2, 8, 16)
    stored = to_offset(codes)
    assert stored.dtype == np.uint8
    assert np.array_equal(stored.astype(int), codes.astype(int) + 128)
    assert np.array_equal(from_offset(stored), codes)


@given(st.integers(0, 2**31), st.sampled_from([1, 16, 128, 513]), st.floats(1, 8))
@settings(max_examples=40, deadline=None)
def test_residual_norms_are_never_below_the_distance(seed: int, dim: int, power: float) -> None:
    vectors = spiky((5, 3, dim), seed, power).astype(np.float16)
    codes, scales = quantise(vectors)
    off = vectors.astype(np.longdouble) - codes * scales[..., None].astype(np.longdouble)
    distance = np.sqrt(np.square(off).sum(axis=-1))
    found = residual_norms(vectors, codes, scales)
    assert found.dtype == np.float32
    assert (found >= distance).all()
    assert (found <= distance * (1 + 1e-6) + 1e-40).all()
    length = np.sqrt(np.square(vectors.astype(np.longdouble)).sum(axis=-1))
    assert (norms(vectors) >= length).all()


@given(
    st.integers(0, 2**31),
    st.integers(1, 16),
    st.integers(1, 24),
    st.sampled_from([4, 64, 128]),
    st.floats(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_scores_move_by_no_more_than_their_bound(
    seed: int, r_q: int, r_d: int, dim: int, power: float
) -> None:
    documents = spiky((40, r_d, dim), seed, power).astype(np.float16)
    query = spiky((1, r_q, dim), seed + 1, power)[0]
    codes, scales = quantise(documents)
    query_codes, query_scales = (part[0] for part in quantise(query[None]))
    best = new_maxima(40, r_q)
    carry_maxima(best, query_codes, to_offset(codes), scales)
    scores = mean_of_maxima(best, query_scales, r_q).astype(np.float64)
    cells = query.astype(np.float64) @ documents.astype(np.float64).transpose(0, 2, 1)
    truth = cells.max(axis=2).mean(axis=1)
    bound = score_bound(
        norms(query),
        residual_norms(query, query_codes, query_scales),
        residual_norms(documents, codes, scales).max(axis=1),
    )
    assert (np.abs(scores - truth) <= bound).all()


def test_the_bound_is_reached_by_vectors_off_in_the_direction_of_the_query() -> None:
    # codes of the original 0.6 / 0.8 pair moved by hand: the residual lies along the query
    document = np.float64([[[0.6, 0.8]]])
    codes, scales = quantise(document)
    residual = document[0, 0] - codes[0, 0] * np.float64(scales[0, 0])
    query = residual / np.linalg.norm(residual)
    moved = query @ residual
    bound = score_bound(
        norms(query[None]), np.zeros(1, np.float32), residual_norms(document, codes, scales)[:, 0]
    )
    assert moved <= bound[0] <= moved + 1e-6
