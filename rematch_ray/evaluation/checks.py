"""What the demo's models must reach, as checks on evaluation reports.

A check is a number beside the least it must be. Knows the shape of a report, nothing of how it was
measured. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

# (task, metric, least): every rung of the ladder has to reach it, and the fused vector too
RUNG_TARGETS: Final = (
    ("emoji, composed", "recall@10", 0.50),
    ("emoji, composed", "family_accuracy", 0.60),
    ("scenes", "recall@1", 0.35),
    ("scenes", "family_accuracy", 0.60),
    ("scenes", "worst_swap", 0.90),
)
MATCHING_TARGET: Final = ("scenes", "worst_kind", 0.90)
PAGES_GAIN: Final = 0.10


@dataclass(frozen=True)
class Check:
    """One promise: `value` must be at least `least`.

    Attributes:
        name: task, rung or view, and metric.
        value: what was measured.
        least: what it must be.
    """

    name: str
    value: float
    least: float

    @property
    def passed(self) -> bool:
        """Whether the promise holds."""
        return self.value >= self.least

    def __str__(self) -> str:
        sign = "reached" if self.passed else "MISSED"
        return f"{sign}: {self.name} {100 * self.value:.1f} (at least {100 * self.least:.0f})"


def demo_checks(reports: Sequence[Mapping[str, Any]]) -> list[Check]:
    """The demo's promises: every rung on emoji and scenes, every view of the matching stage.

    Args:
        reports: of `evaluate`, one per task.

    Returns:
        One check per task, rung and metric; tasks without targets have none.
    """
    return [check for report in reports for check in _of_report(report)]


def pages_checks(report: Mapping[str, Any]) -> list[Check]:
    """The promise of budgets: on pages the largest rung beats the smallest.

    Args:
        report: of the pages task, rungs from `1x1` up.

    Returns:
        The gain in Hit@1, and the lower end of its paired interval (which must be above 0).
    """
    rungs = [rung for rung in report["rungs"] if rung != "fused"]
    name = f"{rungs[-1]} - {rungs[0]}"
    gain = report["differences"][name]["hit@1"]
    return [
        Check(f"{report['task']}, {name}, gain in hit@1", gain["mean"], PAGES_GAIN),
        Check(f"{report['task']}, {name}, lower end of the interval", gain["low"], 1e-9),
    ]


def _of_report(report: Mapping[str, Any]) -> Iterator[Check]:
    for task, metric, least in RUNG_TARGETS:
        if report["task"] == task:
            for rung, measured in report["rungs"].items():
                yield Check(f"{task}, {rung}, {metric}", measured[metric], least)
    task, metric, least = MATCHING_TARGET
    if report["task"] == task and "matching" in report:
        for view, measured in report["matching"]["views"].items():
            yield Check(f"{task}, matching {view}, {metric}", measured[metric], least)
