"""The picture of a run draws what its log has, and says why when there is none."""

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rematch_ray.workloads.run_directory import RunDirectory
from rematch_ray.workloads.training_plot import FILE, PANELS, plot_run

EVERYTHING = {
    "loss": 3.0,
    "loss/fused": 1.0,
    "loss/matching": 0.0,
    "loss/1x1": 1.5,
    "loss/16x64": 0.5,
    "accuracy/fused": 0.5,
    "accuracy/1x1": 0.25,
    "accuracy/match/raw/raw": 0.75,
    "similarity/positive": 0.5,
    "gradient_norm": 2.0,
    "learning_rate": 1e-4,
}


def log(folder: Path, metrics: dict[str, float], *, validated: bool) -> RunDirectory:
    directory = RunDirectory(folder)
    for number in range(60):
        values = {name: value / (number + 1) for name, value in metrics.items()}
        record: dict[str, Any] = {"event": "step", "step": number, "epoch": 0, "pairs": 8}
        directory.log({**record, "seconds": 0.5, "waited": 0.1, "metrics": values})
    if validated:
        found = {"recall@10/1x1": 0.5, "recall@10/fused": 0.6, "a/recall@10/1x1": 0.5}
        told = {"metric": "a/recall@10/1x1", "best_at": 60, "metrics": found}
        directory.log({"event": "validation", "at": 60, **told})
        directory.log({"event": "validation", "at": 61, "error": "no memory"})
    return directory


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("metrics", [EVERYTHING, {"loss": 1.0}], ids=["everything", "loss alone"])
def test_a_run_becomes_a_picture(
    tmp_path: Path, metrics: dict[str, float], validated: bool
) -> None:
    line = plot_run(log(tmp_path, metrics, validated=validated))
    assert line == f"plot: {tmp_path / FILE}"
    with Image.open(tmp_path / FILE) as picture:
        assert picture.width > 1000


def test_panels_without_data_are_left_out(tmp_path: Path) -> None:
    steps = [{"step": 0, "metrics": {"loss": 1.0, "accuracy/fused": 0.5}}]
    shown = [title for title, _, wanted in PANELS if wanted(steps, [])]
    assert shown == ["loss and its parts", "training accuracy per budget", "speed and stall"]


def test_nothing_to_draw_or_to_draw_with_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plot_run(RunDirectory(tmp_path)) == "no plot: the run has no step yet"
    directory = log(tmp_path, {"loss": 1.0}, validated=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert plot_run(directory) == "no plot: plots need matplotlib: pip install 'rematch-ray[eval]'"
