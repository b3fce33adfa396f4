"""Change of model and index without downtime, as a state machine: warm, flip, drain.

A *set* is all that answers for one pair of model and index: encoder, shards, coordinator, writer. A
new set comes up beside the one that serves; once every router has reached it, routers send new
requests there; once none has requests on the old set, that goes. What fails before the flip leaves
the old set serving. Pure: time comes from a clock, sets are started and removed by whoever asks
`tick` what to do. Knows no Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rematch_ray.errors import UserError

# a router that has said nothing for so long is gone
LIVE_S = 10.0
# a manager that was held up itself has not listened: longer pauses than this do not count
PAUSE_S = 0.5
# a new manager listens to what the routers serve before it says anything
LISTEN_S = 2.0


class SwapBusyError(UserError):
    """A change is under way; the next one has to wait."""


class Phase(StrEnum):
    """Where a change stands."""

    LISTENING = "listening"
    SERVING = "serving"
    WARMING = "warming"
    FLIPPING = "flipping"
    DRAINING = "draining"


@dataclass(frozen=True)
class SetSpec:
    """One pair of model and index, and where its deployments are.

    Attributes:
        name: of the Serve application that holds the deployments.
        index: directory.
        model: export directory.
        num_shards: of the index.
        digest: of the model's identity.
    """

    name: str
    index: str
    model: str
    num_shards: int = 1
    digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """What a caller is told."""
        return {"index": self.index, "model": self.model, "model_digest": self.digest[:12]}


@dataclass(frozen=True)
class SetReport:
    """What one router says a few times a second.

    Attributes:
        router: its name, of one process.
        serving: set that its new requests go to; None where it waits to be told.
        reached: names of other sets that it has reached.
        failed: name of a set -> why the router cannot reach it.
        in_flight: name of a set -> requests that run there.
    """

    router: str
    serving: SetSpec | None
    reached: frozenset[str] = frozenset()
    failed: Mapping[str, str] = field(default_factory=dict)
    in_flight: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SetOrders:
    """What routers are to do.

    Attributes:
        serving: where new requests go; None leaves a router where it is.
        coming: a set to reach, so that the first request there finds it warm.
    """

    serving: SetSpec | None = None
    coming: SetSpec | None = None


@dataclass(frozen=True)
class Chores:
    """What is to be done outside; each is given once.

    Attributes:
        start: a set to bring up; `started` or `failed` tells how it went.
        remove: sets that nobody needs any more.
    """

    start: SetSpec | None = None
    remove: tuple[SetSpec, ...] = ()


class SwapManager:
    """Which set serves, and the change that is under way.

    Args:
        first: the set that the application was started with.
        clock: seconds, monotonic.
        warm_timeout_s: how long a new set may take until every router has reached it.
        drain_timeout_s: how long requests may stay on the old set.
    """

    def __init__(
        self,
        first: SetSpec,
        *,
        clock: Callable[[], float] = time.monotonic,
        warm_timeout_s: float = 900.0,
        drain_timeout_s: float = 60.0,
    ) -> None:
        self._clock = clock
        self._warm_timeout_s = warm_timeout_s
        self._drain_timeout_s = drain_timeout_s
        self._serving = first
        self._coming: SetSpec | None = None
        self._is_up = False
        self._old: SetSpec | None = None
        self._start: SetSpec | None = None
        self._remove: list[SetSpec] = []
        self._reports: dict[str, tuple[float, SetReport]] = {}
        self._last: dict[str, Any] | None = None
        self._phase, self._since = Phase.LISTENING, clock()
        self._listened, self._looked_at = 0.0, clock()

    @property
    def serving(self) -> SetSpec:
        """The set that new requests go to."""
        return self._serving

    @property
    def phase(self) -> Phase:
        """Where the change stands."""
        return self._phase

    def begin(self, spec: SetSpec) -> None:
        """Change to another set.

        Raises:
            SwapBusyError: a change is under way already.
        """
        if self._phase != Phase.SERVING:
            raise SwapBusyError(
                f"a change is under way ({self._phase}): wait until it is done, "
                "GET /v1/admin/swap tells"
            )
        self._coming = self._start = spec
        self._is_up = False
        self._move(Phase.WARMING)

    def started(self, spec: SetSpec) -> None:
        """A new set is up: its deployments run."""
        self._is_up = self._is_up or spec == self._coming

    def failed(self, spec: SetSpec, reason: str) -> None:
        """A new set cannot be; the old one goes on serving."""
        if self._phase == Phase.WARMING and spec == self._coming:
            self._remove.append(spec)
            self._finish(spec, error=reason)

    def report(self, report: SetReport) -> SetOrders:
        """Take a router's report, give it its orders."""
        self._listen()
        self._reports[report.router] = (self._listened, report)
        if self._phase == Phase.LISTENING and report.serving is not None:
            # a manager that starts anew under routers that serve goes by them
            self._serving = report.serving
        self._advance()
        if self._phase == Phase.LISTENING:
            return SetOrders()
        coming = self._coming if self._phase == Phase.WARMING and self._is_up else None
        return SetOrders(self._serving, coming)

    def tick(self) -> Chores:
        """Move on as time has passed; what is to be done now."""
        self._advance()
        start, self._start = self._start, None
        remove, self._remove = tuple(self._remove), []
        return Chores(start, remove)

    def status(self) -> dict[str, Any]:
        """What a caller is told, as plain JSON types."""
        told: dict[str, Any] = {
            "phase": str(self._phase),
            "serving": self._serving.to_json(),
            "seconds": round(self._clock() - self._since, 1),
            "routers": len(self._living()),
            "last": self._last,
        }
        if self._coming is not None:
            told["coming"] = self._coming.to_json()
        if self._old is not None:
            told["draining"] = {**self._old.to_json(), "requests": self._in_flight(self._old)}
        return told

    def _listen(self) -> None:
        now = self._clock()
        self._listened += min(now - self._looked_at, PAUSE_S)
        self._looked_at = now

    def _advance(self) -> None:
        self._listen()
        waited = self._clock() - self._since
        if self._phase == Phase.LISTENING and self._listened >= LISTEN_S:
            self._move(Phase.SERVING)
        elif self._phase == Phase.WARMING:
            self._warm(waited)
        elif self._phase == Phase.FLIPPING:
            everyone = [report.serving for report in self._living()]
            if all(spec is not None and spec.name == self._serving.name for spec in everyone):
                self._move(Phase.DRAINING)
        elif self._phase == Phase.DRAINING:
            assert self._old is not None
            left = self._in_flight(self._old)
            if left == 0 or waited >= self._drain_timeout_s:
                self._remove.append(self._old)
                self._finish(self._serving, cut_off=left)

    def _warm(self, waited: float) -> None:
        assert self._coming is not None
        name = self._coming.name
        living = self._living()
        reasons = [report.failed[name] for report in living if name in report.failed]
        if reasons:
            self.failed(self._coming, reasons[0])
        elif self._is_up and living and all(name in report.reached for report in living):
            self._old, self._serving, self._coming = self._serving, self._coming, None
            self._move(Phase.FLIPPING)
        elif waited >= self._warm_timeout_s:
            self.failed(self._coming, f"it was not ready after {waited:.0f} s")

    def _finish(self, spec: SetSpec, *, error: str | None = None, cut_off: int = 0) -> None:
        self._last = {**spec.to_json(), "done": error is None, "error": error, "cut_off": cut_off}
        self._coming = self._old = self._start = None
        self._move(Phase.SERVING)

    def _move(self, phase: Phase) -> None:
        self._phase, self._since = phase, self._clock()

    def _in_flight(self, spec: SetSpec) -> int:
        return sum(report.in_flight.get(spec.name, 0) for report in self._living())

    def _living(self) -> list[SetReport]:
        oldest = self._listened - LIVE_S
        for router in [name for name, (at, _) in self._reports.items() if at < oldest]:
            del self._reports[router]
        return [report for _, report in self._reports.values()]
