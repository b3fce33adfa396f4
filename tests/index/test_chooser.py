"""Plans that an open index keeps: the same as thinking each through anew, and nothing mixed up."""

from typing import Any

import pytest

from rematch_ray.errors import UserError
from rematch_ray.index import chooser
from rematch_ray.index.choice import Choice, Table, choose_plan
from rematch_ray.index.chooser import Chooser
from rematch_ray.index.wish import Wish
from rematch_ray.scoring.budget import DEFAULT_LADDER, Budget

ASKED: dict[str, Any] = {
    "budget": None,
    "candidates": "auto",
    "coarse": None,
    "top_k": 10,
    "target_recall": None,
    "cost_limit": None,
    "max_ms": None,
    "plan": None,
}
CHOICES = ("first", "fused")
TABLE = Table("/an/index", None, None)


def make() -> Chooser:
    return Chooser(
        DEFAULT_LADDER,
        TABLE,
        has_fused=True,
        coarse_choices=CHOICES,
        default_coarse="fused",
        num_live=100_000,
    )


def ask(kept: Chooser, num_allowed: int = 100_000, **asked: Any) -> Choice:
    return kept.choose(full=True, num_allowed=num_allowed, **{**ASKED, **asked})


@pytest.mark.parametrize("num_allowed", [50, 6000, 100_000])
def test_choices_are_those_of_the_planner_whatever_was_asked_before(num_allowed: int) -> None:
    kept = make()
    questions: list[dict[str, Any]] = [
        {},
        {"budget": "4x8"},
        {"budget": Budget(8, 16), "candidates": "all"},
        {"candidates": 300},
        {"candidates": 300, "top_k": 20},
        {"coarse": "first"},
    ]
    for question in 3 * questions:
        wish = Wish.of(DEFAULT_LADDER, True, CHOICES, **{**ASKED, **question})
        assert ask(kept, num_allowed, **question) == choose_plan(
            wish,
            DEFAULT_LADDER,
            TABLE,
            num_allowed=num_allowed,
            num_live=100_000,
            default_coarse="fused",
        )


def test_a_question_is_thought_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    thought: list[int] = []

    def counting(*args: Any, **named: Any) -> Choice:
        thought.append(1)
        return choose_plan(*args, **named)

    monkeypatch.setattr(chooser, "choose_plan", counting)
    kept = make()
    first = ask(kept, budget="4x8")
    assert ask(kept, budget="4x8") is first
    assert ask(kept, budget="8x16") != first
    assert len(thought) == 2


@pytest.mark.parametrize(
    ("good", "bad"), [({"candidates": 10}, {"candidates": 10.0}), ({"top_k": 1}, {"top_k": True})]
)
def test_what_only_equals_something_possible_is_still_refused(
    good: dict[str, Any], bad: dict[str, Any]
) -> None:
    kept = make()
    ask(kept, **good)
    with pytest.raises(UserError, match="is not possible"):
        ask(kept, **bad)


def test_a_refusal_is_not_kept_and_what_has_no_hash_is_refused_by_name() -> None:
    kept = make()
    for _ in range(2):
        with pytest.raises(UserError, match="3x3"):
            ask(kept, budget="3x3")
        with pytest.raises(UserError, match="candidates \\[\\]"):
            ask(kept, candidates=[])


def test_no_more_is_kept_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chooser, "MOST_KEPT", 5)
    kept = make()
    for num_allowed in range(10_000, 10_050):
        ask(kept, num_allowed)
        assert len(kept._kept) <= 5
