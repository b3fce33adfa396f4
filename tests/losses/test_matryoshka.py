"""InfoNCE per group: the same candidates at every budget, scores as MaxSim gives them."""

import torch

from rematch_ray.losses.contrastive import info_nce
from rematch_ray.losses.matryoshka import group_scores, matryoshka_info_nce
from rematch_ray.scoring.budget import Ladder
from rematch_ray.scoring.maxsim import maxsim
from tests.tiny import unit

GROUPS = Ladder.parse(["1x1", "2x4", "4x8"]).rungs


def test_every_group_is_info_nce_over_its_own_maxsim() -> None:
    query, shared, private = unit((3, 4, 6), 1), unit((5, 8, 6), 2), unit((3, 2, 8, 6), 3)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, 3] = mask[1, 6] = False
    target = torch.tensor([0, 1, 2])
    scores = group_scores(query, shared, private, GROUPS, reduce="sum")
    losses = matryoshka_info_nce(scores, target, mask, 0.3)
    for group, score, loss in zip(GROUPS, scores, losses, strict=True):
        own = torch.stack(
            [maxsim(query[i : i + 1], private[i], group, reduce="sum")[0] for i in range(3)]
        )
        want = torch.cat([maxsim(query, shared, group, reduce="sum"), own], dim=1)
        torch.testing.assert_close(score, want)
        torch.testing.assert_close(loss, info_nce(want, target, mask, 0.3))


def test_without_private_candidates_only_the_shared_are_scored() -> None:
    query, shared = unit((3, 4, 6), 1), unit((5, 8, 6), 2)
    none = group_scores(query, shared, None, GROUPS, reduce="mean")
    empty = group_scores(query, shared, unit((3, 0, 8, 6), 3), GROUPS, reduce="mean")
    assert none.shape == (3, 3, 5)
    assert torch.equal(none, empty)
