"""The matching head's weight is 0 where it says nothing, and its gain is measured elsewhere."""

import numpy as np
import pytest

from rematch_ray.evaluation.fitting import fitted_half
from rematch_ray.evaluation.head import LAMBDAS, Ranked, fit_head

COUNT = 160
FITTED = fitted_half([f"q{number}" for number in range(COUNT)])


def ranked(signal: float, *, seed: int = 0, near: float = 0.05) -> list[Ranked]:
    """Queries whose right document MaxSim barely knows; the head knows it by so much."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(COUNT):
        scores = generator.normal(0.5, 0.05, 30)
        odds = generator.normal(0.0, 1.0, 30)
        right = int(generator.integers(30))
        scores[right] += near
        odds[right] += signal
        made.append(Ranked(scores, odds, {right: 1.0}, []))
    return made


@pytest.mark.parametrize("seed", range(5))
def test_a_head_that_is_noise_is_left_off(seed: int) -> None:
    report = fit_head(ranked(0.0, seed=seed), FITTED)
    assert report["lambda"] == 0
    assert (report["gain"]["low"], report["gain"]["mean"], report["gain"]["high"]) == (0, 0, 0)


def test_a_head_that_knows_something_is_weighted_and_gains() -> None:
    report = fit_head(ranked(4.0), FITTED)
    assert report["lambda"] > 0
    assert report["gain"]["low"] > 0.1
    assert report["fitted"] + report["reported"] == COUNT


def test_a_head_that_is_wrong_is_left_off() -> None:
    assert fit_head(ranked(-4.0), FITTED)["lambda"] == 0


def test_the_gain_is_of_the_reported_half_alone() -> None:
    # the head helps where the weight is fitted and harms everywhere else
    mixed = [
        helpful if is_fitted else harmful
        for helpful, harmful, is_fitted in zip(ranked(4.0), ranked(-4.0), FITTED)
    ]
    report = fit_head(mixed, FITTED)
    assert report["lambda"] > 0
    assert report["gain"]["high"] < 0


def test_the_weight_and_gain_are_those_of_plain_numpy() -> None:
    queries = ranked(2.0, seed=3)

    def gain(weight: float, one: Ranked) -> float:
        scores = one.scores + weight * one.odds
        [right] = one.right
        rank = 1 + int((scores > scores[right]).sum())
        return 1 / np.log2(rank + 1) if rank <= 10 else 0.0

    values = np.array([[gain(weight, one) for one in queries] for weight in LAMBDAS])
    best = int(values[:, FITTED].mean(axis=1).argmax())
    report = fit_head(queries, FITTED)
    assert report["lambda"] == LAMBDAS[best]
    others = values[:, ~FITTED].mean(axis=1)
    assert report["without"] == pytest.approx(others[0])
    assert report["gain"]["mean"] == pytest.approx(others[best] - others[0])


def test_a_relevant_document_below_the_candidates_counts_in_the_ideal() -> None:
    scores, odds = np.linspace(0.9, 0.5, 12), np.zeros(12)
    assert Ranked(scores, odds, {0: 1.0}, []).ndcg(0.0) == 1.0
    ideal = 1 + 1 / np.log2(3)
    assert Ranked(scores, odds, {0: 1.0}, [1.0]).ndcg(0.0) == pytest.approx(1 / ideal)


def test_queries_of_one_half_only_give_what_they_can() -> None:
    queries = ranked(4.0)[:10]
    unfitted = fit_head(queries, np.zeros(10, bool))
    assert (unfitted["lambda"], unfitted["gain"]["mean"]) == (0.0, 0.0)
    assert fit_head(queries, np.ones(10, bool))["gain"] is None
