"""The demo's promises: a model that knows nothing must miss every one of them."""

import numpy as np
import pytest

from rematch_ray.evaluation.budgets import evaluate_scores
from rematch_ray.evaluation.checks import Check, demo_checks, pages_checks
from rematch_ray.evaluation.metrics import Relevance
from rematch_ray.evaluation.tasks import RetrievalTask, Swaps

NUM_FAMILIES, MEMBERS = 20, 8
LADDER = ("fused", "1x1", "4x8")


def scenes_task(name: str = "scenes") -> RetrievalTask:
    """Families of eight documents; one query per document; its neighbour is its swap."""
    documents = np.arange(NUM_FAMILIES * MEMBERS)
    neighbour = documents // MEMBERS * MEMBERS + (documents + 1) % MEMBERS
    relevance = Relevance.of([[int(column)] for column in documents], len(documents))
    kinds = np.where(documents % 2, "swap:colour", "swap:position")
    swaps = Swaps(documents, documents, neighbour, kinds)
    return RetrievalTask(name, relevance, family=documents // MEMBERS, swaps=swaps)


def report_of(scores: np.ndarray, name: str = "scenes") -> dict:
    return evaluate_scores(scenes_task(name), dict.fromkeys(LADDER, scores))


def equal_vectors() -> np.ndarray:
    count = NUM_FAMILIES * MEMBERS
    vectors = np.ones((count, 4)) / 2
    return vectors @ vectors.T


def test_a_model_whose_vectors_are_all_equal_misses_every_check_of_the_demo() -> None:
    checks = demo_checks(
        [report_of(equal_vectors()), report_of(equal_vectors(), "emoji, composed")]
    )
    assert len(checks) == 5 * len(LADDER)
    assert not any(check.passed for check in checks)


def test_a_model_whose_vectors_are_all_equal_scores_exactly_chance() -> None:
    report = report_of(equal_vectors())
    for measured in report["rungs"].values():
        assert measured["recall@1"] == pytest.approx(1 / (NUM_FAMILIES * MEMBERS))
        assert measured["family_accuracy"] == pytest.approx(1 / MEMBERS)
        assert measured["worst_swap"] == pytest.approx(0.5)
        assert measured["recall@10"] == pytest.approx(report["chance"]["recall@10"])


def test_a_model_blind_to_binding_misses_recall_and_family_but_not_by_chance_alone() -> None:
    task = scenes_task()
    report = evaluate_scores(task, {"fused": task.blind_scores()})
    assert report["rungs"]["fused"]["recall@1"] == pytest.approx(1 / MEMBERS)
    assert not any(check.passed for check in demo_checks([report]))


def test_a_perfect_model_passes_every_check_of_the_demo() -> None:
    checks = demo_checks([report_of(np.eye(NUM_FAMILIES * MEMBERS))])
    assert checks and all(check.passed for check in checks)


def test_a_matching_view_below_its_target_is_named() -> None:
    report = report_of(np.eye(NUM_FAMILIES * MEMBERS))
    report["matching"] = {
        "views": {"raw/raw": {"worst_kind": 0.95}, "emb/emb": {"worst_kind": 0.6}}
    }
    missed = [check.name for check in demo_checks([report]) if not check.passed]
    assert missed == ["scenes, matching emb/emb, worst_kind"]


def test_equal_budgets_miss_the_checks_of_pages_and_a_real_gain_passes_them() -> None:
    count = NUM_FAMILIES * MEMBERS
    poor, good = np.zeros((count, count)), np.eye(count)
    flat = evaluate_scores(scenes_task("pages"), {"1x1": poor, "16x64": poor})
    assert not any(check.passed for check in pages_checks(flat))
    rising = evaluate_scores(scenes_task("pages"), {"1x1": poor, "16x64": good})
    assert all(check.passed for check in pages_checks(rising))


def test_a_check_says_what_was_reached_and_what_had_to_be() -> None:
    assert str(Check("x", 0.5, 0.6)) == "MISSED: x 50.0 (at least 60)"
