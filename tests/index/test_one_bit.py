"""One-bit codes: what they keep of a vector, how well they rank, the same on every path."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rematch_ray.index import maxsim_library
from rematch_ray.index.one_bit import (
    GROUP,
    QUERY_LEVELS,
    REACH_STEP,
    RoughQuery,
    centre_step,
    code_dim,
    code_groups,
    group_bytes,
    rotate,
    rough_scores,
    roughly_best,
)
from rematch_ray.index.quantisation import LEVELS
from tests.index.made import unit

COMPILED = [pytest.param(path) for path in maxsim_library.compiled_paths()]


def made(count: int, dim: int, seed: int = 1) -> tuple[NDArray[np.float32], float]:
    """Vectors of groups that are like each other, and their step."""
    groups = -(-count // GROUP)
    near = np.repeat(unit((groups, dim), seed), GROUP, axis=0)[:count]
    vectors = near + 0.8 * unit((count, dim), seed + 1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    whole = vectors[: count // GROUP * GROUP] if count >= GROUP else vectors
    step = centre_step(whole.reshape(-1, min(GROUP, count), dim))
    return vectors.astype(np.float32), step


@given(dim=st.integers(1, 70), seed=st.integers(0, 1000))
def test_a_rotation_keeps_lengths_and_products(dim: int, seed: int) -> None:
    one, other = unit((5, dim), seed), unit((3, dim), seed + 1)
    turned, against = rotate(one), rotate(other)
    assert turned.shape == (5, code_dim(dim))
    np.testing.assert_allclose(turned @ against.T, one @ other.T, atol=1e-6)


def test_a_rotation_spreads_what_stands_out() -> None:
    [turned] = rotate(np.eye(1, 128))
    np.testing.assert_allclose(np.abs(turned), 128**-0.5)


@settings(deadline=None)
@given(dim=st.integers(1, 70), count=st.integers(1, 200), seed=st.integers(0, 1000))
def test_scores_are_what_the_codes_say(dim: int, count: int, seed: int) -> None:
    vectors, step = made(count, dim, seed)
    groups = code_groups(vectors, step)
    assert groups.shape == (-(-count // GROUP), group_bytes(dim))
    query = RoughQuery.of(unit((dim,), seed + 9), step)
    scores = rough_scores(query, groups, count)
    # the definition, vector by vector
    turned = rotate(vectors)
    for row in range(count):
        members = turned[row // GROUP * GROUP :][:GROUP]
        centre = np.clip(np.rint(members.mean(axis=0) / step), -LEVELS, LEVELS)
        apart = turned[row] - centre * step
        total = np.abs(apart).sum()
        reach = np.square(apart).sum() / total if total else 0.0
        expected = query.centre @ centre * np.float64(query.centre_scale)
        signs = np.where(apart > 0, 1, -1) @ query.signs.astype(int)
        expected += signs * np.rint(reach / REACH_STEP) * np.float64(query.reach_scale)
        assert scores[row] == pytest.approx(expected, abs=1e-5)


def test_the_best_are_among_the_best_rough_ones() -> None:
    vectors, step = made(6400, 128)
    groups = code_groups(vectors, step)
    found = []
    for number in range(20):
        query = vectors[number * 300] + 0.7 * unit((128,), 50 + number)
        query /= np.linalg.norm(query)
        best = set(np.argsort(-(vectors @ query))[:10].tolist())
        rows, _ = roughly_best(RoughQuery.of(query, step), groups, 6400, 80)
        found.append(len(best & set(rows.tolist())) / 10)
        errors = rough_scores(RoughQuery.of(query, step), groups, 6400) - vectors @ query
        # a difference of length 0.6 leaves three quarters of it over the root of 128
        assert np.abs(errors).std() < 0.05
        assert abs(errors.mean()) < 0.01
    assert np.mean(found) > 0.95


@pytest.mark.parametrize("path", COMPILED)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_path_finds_the_same(path: str, data: st.DataObject) -> None:
    draw = data.draw
    dim = draw(st.sampled_from([1, 8, 20, 64, 128, 200, 600, 2100]))
    count = draw(st.integers(1, 400 if dim < 500 else 150))
    limit, seed = draw(st.integers(1, 60)), draw(st.integers(0, 1000))
    vectors, step = made(count, dim, seed)
    if draw(st.booleans()):  # many that are equal
        vectors = vectors[np.random.default_rng(seed).integers(0, min(count, 5), count)]
    groups = code_groups(vectors, step)
    query = RoughQuery.of(unit((dim,), seed + 3), step)
    allowed = None
    if draw(st.booleans()):
        allowed = np.random.default_rng(seed).random(count) < draw(st.sampled_from([0.0, 0.1, 0.9]))
    expected = roughly_best(query, groups, count, limit, allowed=allowed, path="numpy")
    found = roughly_best(query, groups, count, limit, allowed=allowed, path=path)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("path", COMPILED)
@pytest.mark.parametrize("order", ["mixed", "best where the sample is", "best where it is not"])
def test_a_guess_from_a_sample_changes_nothing(path: str, order: str) -> None:
    count, limit = 64 * 640, 1000
    vectors, query = unit((count, 32), 1), unit((32,), 2)
    if order != "mixed":
        # whole groups of like scores, those that are sampled or all others first
        best_first = np.argsort(-(vectors @ query), kind="stable").reshape(-1, GROUP)
        sampled = np.arange(640) % 64 == 0
        places = np.argsort(sampled if order.endswith("not") else ~sampled, kind="stable")
        laid_out = np.empty_like(best_first)
        laid_out[places] = best_first
        vectors = vectors[laid_out.reshape(-1)]
    step = centre_step(vectors.reshape(-1, GROUP, 32))
    groups, asked = code_groups(vectors, step), RoughQuery.of(query, step)
    for allowed in (None, np.arange(count) % 3 == 0):
        expected = roughly_best(asked, groups, count, limit, allowed=allowed, path="numpy")
        found = roughly_best(asked, groups, count, limit, allowed=allowed, path=path)
        assert len(found[0]) >= limit
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("path", COMPILED)
def test_the_largest_products_do_not_overflow(path: str) -> None:
    for dim in (128, 2048, 4096):
        ones = np.full((GROUP, dim), dim**-0.5, np.float32)
        ones[::2] *= -1
        turned = rotate(ones)
        # a query whose every rotated number is as large as they get, with the signs of a document
        back = np.where(turned[1] >= 0, 1.0, -1.0)
        query = RoughQuery(
            (QUERY_LEVELS * back).astype(np.int8),
            (LEVELS * back).astype(np.int8),
            np.float32(1e-3),
            np.float32(1e-3),
        )
        groups = code_groups(ones, centre_step(ones[None]))
        groups[:, : GROUP * dim // 8] = 255  # all signs are the same
        groups[:, -dim:] = 255
        expected = roughly_best(query, groups, GROUP, GROUP, path="numpy")
        found = roughly_best(query, groups, GROUP, GROUP, path=path)
        np.testing.assert_array_equal(found[1], expected[1])


def test_documents_that_are_all_the_same_and_a_query_of_zeros() -> None:
    same = np.repeat(unit((1, 16), 1), 70, axis=0)
    groups = code_groups(same, centre_step(same[:64][None]))
    scores = rough_scores(RoughQuery.of(same[0], centre_step(same[:64][None])), groups, 70)
    np.testing.assert_allclose(scores, 1.0, atol=0.05)
    nothing = RoughQuery.of(np.zeros(16), 1.0)
    assert (rough_scores(nothing, groups, 70) == 0).all()
