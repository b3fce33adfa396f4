"""The weighted sum: its terms against a computation by hand, its means, and terms left out."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from rematch_ray.losses.contrastive import info_nce
from rematch_ray.losses.joint import Answers, Contrast, Counts, JointLoss, joint_loss
from rematch_ray.losses.matching import VIEW_NAMES, matching_loss, view_labels
from rematch_ray.losses.orthogonality import orthogonality
from rematch_ray.scoring.budget import Ladder
from rematch_ray.scoring.maxsim import fused_scores, maxsim
from tests.tiny import unit

GROUPS = Ladder.parse(["1x1", "2x4"]).rungs
TARGET = torch.tensor([0, 1, 2])
STATES = [(unit((3, 4, 9), 7), torch.ones(3)), (unit((4, 4, 9), 8), torch.tensor([1.0, 2, 1, 0]))]
ANSWERS = Answers(
    torch.randn(2, 8, 11, generator=torch.Generator().manual_seed(0)),
    view_labels(torch.tensor([0, 1])),
    3,
    7,
)
OFF = {"fused": 0.0, "groups": 0.0, "orthogonality": 0.0, "matching": 0.0}


def contrast() -> Contrast:
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 4] = False
    return Contrast(
        query_vectors=unit((3, 2, 6), 1),
        shared_vectors=unit((4, 4, 6), 2),
        private_vectors=unit((3, 1, 4, 6), 3),
        query_fused=unit((3, 5), 4),
        shared_fused=unit((4, 5), 5),
        private_fused=unit((3, 1, 5), 6),
        target=TARGET,
        mask=mask,
        valid=torch.tensor([True, True, False]),
    )


def run(given: Contrast, answers: Answers | None = ANSWERS, **weights: float) -> JointLoss:
    options: dict[str, Any] = {"temperature_fused": 0.1, "temperature_maxsim": 0.2}
    return joint_loss(
        given,
        STATES,
        answers,
        Counts(queries=2, items=7, matched=2),
        weights=OFF | weights,
        groups=GROUPS,
        reduce="mean",
        **options,
    )


def test_the_fused_term_alone_is_info_nce_over_fused_cosines() -> None:
    given = contrast()
    assert given.query_fused is not None and given.shared_fused is not None
    assert given.private_fused is not None
    own = torch.stack([q @ d[0] for q, d in zip(given.query_fused, given.private_fused)])
    score = torch.cat([fused_scores(given.query_fused, given.shared_fused), own[:, None]], dim=1)
    want = info_nce(score, TARGET, given.mask, 0.1)[:2].mean()
    torch.testing.assert_close(run(given, fused=1.0).total, want)


def test_the_group_term_is_the_mean_over_groups() -> None:
    given, losses = contrast(), []
    assert given.private_vectors is not None
    for group in GROUPS:
        own = [
            maxsim(given.query_vectors[i : i + 1], given.private_vectors[i], group)
            for i in range(3)
        ]
        shared = maxsim(given.query_vectors, given.shared_vectors, group)
        score = torch.cat([shared, torch.cat(own)], dim=1)
        losses.append(info_nce(score, TARGET, given.mask, 0.2)[:2].mean())
    got = run(given, groups=1.0)
    torch.testing.assert_close(got.groups, torch.stack(losses))
    torch.testing.assert_close(got.total, torch.stack(losses).mean())


def test_orthogonality_is_the_mean_over_items_as_often_as_they_are_used() -> None:
    items = [*orthogonality(STATES[0][0]), *orthogonality(STATES[1][0])]
    want = (sum(items[:3]) + items[3] + 2 * items[4] + items[5]) / 7
    torch.testing.assert_close(run(contrast(), orthogonality=1.0).total, torch.as_tensor(want))


def test_matching_is_the_mean_over_views_and_rows() -> None:
    want = matching_loss(ANSWERS.logits, ANSWERS.is_yes, yes_id=3, no_id=7).mean()
    torch.testing.assert_close(run(contrast(), matching=1.0).total, want)


def test_the_total_is_the_weighted_sum_of_the_parts() -> None:
    weights = {"fused": 1.0, "groups": 0.7, "orthogonality": 0.5, "matching": 0.1}
    got = run(contrast(), **weights)
    want = sum(weight * run(contrast(), **{term: 1.0}).total for term, weight in weights.items())
    torch.testing.assert_close(got.total, torch.as_tensor(want))
    want = sum(weight * got.parts[term] for term, weight in weights.items())
    torch.testing.assert_close(got.total, torch.as_tensor(want))


def test_a_term_of_weight_zero_needs_nothing() -> None:
    bare = replace(contrast(), query_fused=None, shared_fused=None, private_fused=None)
    got = run(bare, answers=None, groups=1.0)
    assert got.parts["fused"] == got.parts["matching"] == got.parts["orthogonality"] == 0
    assert set(got.accuracy) == {"1x1", "2x4"}


def test_an_invalid_row_counts_nothing() -> None:
    given = contrast()
    other = replace(given, query_vectors=given.query_vectors.clone(), query_fused=unit((3, 5), 4))
    other.query_vectors[2] = unit((2, 6), 99)
    assert other.query_fused is not None
    other.query_fused[2] = unit((5,), 98)
    assert torch.equal(
        run(given, fused=1.0, groups=1.0).total, run(other, fused=1.0, groups=1.0).total
    )


def test_no_triplet_at_all_gives_zero_and_a_gradient_of_zeros() -> None:
    logits = ANSWERS.logits.clone().requires_grad_()
    nothing = Answers(logits[:0] + logits.sum(), ANSWERS.is_yes[:0], 3, 7)
    options: dict[str, Any] = {"temperature_fused": 0.1, "temperature_maxsim": 0.2}
    got = joint_loss(
        contrast(), STATES, nothing, Counts(2, 7, 1e-9), weights=OFF | {"matching": 1.0},
        groups=GROUPS, reduce="mean", **options,
    )  # fmt: skip
    assert got.total == 0
    got.total.backward()
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad) == 0


def test_accuracy_of_matching_is_reported_per_kind_of_view() -> None:
    logits = torch.zeros(1, 8, 11)
    labels = view_labels(torch.tensor([0]))
    for view in range(8):
        right = 3 if labels[0, view] else 7
        # only views 0 (raw/raw) and 7 (emb/emb) answer rightly
        logits[0, view, right if view in (0, 7) else 10 - right] = 1
    answers = Answers(logits, labels, 3, 7)
    got = joint_loss(
        contrast(), STATES, answers, Counts(2, 7, 1), weights=OFF | {"matching": 1.0},
        groups=GROUPS, reduce="mean", temperature_fused=0.1, temperature_maxsim=0.2,
    )  # fmt: skip
    shares = [float(got.accuracy[f"match/{name}"]) for name in VIEW_NAMES]
    assert shares == [0.5, 0, 0, 0.5]


def test_an_unknown_term_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="orthagonality"):
        run(contrast(), orthagonality=1.0)


def test_the_fused_term_without_fused_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match="without"):
        run(replace(contrast(), query_fused=None, shared_fused=None), fused=1.0)
