"""Queries made ready for scoring: the same bits with and without the compiled kernel."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rematch_ray.errors import UserError
from rematch_ray.index import maxsim_library, maxsim_native
from rematch_ray.index.queries import Codes, Queries
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.stages import exact_scores, score_documents
from rematch_ray.scoring.budget import Budget
from tests.index.made import Vectors, queries, unit


def without_kernel(code: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> object:
    with monkeypatch.context() as patch:
        patch.setattr(maxsim_library, "functions", lambda: None)
        patch.setattr(maxsim_library, "compiled_paths", lambda: ())
        return code()


@given(
    seed=st.integers(0, 2**31),
    dim=st.sampled_from([1, 7, 16, 32, 128, 1040]),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
)
@settings(max_examples=60, deadline=None)
def test_grid_and_codes_are_those_of_numpy(seed: int, dim: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    vectors = (rng.standard_normal((2, 3, dim)) ** 3 * spread).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors[0, 0] = 0.0
    with pytest.MonkeyPatch.context() as patch:
        made = Codes.of(vectors)
        plain = without_kernel(lambda: Codes.of(vectors), patch)
    assert isinstance(plain, Codes)
    for name in ("vectors", "codes", "scales"):
        np.testing.assert_array_equal(getattr(made, name), getattr(plain, name))
    for name in ("errors", "norms"):
        # bounds: added up in another order
        np.testing.assert_allclose(getattr(made, name), getattr(plain, name), rtol=1e-6)
    read = made.codes * made.scales[..., None].astype(np.float64)
    # each no less than the true length
    assert (made.errors >= np.linalg.norm(made.vectors - read, axis=-1)).all()
    assert (made.norms >= np.linalg.norm(made.vectors, axis=-1)).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 3.0])
@pytest.mark.parametrize("is_compiled", [True, False])
def test_vectors_that_are_not_finite_or_not_of_unit_norm_are_named(
    wrong: float, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = unit((2, 4, 16), 1)
    vectors[1, 2, 3] = wrong

    def check() -> None:
        with pytest.raises(UserError, match="vector 2 of query 1 has norm"):
            Queries.check(Vectors(vectors, None), num_vectors=4, dim=16, fused_dim=None)

    check() if is_compiled else without_kernel(check, monkeypatch)


@pytest.mark.parametrize("rung", ["fused", "1x1", "2x4", "4x8"])
def test_exact_scores_are_those_of_the_reference(index: SearchIndex, rung: str) -> None:
    rows = np.random.default_rng(1).permutation(300)[:57]
    budget = Budget.FUSED if rung == "fused" else Budget.parse(rung)
    for row in range(5):
        query = index._check_queries(queries(5)[row : row + 1])
        found = exact_scores(index._generation, query, rows, budget)
        wanted = score_documents(index._generation, query, rows, [budget])[rung][0]
        assert found.tobytes() == wanted.tobytes()


@pytest.mark.skipif(
    maxsim_library.EXACT_PATHS[0] not in maxsim_library.compiled_paths(),
    reason="this machine has no path that reads float16",
)
@given(
    seed=st.integers(0, 2**31),
    r_q=st.sampled_from([1, 2, 8, 9, 16, 24]),
    dim=st.sampled_from([1, 24, 32, 128]),
    planes=st.sampled_from([[1], [1, 3], [9, 48]]),
)
@settings(max_examples=40, deadline=None)
def test_float16_is_read_as_it_is(seed: int, r_q: int, dim: int, planes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    originals = [
        # of every size, down to where float16 has no leading one
        (rng.standard_normal((6, n, dim)) * 2.0 ** rng.integers(-20, -4, (6, n, dim))).astype(
            np.float16
        )
        for n in planes
    ]
    query = np.rint(rng.uniform(-1, 1, (r_q, dim)) * 2**20) / 2**24
    rows = rng.integers(0, 6, 11)
    planes_of = [maxsim_library.Vectors(plane) for plane in originals]
    found = maxsim_native.exact(maxsim_library.EXACT_PATHS[0], query, planes_of, rows)
    document = np.concatenate(originals, axis=1).astype(np.float64)[rows]
    best = (document @ query.T).max(axis=1)
    total = best[:, 0].copy()
    for position in range(1, r_q):
        total += best[:, position]
    np.testing.assert_array_equal(found, (total / r_q).astype(np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {"budget": "1x1", "candidates": "all"},
        {"budget": "fused", "candidates": "all"},
        {"budget": "4x8", "candidates": "all", "filter": {"number": [1, 2, 3, 4]}},
        {"budget": "4x8", "candidates": 60},
        {"budget": "4x8", "candidates": 60, "coarse": "prefix", "group_by": "number"},
    ],
)
def test_a_search_without_the_compiled_kernel_finds_the_same(
    index: SearchIndex, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen() -> list:
        found = index.search(queries(6), top_k=5, **options)
        return [
            (result.hits, [(stage["name"], stage["in"], stage["out"]) for stage in result.stages])
            for result in found
        ]

    assert without_kernel(seen, monkeypatch) == seen()
