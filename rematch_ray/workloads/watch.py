"""Follows a run from the driver: validations into its log, news to people and trackers, a plot.

Reads files only, so that nothing here can hold up or end a training step. Top floor.
"""

import sys
from collections.abc import Callable
from typing import Any

from rematch_ray.config import RunConfig
from rematch_ray.workloads.run_directory import RunDirectory
from rematch_ray.workloads.tracking import Tracking, is_result
from rematch_ray.workloads.training_plot import plot_run
from rematch_ray.workloads.validation import results


class Watch:
    """What the driver does with a run's log while it grows.

    Args:
        run: settings.
        directory: of the run.
        say: shows a line to people.
        tracking: the trackers; None = those of the settings.
    """

    def __init__(
        self,
        run: RunConfig,
        directory: RunDirectory,
        *,
        say: Callable[[str], None] | None = None,
        tracking: Tracking | None = None,
    ) -> None:
        self._directory = directory
        self._say = say or _to_stderr
        self._tracking = tracking or Tracking(run, say=self._say)
        self._has_validation = run.validation is not None
        self._tail = directory.tail()
        self._logged: set[tuple[int, bool]] = set()
        self._tell()

    def look(self) -> None:
        """Log validations that ended, and tell the trackers what is new."""
        self._tell()
        if not self._has_validation:
            return
        known = {at for at, has_result in self._logged if has_result}
        for record in results(self._directory.path, known=known):
            if _mark(record) not in self._logged:
                self._directory.log(record)
                self._say(validation_line(record))
        self._tell()

    def close(self) -> None:
        """Look a last time, end the trackers and draw the run."""
        self.look()
        self._tracking.close()
        self._say(plot_run(self._directory))

    def _tell(self) -> None:
        news = self._tail.read()
        if news.anew:
            self._logged.clear()
        self._logged |= {_mark(r) for r in news.records if r["event"] == "validation"}
        self._tracking.tell(news.records)


def validation_line(record: dict[str, Any]) -> str:
    """Say what a validation found."""
    if not is_result(record):
        return f"validation after {record['at']} steps failed: {record['error']}"
    best = "the best yet" if record["is_best"] else f"best after {record['best_at']} steps"
    return (
        f"validation after {record['at']} steps: {record['metric']} {record['value']:.3f}, {best}"
    )


def _mark(record: dict[str, Any]) -> tuple[int, bool]:
    """A validation that failed may be done again and succeed."""
    return record["at"], is_result(record)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
