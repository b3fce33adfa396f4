"""MaxSim against a triple loop, its groups, its blocks, its gradient and its bounds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rematch_ray.scoring import maxsim as module
from rematch_ray.scoring.budget import Budget, Ladder
from rematch_ray.scoring.maxsim import fused_scores, maxsim, maxsim_candidates, maxsim_groups
from tests.tiny import unit

GROUPS = list(Ladder.parse(["1x1", "2x4", "4x8"]).rungs)
sizes = st.integers(1, 5)


def looped(query: Tensor, document: Tensor, budget: Budget, reduce: str = "mean") -> Tensor:
    """The definition: for every query vector the best document vector, then the mean or sum."""
    scores = torch.zeros(len(query), len(document))
    for b in range(len(query)):
        for c in range(len(document)):
            best = [
                max(float(query[b, i] @ document[c, j]) for j in range(budget.r_d))
                for i in range(budget.r_q)
            ]
            scores[b, c] = sum(best) / (budget.r_q if reduce == "mean" else 1)
    return scores


@settings(max_examples=20, deadline=None)
@given(sizes, sizes, st.integers(1, 4), st.integers(1, 8), st.sampled_from(["mean", "sum"]))
def test_maxsim_equals_a_triple_loop(b: int, c: int, r_q: int, r_d: int, reduce: str) -> None:
    query, document = unit((b, 4, 6), b), unit((c, 8, 6), c + 10)
    budget = Budget(r_q, r_d)
    got = maxsim(query, document, budget, reduce=reduce)
    torch.testing.assert_close(got, looped(query, document, budget, reduce))


def test_each_group_equals_a_computation_of_its_own() -> None:
    query, document = unit((5, 4, 6), 1), unit((7, 8, 6), 2)
    together = maxsim_groups(query, document, GROUPS)
    for group, scores in zip(GROUPS, together, strict=True):
        torch.testing.assert_close(scores, maxsim(query, document, group))


def test_groups_come_in_the_order_given() -> None:
    query, document = unit((2, 4, 6), 1), unit((3, 8, 6), 2)
    forward = maxsim_groups(query, document, GROUPS)
    backward = maxsim_groups(query, document, GROUPS[::-1])
    assert torch.equal(forward, backward.flip(0))


@pytest.mark.parametrize("block_rows", [1, 2, 3, 100])
def test_block_size_changes_neither_values_nor_gradients(block_rows: int) -> None:
    weights = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))

    def run(rows: int | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        query = unit((5, 4, 6), 1).requires_grad_()
        document = unit((7, 8, 6), 2).requires_grad_()
        scores = maxsim_groups(query, document, GROUPS, block_rows=rows)
        (scores * weights).sum().backward()
        return scores.detach(), query.grad, document.grad

    for whole, blocked in zip(run(None), run(block_rows), strict=True):
        torch.testing.assert_close(whole, blocked)


def test_the_gradient_goes_to_the_best_document_vector_alone() -> None:
    query = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    document = torch.tensor([[[0.6, 0.8], [1.0, 0.0]]], requires_grad=True)
    maxsim(query, document, Budget(1, 2)).sum().backward()
    assert document.grad is not None
    assert document.grad.tolist() == [[[0.0, 0.0], [1.0, 0.0]]]


def test_gradients_agree_with_finite_differences() -> None:
    query = unit((2, 2, 3), 1).double().requires_grad_()
    document = unit((2, 3, 3), 2).double().requires_grad_()

    def scores(q: Tensor, d: Tensor) -> Tensor:
        return maxsim_candidates(q, d[None].expand(2, -1, -1, -1), Budget(2, 3))

    # scores are float32 whatever comes in, hence the wide step and tolerance
    torch.autograd.gradcheck(scores, (query, document), eps=1e-3, atol=1e-3, rtol=1e-2)


def test_every_block_stays_below_the_cell_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_CELLS", 2 * 7 * 4 * 8)
    seen = []
    score_block = module.nested_maxima

    def recorded(block: Tensor, *rest: object) -> Tensor:
        seen.append(len(block))
        return score_block(block, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "nested_maxima", recorded)
    maxsim_groups(unit((5, 4, 6), 1), unit((7, 8, 6), 2), GROUPS)
    assert seen == [2, 2, 1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_the_mean_of_unit_vectors_lies_between_minus_one_and_one(seed: int) -> None:
    scores = maxsim_groups(unit((4, 4, 3), seed), unit((4, 8, 3), seed + 1), GROUPS)
    assert scores.abs().max() <= 1 + 1e-6


def test_negative_similarities_survive() -> None:
    query = unit((1, 2, 4), 3).abs()
    assert maxsim(query, -query[:, :1], Budget(1, 1)).item() == pytest.approx(-1)
    assert maxsim(query, -query, Budget(2, 2)).item() < -0.1


def test_half_precision_vectors_are_scored_in_float32() -> None:
    query, document = unit((3, 4, 64), 1), unit((3, 8, 64), 2)
    got = maxsim(query.bfloat16(), document.bfloat16(), Budget(4, 8))
    assert got.dtype == torch.float32
    want = maxsim(query.bfloat16().float(), document.bfloat16().float(), Budget(4, 8))
    assert torch.equal(got, want)


def test_own_candidates_score_as_among_all_documents() -> None:
    query, document = unit((3, 4, 6), 1), unit((3, 5, 8, 6), 2)
    got = maxsim_candidates(query, document, GROUPS)
    for row in range(3):
        want = maxsim_groups(query[row : row + 1], document[row], GROUPS)
        torch.testing.assert_close(got[:, row], want[:, 0])
    torch.testing.assert_close(got[1], maxsim_candidates(query, document, GROUPS[1]))


def test_the_fused_score_is_the_cosine() -> None:
    query, document = unit((3, 6), 1), unit((4, 6), 2)
    want = torch.nn.functional.cosine_similarity(query[:, None], document[None], dim=-1)
    torch.testing.assert_close(fused_scores(query, document), want)


def test_no_queries_give_an_empty_score() -> None:
    assert maxsim(unit((0, 4, 6), 1), unit((3, 8, 6), 2), Budget(1, 1)).shape == (0, 3)


@pytest.mark.parametrize("groups", [[Budget(5, 8)], [Budget(4, 9)], [Budget.FUSED], []])
def test_what_the_vectors_cannot_give_is_refused(groups: list[Budget]) -> None:
    with pytest.raises(ValueError, match=r"more vectors|fused rung|no budgets"):
        maxsim_groups(unit((1, 4, 6), 1), unit((1, 8, 6), 2), groups)


def test_documents_are_cut_where_those_of_one_query_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    query, document = unit((3, 4, 8), 0), unit((50, 8, 8), 1)
    own = unit((3, 5, 8, 8), 2)

    def run() -> list[Tensor]:
        leaves = [part.clone().requires_grad_() for part in (query, document, own)]
        shared = maxsim_groups(leaves[0], leaves[1], GROUPS)
        private = maxsim_candidates(leaves[0], leaves[2], GROUPS)
        (shared.square().sum() + private.square().sum()).backward()
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        return [shared.detach(), private.detach(), *gradients]

    whole = run()
    largest = max(group.r_q for group in GROUPS) * max(group.r_d for group in GROUPS)
    monkeypatch.setattr(module, "BLOCK_CELLS", 7 * largest)
    seen: list[int] = []
    score_block = module.nested_maxima

    def recorded(block: Tensor, some: Tensor, *rest: object) -> Tensor:
        seen.append(len(block) * len(some))
        return score_block(block, some, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "nested_maxima", recorded)
    for ours, theirs in zip(run(), whole, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert max(seen) <= 7
