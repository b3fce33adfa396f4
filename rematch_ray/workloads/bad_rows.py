"""Rows of a run that could not be encoded: how many, and when they are too many. Top floor."""

from collections.abc import Mapping, Sequence

from rematch_ray.config import DataSettings
from rematch_ray.data.order import Plan

REASONS_SHOWN = 3


class BadRows:
    """Counts rows that could not be encoded, and says when there are too many in an epoch.

    Counts over all ranks, and over all processes that a run has had: checkpoints hold `counted`.

    Args:
        settings: how many are accepted.
        plan: how many rows an epoch has.
    """

    def __init__(self, settings: DataSettings, plan: Plan) -> None:
        self._share = settings.max_bad_share
        self._rows = plan.steps_per_epoch * settings.order.global_batch
        self._epoch = -1
        self._in_epoch = 0
        self.total = 0

    @property
    def counted(self) -> dict[str, int]:
        """What was counted so far, for `go_on`."""
        return {"epoch": self._epoch, "in_epoch": self._in_epoch, "total": self.total}

    def go_on(self, counted: Mapping[str, int]) -> None:
        """Count on from what a checkpoint holds; {} = from nothing."""
        self._epoch = counted.get("epoch", -1)
        self._in_epoch = counted.get("in_epoch", 0)
        self.total = counted.get("total", 0)

    def refuses(self, epoch: int, bad_rows: int, reasons: Sequence[str]) -> str:
        """Count a step's bad rows; return the reason to stop, "" to go on.

        Args:
            epoch: of the step.
            bad_rows: over all ranks.
            reasons: why, for the first of them.
        """
        if epoch != self._epoch:
            self._epoch, self._in_epoch = epoch, 0
        self._in_epoch += bad_rows
        self.total += bad_rows
        if self._in_epoch <= self._share * self._rows:
            return ""
        return (
            f"{self._in_epoch} of the {self._rows} training rows of epoch {epoch} cannot be "
            f"encoded, more than data.max_bad_share {self._share:g} allows ("
            + "; ".join(reasons[:REASONS_SHOWN])
            + "): raise it and give the same command, or mend or remove the rows and train on "
            "under another `name` with train.start_from"
        )
