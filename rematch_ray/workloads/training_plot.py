"""One picture of a run from its log: losses, accuracy, similarity, validation, speed.

Reads records and draws them with matplotlib (extra `eval`); measures nothing. Top floor.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rematch_ray.errors import UserError
from rematch_ray.evaluation.figures import figure_class
from rematch_ray.scoring.budget import Budget
from rematch_ray.workloads.run_directory import RunDirectory

FILE = "training.png"
COLUMNS = 3
POINTS = 2000  # of a line; more cannot be told apart
Records = Sequence[Mapping[str, Any]]
TERMS = ("loss", "loss/fused", "loss/groups", "loss/orthogonality", "loss/matching")
SIMILARITIES = ("positive", "hardest_negative", "negative")


def plot_run(directory: RunDirectory) -> str:
    """Draw a run's log into its directory.

    Args:
        directory: of the run.

    Returns:
        A line for people: where the picture is, or why there is none.
    """
    records = list(directory.records())
    steps = [record for record in records if record["event"] == "step"]
    if not steps:
        return "no plot: the run has no step yet"
    try:
        figure_of = figure_class()
    except UserError as missing:
        return f"no plot: {missing}"
    validations = [r for r in records if r["event"] == "validation" and "metrics" in r]
    panels = [panel for panel in PANELS if panel[2](steps, validations)]
    rows = -(-len(panels) // COLUMNS)
    figure = figure_of(figsize=(4.8 * COLUMNS, 3.4 * rows), layout="constrained")
    for place, (title, draw, _) in enumerate(panels):
        axes = figure.add_subplot(rows, COLUMNS, place + 1)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        draw(axes, steps, validations)
    out = directory.path / FILE
    figure.suptitle(f"{directory.path.name}: {len(steps)} steps", fontsize=11)
    try:
        figure.savefig(out, dpi=120)
    except OSError as error:  # a full disk: the run itself has ended well
        return f"no plot: {out} cannot be written ({error.strerror})"
    return f"plot: {out}"


def series(steps: Records, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric, of those steps that have it.

    >>> numbers = [{"step": n, "metrics": {"a": n / 2} if n else {}} for n in range(3)]
    >>> [values.tolist() for values in series(numbers, "a")]
    [[1, 2], [0.5, 1.0]]
    """
    found = [(r["step"], r["metrics"][name]) for r in steps if name in r["metrics"]]
    return np.array([x for x, _ in found]), np.array([y for _, y in found])


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Median of each value and its neighbours, fewer of them at the ends.

    >>> smooth(np.array([1.0, 9.0, 2.0, 3.0]), 3).tolist()
    [5.0, 2.0, 3.0, 2.5]
    """
    half = width // 2
    return np.array(
        [np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    )


def thin(values: np.ndarray, points: int) -> np.ndarray:
    """At most so many values: medians of neighbours.

    >>> thin(np.array([1.0, 2.0, 3.0, 5.0, 9.0]), 3).tolist()
    [1.5, 4.0, 9.0]
    """
    size = -(-len(values) // points)
    return np.array([np.median(values[i : i + size]) for i in range(0, len(values), max(size, 1))])


def _draw(axes: Any, x: np.ndarray, y: np.ndarray, label: str, **style: Any) -> None:
    """A line of medians over the single values, faint."""
    if not len(x):
        return
    x, y = thin(x, POINTS), thin(y, POINTS)
    width = max(1, len(y) // 40) | 1
    (line,) = axes.plot(x, smooth(y, width), label=label, linewidth=1.4, **style)
    if width > 1:
        axes.plot(x, y, color=line.get_color(), alpha=0.18, linewidth=0.6)


def _losses(axes: Any, steps: Records, validations: Records) -> None:
    for name in TERMS:
        x, y = series(steps, name)
        if len(y) and y.any():
            style = {"color": "black"} if name == "loss" else {}
            _draw(axes, x, y, name.removeprefix("loss/"), **style)
    axes.set_yscale("log")
    axes.legend(fontsize=7)


def _budget_losses(axes: Any, steps: Records, validations: Records) -> None:
    for rung, colour in _rungs(steps, "loss/"):
        _draw(axes, *series(steps, f"loss/{rung}"), rung, color=colour)
    axes.set_yscale("log")
    axes.legend(fontsize=7)


def _accuracies(axes: Any, steps: Records, validations: Records) -> None:
    for rung, colour in _rungs(steps, "accuracy/"):
        x, y = series(steps, f"accuracy/{rung}")
        _draw(axes, x, 100 * y, rung, color=colour)
    axes.set_ylabel("%", fontsize=8)
    axes.legend(fontsize=7)


def _matching(axes: Any, steps: Records, validations: Records) -> None:
    for name in _names(steps, "accuracy/match/"):
        x, y = series(steps, name)
        _draw(axes, x, 100 * y, name.removeprefix("accuracy/match/"))
    axes.set_ylabel("%", fontsize=8)
    axes.legend(fontsize=7)


def _similarity(axes: Any, steps: Records, validations: Records) -> None:
    for name in SIMILARITIES:
        _draw(axes, *series(steps, f"similarity/{name}"), name.replace("_", " "))
    axes.legend(fontsize=7)


def _validation(axes: Any, steps: Records, validations: Records) -> None:
    cut = validations[-1]["metric"].split("/")[-2]  # that of the best weights: recall@1 or @10
    found = [{"step": r["at"] - 1, "metrics": r["metrics"]} for r in validations]
    for rung, colour in _rungs(found, f"{cut}/"):
        x, y = series(found, f"{cut}/{rung}")
        axes.plot(x, 100 * y, marker="o", markersize=3, linewidth=1.2, label=rung, color=colour)
    best = validations[-1]["best_at"]
    axes.axvline(best - 1, color="grey", linestyle=":", linewidth=1, label=f"best: {best} steps")
    axes.set_ylabel(f"{cut}, %", fontsize=8)
    axes.legend(fontsize=7)


def _speed(axes: Any, steps: Records, validations: Records) -> None:
    x = np.array([record["step"] for record in steps])
    seconds = np.array([max(record["seconds"], 1e-9) for record in steps])
    pairs = np.array([record["pairs"] for record in steps])
    waited = np.array([record["waited"] for record in steps])
    _draw(axes, x, pairs / seconds, "pairs/s")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("pairs/s", fontsize=8)
    right = axes.twinx()
    _draw(right, x, 100 * waited / seconds, "stall, %", color="tab:red")
    right.set_ylim(0, 100)
    right.set_ylabel("waiting for data, %", fontsize=8, color="tab:red")
    right.tick_params(labelsize=8, colors="tab:red")


def _gradients(axes: Any, steps: Records, validations: Records) -> None:
    _draw(axes, *series(steps, "gradient_norm"), "gradient norm")
    axes.set_yscale("log")
    right = axes.twinx()
    right.plot(*series(steps, "learning_rate"), color="tab:grey", linewidth=1)
    right.set_ylabel("learning rate", fontsize=8, color="tab:grey")
    right.tick_params(labelsize=8, colors="tab:grey")


def _rungs(records: Records, prefix: str) -> list[tuple[str, Any]]:
    """Budgets that have a metric, smallest first, each with its colour in every panel."""
    from matplotlib import colormaps

    found = [name.removeprefix(prefix) for name in _names(records, prefix)]
    rungs = sorted((r for r in found if "x" in r and "/" not in r), key=_size)
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, max(len(rungs), 2)))
    fused = [("fused", "tab:red")] if "fused" in found else []
    return [*fused, *zip(rungs, shades)]


def _size(rung: str) -> int:
    return Budget.parse(rung).dot_products


def _names(records: Records, prefix: str) -> list[str]:
    return list(dict.fromkeys(n for r in records for n in r["metrics"] if n.startswith(prefix)))


def _has(prefix: str) -> Callable[[Records, Records], bool]:
    return lambda steps, validations: bool(_names(steps, prefix))


# title, how it is drawn, whether there is anything to draw
PANELS: list[
    tuple[str, Callable[[Any, Records, Records], None], Callable[[Records, Records], bool]]
] = [
    ("loss and its parts", _losses, _has("loss")),
    (
        "loss per budget",
        _budget_losses,
        lambda steps, _: any("x" in name for name in _names(steps, "loss/")),
    ),
    ("training accuracy per budget", _accuracies, _has("accuracy/")),
    ("validation recall per budget", _validation, lambda _, validations: bool(validations)),
    ("cosines of positives and negatives", _similarity, _has("similarity/")),
    ("matching accuracy per view", _matching, _has("accuracy/match/")),
    ("gradient norm and learning rate", _gradients, _has("gradient_norm")),
    ("speed and stall", _speed, lambda steps, _: True),
]
