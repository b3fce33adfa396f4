"""8-bit vectors: how far they and the scores made with them can be off."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rematch_ray.index.quantisation import dequantise, error_bound, quantise
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
