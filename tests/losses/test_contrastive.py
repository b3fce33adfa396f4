"""The one candidate mask, rule by rule and against a loop, and InfoNCE by hand."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rematch_ray.losses.contrastive import (
    Candidates,
    candidate_mask,
    info_nce,
    margin_mask,
    retrieval_accuracy,
    similarity_statistics,
)

T, F = True, False


def candidates(
    shared: list[int],
    *,
    queries: list[int] | None = None,
    target: list[int] | None = None,
    listed: list[list[int]] | None = None,
    private: list[list[int]] | None = None,
    num_rows: int | None = None,
) -> Candidates:
    """Rows 0.. with queries 100, 101, .. whose positives lead the shared candidates."""
    num_rows = num_rows if num_rows is not None else len(shared)
    query_ids = queries or [100 + row for row in range(len(shared))]
    return Candidates(
        query_ids=torch.tensor(query_ids[:num_rows]),
        target=torch.tensor(target or list(range(num_rows))),
        listed_ids=torch.tensor(listed or [[-1]] * num_rows),
        shared_ids=torch.tensor(shared),
        shared_query_ids=torch.tensor([*query_ids, *[-1] * len(shared)][: len(shared)]),
        private_ids=torch.tensor(private or [[]] * num_rows, dtype=torch.int64),
    )


def mask(given: Candidates) -> list[list[bool]]:
    return candidate_mask(given).tolist()


def test_every_positive_of_the_batch_is_a_candidate_of_every_query() -> None:
    assert mask(candidates([1, 2, 3])) == [[T, T, T]] * 3


def test_another_copy_of_the_positive_is_masked() -> None:
    assert mask(candidates([1, 1, 2])) == [[T, F, T], [F, T, T], [T, F, T]]


def test_the_positive_of_a_row_with_the_same_query_is_masked() -> None:
    assert mask(candidates([1, 2, 3], queries=[100, 100, 101])) == [[T, F, T], [F, T, T], [T, T, T]]


def test_every_copy_of_such_a_positive_is_masked_in_whatever_column_it_stands() -> None:
    # document 2 is right for query 100 (row 3), and stands in column 1 first
    given = candidates([1, 2, 9, 2], queries=[100, 101, 102, 100])
    assert mask(given)[0] == [T, F, T, F]


def test_a_listed_document_is_masked_among_shared_and_private() -> None:
    given = candidates(
        [1, 2, 3], listed=[[1, 3], [2, -1], [3, -1]], private=[[3, 7], [7, -1], [8, 9]]
    )
    assert mask(given) == [[T, T, F, F, T], [T, T, T, T, F], [T, T, T, T, T]]


def test_a_document_present_twice_counts_once() -> None:
    given = candidates([1, 2, 9, 9, 2], num_rows=2, queries=[100, 101, 102, 103, 104])
    assert mask(given)[0] == [T, T, T, F, F]
    # among the row's own hard negatives too
    assert mask(candidates([1], private=[[5, 5, 6]])) == [[T, T, F, T]]


def test_a_private_hard_negative_wins_over_its_shared_copy() -> None:
    assert mask(candidates([1, 2], private=[[2], [-1]])) == [[T, F, T], [T, T, F]]


def test_padding_is_masked_and_the_target_never_is() -> None:
    given = candidates([1, -1, 3], private=[[-1], [4], [-1]])
    assert mask(given) == [[T, F, T, F], [T, T, T, T], [T, F, T, F]]


def test_a_pooled_hard_negative_is_a_candidate_of_every_query() -> None:
    pooled = replace(
        candidates([1, 2, 7, 8, -1], num_rows=2),
        shared_query_ids=torch.tensor([100, 101, -1, -1, -1]),
    )
    assert mask(pooled) == [[T, T, T, T, F], [T, T, T, T, F]]


def test_a_hard_negative_that_is_right_for_the_same_query_elsewhere_is_masked() -> None:
    # row 1 asks the same query and names 2 as right, row 0 names it as wrong
    given = candidates([1, 2], queries=[100, 100], private=[[2], [-1]])
    assert mask(given)[0] == [T, F, F]


def looped(given: Candidates) -> list[list[bool]]:
    """The rules of the mask, cell by cell."""
    shared, rows = given.shared_ids.tolist(), []
    for row, target in enumerate(given.target.tolist()):
        query, private = int(given.query_ids[row]), given.private_ids[row].tolist()
        right = {shared[target], *given.listed_ids[row].tolist()}
        right |= {
            document
            for document, of_query in zip(shared, given.shared_query_ids.tolist(), strict=True)
            if of_query == query
        }
        head = [
            column == target
            or (document >= 0 and document not in [*right, *shared[:column], *private])
            for column, document in enumerate(shared)
        ]
        tail = [
            document >= 0 and document not in [*right, *private[:column]]
            for column, document in enumerate(private)
        ]
        rows.append(head + tail)
    return rows


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_mask_equals_the_rules_applied_cell_by_cell(data: st.DataObject) -> None:
    documents = st.integers(0, 6)
    num_shared, num_rows = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    num_rows = min(num_rows, num_shared)
    width = data.draw(st.integers(0, 3))
    padded = st.integers(-1, 6)

    def ids(of: st.SearchStrategy[int], rows: int, columns: int) -> list[list[int]]:
        row = st.lists(of, min_size=columns, max_size=columns)
        return data.draw(st.lists(row, min_size=rows, max_size=rows))

    given = Candidates(
        query_ids=torch.tensor(ids(st.integers(100, 102), 1, num_rows)[0]),
        target=torch.arange(num_rows),
        listed_ids=torch.tensor(ids(padded, num_rows, 2)),
        shared_ids=torch.tensor(ids(documents, 1, num_shared)[0]),
        shared_query_ids=torch.tensor(ids(st.sampled_from([-1, 100, 101, 102]), 1, num_shared)[0]),
        private_ids=torch.tensor(ids(padded, num_rows, width), dtype=torch.int64).reshape(
            num_rows, width
        ),
    )
    assert mask(given) == looped(given)


def test_info_nce_equals_a_hand_computation() -> None:
    score = torch.tensor([[0.9, 0.1, 0.5, 0.7], [0.2, 0.4, -0.3, 0.0]])
    valid = torch.tensor([[T, T, F, T], [T, T, T, F]])
    got = info_nce(score, torch.tensor([0, 1]), valid, 0.1)
    first = -math.log(math.exp(9) / (math.exp(9) + math.exp(1) + math.exp(7)))
    second = -math.log(math.exp(4) / (math.exp(2) + math.exp(4) + math.exp(-3)))
    assert got.tolist() == pytest.approx([first, second], rel=1e-5)


def test_a_masked_candidate_gets_no_gradient_whatever_its_score() -> None:
    score = torch.tensor([[0.9, 1e4, 0.5]], requires_grad=True)
    info_nce(score, torch.tensor([0]), torch.tensor([[T, F, T]]), 0.5).sum().backward()
    assert score.grad is not None
    assert score.grad[0, 1] == 0
    assert score.grad[0, 0] < 0 < score.grad[0, 2]


def test_a_positive_without_rivals_costs_nothing() -> None:
    assert (
        info_nce(torch.tensor([[0.3, 0.9]]), torch.tensor([0]), torch.tensor([[T, F]]), 0.02) == 0
    )


def test_scores_of_half_precision_are_divided_in_float32() -> None:
    score = torch.tensor([[0.9, 0.89]]).bfloat16()
    got = info_nce(score, torch.tensor([0]), torch.tensor([[T, T]]), 0.02)
    want = info_nce(score.float(), torch.tensor([0]), torch.tensor([[T, T]]), 0.02)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


def test_the_margin_drops_what_scores_too_close_to_the_positive() -> None:
    score = torch.tensor([[0.8, 0.75, 0.6, 0.9]])
    keep = margin_mask(score, torch.tensor([0]), margin=0.1)
    assert keep.tolist() == [[T, F, T, F]]
    # a negative margin tolerates candidates above the positive
    assert margin_mask(score, torch.tensor([0]), margin=-0.05).tolist() == [[T, T, T, F]]


def test_the_margin_never_drops_a_labelled_negative() -> None:
    score = torch.tensor([[0.8, 0.75, 0.9]])
    labelled = torch.tensor([[F, F, T]])
    keep = margin_mask(score, torch.tensor([0]), margin=0.1, labelled_bC=labelled)
    assert keep.tolist() == [[T, F, T]]


def test_accuracy_counts_wins_over_valid_candidates_and_no_ties() -> None:
    score = torch.tensor([[0.5, 0.9, 0.1], [0.5, 0.2, 0.5], [0.5, 0.2, 0.1]])
    valid = torch.tensor([[T, F, T], [T, T, T], [T, T, T]])
    assert retrieval_accuracy(score, torch.tensor([0, 0, 0]), valid).tolist() == [1, 0, 1]


def test_similarity_statistics_are_those_of_the_naive_loop() -> None:
    torch.manual_seed(0)
    score, mask = torch.randn(4, 6), torch.rand(4, 6) > 0.4
    target, valid = torch.tensor([0, 2, 5, 1]), torch.tensor([True, True, False, True])
    mask = mask.scatter(1, target[:, None], True)
    mask[3] = False
    mask[3, 1] = True  # a query without negatives
    expected = dict.fromkeys(("positive", "negative", "hardest_negative", "margin"), 0.0)
    count = 0
    for row in (0, 1, 3):
        right = score[row, target[row]].item()
        others = [score[row, c].item() for c in range(6) if mask[row, c] and c != target[row]]
        expected["positive"] += right
        count += len(others)
        if others:
            expected["negative"] += sum(others) / len(others)
            expected["hardest_negative"] += max(others)
            expected["margin"] += right - max(others)
    found = similarity_statistics(score, target, mask, valid)
    assert found["negatives"] == count
    for name, value in expected.items():
        assert found[f"similarity/{name}"].item() == pytest.approx(value, abs=1e-5)
