"""Views and labels, the answer's cross-entropy, and how the negative is drawn."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rematch_ray.losses.matching import (
    VIEW_NAMES,
    VIEWS,
    draw_negatives,
    matching_loss,
    view_kind,
    view_labels,
    yes_log_odds,
)


def test_the_eight_views_are_all_combinations_once() -> None:
    assert sorted(VIEWS) == sorted((q, s, d) for q in (0, 1) for s in (0, 1) for d in (0, 1))
    named = [VIEW_NAMES[view_kind(view)] for view in range(8)]
    for (query_view, _, document_view), name in zip(VIEWS, named, strict=True):
        assert name == f"{('raw', 'emb')[query_view]}/{('raw', 'emb')[document_view]}"


def test_yes_is_right_exactly_where_the_slot_of_the_positive_is_read() -> None:
    labels = view_labels(torch.tensor([0, 1]))
    for view, (_, slot, _) in enumerate(VIEWS):
        assert labels[0, view].item() == (slot == 0)
        assert labels[1, view].item() == (slot == 1)
    assert labels.sum(dim=1).tolist() == [4, 4]


def test_the_loss_is_the_cross_entropy_over_the_whole_vocabulary() -> None:
    logits = torch.randn(2, 8, 11, generator=torch.Generator().manual_seed(0))
    labels = view_labels(torch.tensor([0, 1]))
    loss = matching_loss(logits, labels, yes_id=3, no_id=7)
    for row in range(2):
        for view in range(8):
            token = 3 if labels[row, view] else 7
            want = -math.log(logits[row, view].softmax(dim=0)[token])
            assert loss[row, view].item() == pytest.approx(want, rel=1e-5)


def test_log_odds_are_the_difference_of_log_probabilities() -> None:
    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(0))
    log_p = logits.log_softmax(dim=-1)
    got = yes_log_odds(logits, yes_id=3, no_id=7)
    torch.testing.assert_close(got, log_p[:, 3] - log_p[:, 7])


def draw(
    cosine: list[float],
    admissible: list[bool],
    hard: list[bool],
    *,
    mined: float = 1.0,
    count: int = 1,
) -> torch.Tensor:
    """The same row, drawn `count` times with seeded uniforms."""
    uniforms = torch.rand(count, 2, generator=torch.Generator().manual_seed(0))
    return draw_negatives(
        torch.tensor([cosine]).expand(count, -1),
        torch.tensor([admissible], dtype=torch.bool).expand(count, -1),
        torch.tensor([hard], dtype=torch.bool).reshape(1, -1).expand(count, -1),
        mined=mined,
        temperature=0.05,
        uniforms_b2=uniforms,
    )


def test_mined_negatives_come_in_proportion_to_the_exponential_of_their_cosine() -> None:
    cosine = [0.10, 0.15, 0.02, 0.90]
    column = draw(cosine, [True, True, True, False], [], count=40_000)
    share = torch.bincount(column, minlength=4) / 40_000
    want = torch.tensor(cosine[:3]).div(0.05).softmax(dim=0)
    torch.testing.assert_close(share[:3], want, atol=0.01, rtol=0)
    assert share[3] == 0


def test_the_mined_share_is_as_asked_and_hard_negatives_are_uniform() -> None:
    column = draw([0.1, 0.2], [True, True], [True, False, True], mined=0.3, count=40_000)
    share = torch.bincount(column, minlength=5) / 40_000
    assert share[:2].sum().item() == pytest.approx(0.3, abs=0.01)
    assert share[3] == 0
    assert share[2].item() == pytest.approx(0.35, abs=0.01)
    assert share[4].item() == pytest.approx(0.35, abs=0.01)


def test_a_row_without_one_kind_takes_the_other() -> None:
    assert draw([0.1], [True], [False], mined=0.0).tolist() == [0]
    assert draw([0.1], [False], [True], mined=1.0).tolist() == [1]
    assert draw([0.1], [False], [False]).tolist() == [-1]
    assert draw([0.1], [False], []).tolist() == [-1]
    assert draw([], [], [True]).tolist() == [0]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_inadmissible_document_is_never_drawn(data: st.DataObject) -> None:
    num_shared, num_hard = data.draw(st.integers(1, 6)), data.draw(st.integers(0, 3))
    flags = st.booleans()
    admissible = data.draw(st.lists(flags, min_size=num_shared, max_size=num_shared))
    hard = data.draw(st.lists(flags, min_size=num_hard, max_size=num_hard))
    cosine = data.draw(st.lists(st.floats(-1, 1), min_size=num_shared, max_size=num_shared))
    edge = st.sampled_from([0.0, 0.5, 1 - 2**-24])
    column = draw_negatives(
        torch.tensor([cosine]),
        torch.tensor([admissible]),
        torch.tensor([hard], dtype=torch.bool).reshape(1, -1),
        mined=data.draw(st.sampled_from([0.0, 0.5, 1.0])),
        temperature=0.05,
        uniforms_b2=torch.tensor([[data.draw(edge), data.draw(edge)]]),
    ).item()
    if column < 0:
        assert not any(admissible) and not any(hard)
    else:
        assert [*admissible, *hard][int(column)]
