"""What each coarse choice would have kept of the best documents."""

import json

import numpy as np
import pytest

from rematch_ray.errors import UserError
from rematch_ray.evaluation.coarse import coarse_recall, report_coarse


def test_coarse_recall_counts_what_each_list_would_have_kept() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random((9, 500))
    found = coarse_recall(
        {"fused": -truth, "1x1": truth, "2x4": truth + 0.0, "16x64": truth},
        truth="16x64",
        k=10,
        candidates=20,
    )
    assert list(found) == ["fused", "first", "2x4", "first+fused"]
    assert found["first"].tolist() == [1.0] * 9
    assert found["fused"].tolist() == [0.0] * 9
    # half of the twenty places go to each list: the ten best still fit
    assert found["first+fused"].tolist() == [1.0] * 9


def test_a_report_has_an_interval_for_every_choice() -> None:
    generator = np.random.default_rng(0)
    scores = {name: generator.random((30, 500)) for name in ("fused", "1x1", "2x4", "16x64")}
    report = report_coarse(coarse_recall(scores, truth="16x64"), truth="16x64")
    assert (report["truth"], report["k"], report["candidates"]) == ("16x64", 10, 100)
    assert json.loads(json.dumps(report)) == report
    # unrelated lists keep one document in five
    for interval in report["recall"].values():
        assert interval["mean"] == pytest.approx(0.2, abs=0.08)


def test_a_truth_without_scores_is_refused() -> None:
    with pytest.raises(UserError, match="rung '16x64' has no scores; there are 1x1"):
        coarse_recall({"1x1": np.zeros((1, 3))}, truth="16x64")
