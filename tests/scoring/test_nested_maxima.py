"""The hand-written gradient of MaxSim against autograd's own, and what it keeps."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rematch_ray.scoring.budget import Budget
from rematch_ray.scoring.nested_maxima import Reduce, nested_maxima, similarities
from tests.tiny import unit

budgets = st.lists(st.builds(Budget, st.integers(1, 4), st.integers(1, 8)), min_size=1, max_size=4)


def dense(query: Tensor, document: Tensor, groups: Sequence[Budget], reduce: Reduce) -> Tensor:
    """The same scores through autograd, maxima by `amax`."""
    similarity = similarities(query, document)
    best = [similarity[:, : group.r_q, :, : group.r_d].amax(dim=-1) for group in groups]
    return torch.stack([b.mean(dim=1) if reduce == "mean" else b.sum(dim=1) for b in best])


def gradients(scores: Tensor, leaves: Sequence[Tensor], weights: Tensor) -> Sequence[Tensor | None]:
    return torch.autograd.grad((scores * weights).sum(), leaves)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 6), budgets, st.sampled_from(["mean", "sum"]), st.integers(0)
)
def test_values_and_gradients_equal_autograds(
    b: int, c: int, groups: list[Budget], reduce: Reduce, seed: int
) -> None:
    leaves = [unit((b, 4, 6), seed % 997), unit((c, 8, 6), seed % 991 + 1)]
    for leaf in leaves:
        leaf.requires_grad_()
    ours, theirs = nested_maxima(*leaves, groups, reduce), dense(*leaves, groups, reduce)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed % 1000))
    got, want = (gradients(scores, leaves, weights) for scores in (ours, theirs))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("wants", [0, 1])
def test_one_side_alone_may_want_a_gradient(wants: int) -> None:
    sides = [unit((3, 4, 6), 1), unit((5, 8, 6), 2)]
    sides[wants].requires_grad_()
    groups = [Budget(1, 1), Budget(4, 8)]
    nested_maxima(*sides, groups, "mean").square().sum().backward()
    leaf = sides[wants].detach().clone().requires_grad_()
    others = [leaf if number == wants else side for number, side in enumerate(sides)]
    dense(*others, groups, "mean").square().sum().backward()
    torch.testing.assert_close(sides[wants].grad, leaf.grad)
    assert sides[1 - wants].grad is None


def test_places_past_a_byte_are_kept_whole() -> None:
    query, document = unit((2, 2, 6), 1).requires_grad_(), unit((3, 600, 6), 2).requires_grad_()
    document.data[:, 555] = query.data[0, 0]  # the best of all, at a place that no byte holds
    groups = [Budget(2, 600)]
    nested_maxima(query, document, groups, "sum")[0, 0].sum().backward()
    assert document.grad is not None
    torch.testing.assert_close(document.grad[:, 555], query.detach()[0, 0].expand(3, -1))


def test_of_equal_maxima_one_takes_the_whole_gradient() -> None:
    query = torch.tensor([[[1.0, 0.0]]])
    document = torch.tensor([[[0.5, 0.0], [0.5, 0.0]]], requires_grad=True)
    nested_maxima(query, document, [Budget(1, 2)], "mean").sum().backward()
    assert document.grad is not None
    assert sorted(document.grad[0, :, 0].tolist()) == [0.0, 1.0]


def test_what_is_kept_is_a_byte_per_query_vector_and_document() -> None:
    kept: list[Tensor] = []
    query, document = unit((7, 4, 6), 1).requires_grad_(), unit((90, 8, 6), 2).requires_grad_()

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        nested_maxima(query, document, [Budget(1, 1), Budget(4, 8)], "mean")
    held = sum(tensor.nbytes for tensor in kept if tensor is not query and tensor is not document)
    assert held <= 7 * 90 * (1 + 4) + query.nbytes + document.nbytes
