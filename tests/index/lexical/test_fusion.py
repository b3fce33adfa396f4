"""Two rankings become one by stated rules."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rematch_ray.index.lexical.fusion import (
    FUSIONS,
    Fusion,
    fuse_candidates,
    reciprocal_rank_fusion,
    weighted_fusion,
)

fusions = pytest.mark.parametrize("fusion", FUSIONS)
SCORES = st.integers(0, 6).map(lambda step: np.float32(step / 8))


@st.composite
def candidates(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vector scores, lexical scores and keys of up to 30 documents, with many ties."""
    count = draw(st.integers(1, 30))
    vector = np.array(draw(st.lists(SCORES, min_size=count, max_size=count)), np.float32)
    lexical = np.array(draw(st.lists(SCORES, min_size=count, max_size=count)), np.float32)
    keys = np.array(draw(st.permutations(range(count))), np.uint64)
    return vector, lexical, keys


def fuse(found: Any, fusion: Fusion, *, depth: int = 100, weight: float = 0.5) -> dict[int, float]:
    """Fused score of every document that stands in a list."""
    positions, scores = fuse_candidates(*found, depth=depth, fusion=fusion, lexical_weight=weight)
    return dict(zip(positions.tolist(), scores.tolist(), strict=True))


@fusions
@given(found=candidates(), weight=st.floats(0, 1))
def test_a_document_that_leads_both_lists_leads(fusion: Fusion, found: Any, weight: float) -> None:
    vector, lexical, keys = found
    vector, lexical = np.append(vector, 2.0), np.append(lexical, 2.0)
    keys = np.append(keys, np.uint64(99))
    scores = fuse((vector.astype("f4"), lexical.astype("f4"), keys), fusion, weight=weight)
    assert scores[len(vector) - 1] == max(scores.values())


@fusions
@given(found=candidates(), weight=st.floats(0, 1))
def test_a_document_better_in_one_list_and_no_worse_in_the_other_is_no_worse(
    fusion: Fusion, found: Any, weight: float
) -> None:
    vector, lexical, _ = found
    scores = fuse(found, fusion, weight=weight)
    for one in scores:
        for other in scores:
            if vector[one] >= vector[other] and lexical[one] >= lexical[other]:
                assert scores[one] >= scores[other]


@fusions
@given(found=candidates(), data=st.data())
def test_a_document_that_gains_in_one_list_does_not_lose(
    fusion: Fusion, found: Any, data: st.DataObject
) -> None:
    vector, lexical, keys = found
    one = data.draw(st.integers(0, len(vector) - 1))
    better = lexical.copy()
    # within the range of the scores: a new best stretches all others
    better[one] = max(lexical.max(), better[one])
    before, after = fuse(found, fusion), fuse((vector, better, keys), fusion)
    assert after[one] >= before[one]


@fusions
@given(found=candidates(), depth=st.integers(1, 12), data=st.data())
def test_what_stands_in_neither_list_changes_nothing(
    fusion: Fusion, found: Any, depth: int, data: st.DataObject
) -> None:
    kept = fuse(found, fusion, depth=depth)
    extra = [p for p in range(len(found[0])) if p not in kept and data.draw(st.booleans())]
    some = np.array([*kept, *extra])
    order = np.array(data.draw(st.permutations(range(len(some)))))
    fewer = fuse(tuple(part[some][order] for part in found), fusion, depth=depth)
    assert {int(some[order][p]): score for p, score in fewer.items()} == kept


@fusions
@given(found=candidates())
def test_without_any_weight_the_words_leave_the_order_of_the_vectors(
    fusion: Fusion, found: Any
) -> None:
    vector = found[0]
    scores = fuse(found, fusion, weight=0.0)
    ranked = sorted(scores, key=lambda one: (-scores[one], -vector[one]))
    assert [vector[one] for one in ranked] == sorted(vector, reverse=True)


@fusions
def test_where_no_document_matches_the_words_the_vectors_decide(fusion: Fusion) -> None:
    vector = np.float32([0.2, 0.9, 0.5])
    scores = fuse((vector, np.zeros(3, np.float32), np.uint64([1, 2, 3])), fusion)
    assert sorted(scores, key=scores.__getitem__) == [0, 2, 1]


@fusions
def test_nothing_fuses_to_nothing(fusion: Fusion) -> None:
    nothing = np.zeros(0, np.float32)
    assert fuse((nothing, nothing, np.zeros(0, np.uint64)), fusion) == {}


def test_by_rank_a_document_in_one_list_has_no_share_of_the_other() -> None:
    lists = [(np.array([4, 2]), np.array([0.9, 0.8])), (np.array([9]), np.array([3.0]))]
    documents, scores = reciprocal_rank_fusion(lists, [0.25, 0.75])
    assert documents.tolist() == [2, 4, 9]
    assert scores.tolist() == [0.25 / 62, 0.25 / 61, 0.75 / 61]


def test_by_rank_equal_scores_share_a_rank_whatever_their_order() -> None:
    one = reciprocal_rank_fusion([(np.array([1, 2, 3]), np.array([5.0, 5.0, 4.0]))], [1.0])
    two = reciprocal_rank_fusion([(np.array([3, 2, 1]), np.array([4.0, 5.0, 5.0]))], [1.0])
    assert one[1].tolist() == two[1].tolist() == [1 / 61, 1 / 61, 1 / 63]


def test_weighted_scores_are_stretched_within_their_list() -> None:
    lists = [
        (np.array([1, 2, 3]), np.array([-0.5, 0.0, 0.5])),
        (np.array([3, 7]), np.array([2.0, 2.0])),
    ]
    documents, scores = weighted_fusion(lists, [0.5, 0.5])
    assert documents.tolist() == [1, 2, 3, 7]
    assert scores.tolist() == [0.0, 0.25, 1.0, 0.5]
