"""The calibration table of an index: what the doctor measured, and whether it still holds.

Plain values that read and write JSON. Measures nothing and chooses nothing. Middle floor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rematch_ray.errors import UserError
from rematch_ray.index.coarse.sizes import SCAN
from rematch_ray.index.generation import Generation
from rematch_ray.index.plan import Plan

# a table is void once so many documents changed, as a share of the live ones when it was measured
VOID_AT = 0.2
DOCTOR = "rematch-ray doctor --index {index} --queries PATH"


@dataclass(frozen=True)
class Share:
    """A mean over queries, 0..1, and the lower end of its 95 % interval."""

    mean: float
    low: float


@dataclass(frozen=True)
class Timing:
    """Milliseconds of single queries."""

    median: float
    p95: float


@dataclass(frozen=True)
class Row:
    """One measured plan.

    Args:
        plan: the plan; a coarse stage is named.
        recall: cut-off k -> share of the best k of an exhaustive search at the full budget.
        own: the same at the table's k, against an exhaustive search at the plan's own budget.
        dot_products: of one query, the coarse stage's included.
        ms: of a whole search.
        stages: name -> time of each stage.
        front: whether no cheaper plan found more of the full budget's best, on the fitted half.
        own_front: whether none of the same budget and coarse choice found more of its own best.
    """

    plan: Plan
    recall: Mapping[int, Share]
    own: Share
    dot_products: int
    ms: Timing
    stages: Mapping[str, Timing]
    front: bool
    own_front: bool

    def low_at(self, top_k: int) -> float | None:
        """Lower end of the recall of a search for so many hits, None where it was not measured.

        Between two measured cut-offs the lower of both holds.
        """
        if self.plan.kept is not None and self.plan.kept < top_k:
            return None
        below = [k for k in self.recall if k <= top_k]
        above = [k for k in self.recall if k >= top_k]
        if not above:
            return None
        around = {min(above), max(below, default=min(above))}
        return min(self.recall[k].low for k in around)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            **asdict(self),
            "plan": self.plan.to_json(),
            "recall": {str(k): asdict(share) for k, share in self.recall.items()},
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Row:
        """Reads what `to_json` wrote."""
        return cls(
            plan=Plan.from_json(fields["plan"]),
            recall={int(k): Share(**share) for k, share in fields["recall"].items()},
            own=Share(**fields["own"]),
            dot_products=fields["dot_products"],
            ms=Timing(**fields["ms"]),
            stages={name: Timing(**timing) for name, timing in fields["stages"].items()},
            front=fields["front"],
            own_front=fields["own_front"],
        )


@dataclass(frozen=True)
class Standing:
    """The state of an index as far as a calibration depends on it.

    Args:
        built: number of the generation that a build published.
        live: live documents.
        changes: documents added, replaced or deleted since the build.
        coarse: key and kind of every coarse list that is no scan, `first:ivf`, sorted.
        device: of torch, `cuda` for example, where vectors are scored; None: the CPU's own kernels.
            Times are others there, and a list of one-bit codes scans all 8-bit ones instead.
    """

    built: int
    live: int
    changes: int
    coarse: tuple[str, ...]
    device: str | None = None

    @classmethod
    def of(cls, generation: Generation) -> Standing:
        """The standing of an open generation."""
        manifest = generation.manifest
        # a scan misses nothing: small segments that are added do not change what was measured
        kinds = {
            f"{key}:{entry['kind']}"
            for segment in generation.segments
            for key, entry in segment.manifest.coarse.items()
            if entry["kind"] != SCAN
        }
        device = None if generation.device is None else generation.device.split(":")[0]
        return cls(manifest.built, manifest.live, manifest.changes, tuple(sorted(kinds)), device)


@dataclass(frozen=True)
class Calibration:
    """What the doctor found out about an index.

    Args:
        generation: that was measured.
        standing: of the index then.
        created: time, ISO 8601.
        k: hits that plans were chosen for.
        queries: `count`, `fitted`, `reported` and `digest` of the queries.
        machine: what measured: processor, threads, software.
        rows: the table.
        ndcg: rung -> interval of nDCG@10 of an exhaustive search; None without qrels.
        matching: gain of the matching head; None where it was not measured.
    """

    generation: str
    standing: Standing
    created: str
    k: int
    queries: Mapping[str, Any]
    machine: Mapping[str, Any]
    rows: tuple[Row, ...]
    ndcg: Mapping[str, Any] | None = None
    matching: Mapping[str, Any] | None = None

    def void(self, now: Standing) -> str | None:
        """Why the table holds no longer, in a few words; None while it does.

        Args:
            now: standing of the index that is searched.
        """
        then = self.standing
        if now.built != then.built:
            return "the index was built anew since"
        changed = now.changes - then.changes
        if changed >= VOID_AT * then.live:
            return f"{changed} documents changed since, of {then.live}"
        if unknown := sorted(set(now.coarse) - set(then.coarse)):
            return f"coarse list {unknown[0]} came since"
        if now.device != then.device:
            there, here = _where(then.device), _where(now.device)
            return f"it was measured on {there}, and searches run on {here}"
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        standing = {**asdict(self.standing), "coarse": list(self.standing.coarse)}
        return {**fields, "standing": standing, "rows": [row.to_json() for row in self.rows]}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Calibration:
        """Reads what `to_json` wrote.

        Raises:
            UserError: a key is missing or of another kind: another version wrote it.
        """
        try:
            written = fields["standing"]
            standing = Standing(**{**written, "coarse": tuple(written["coarse"])})
            rows = tuple(Row.from_json(row) for row in fields["rows"])
            return cls(**{**fields, "standing": standing, "rows": rows})
        except (KeyError, TypeError, ValueError, AttributeError) as broken:
            raise UserError(
                f"the calibration of this index cannot be read ({broken!r}): measure it again with "
                f"'{DOCTOR.format(index='DIR')}'"
            ) from broken

    def summary(self) -> dict[str, Any]:
        """What `info` says of it, as plain JSON types: everything but the table."""
        return {**self.to_json(), "rows": len(self.rows)}


def _where(device: str | None) -> str:
    return "the CPU's kernels" if device is None else f"device '{device}'"


def judge_calibration(generation: Generation) -> tuple[Calibration | None, str | None]:
    """The calibration of an open generation, and why it does not hold, None where it does.

    One that cannot be read does not hold, and is no reason not to search.
    """
    written = generation.manifest.calibration
    if written is None:
        return None, None
    try:
        calibration = Calibration.from_json(written)
    except UserError as broken:
        return None, str(broken)
    return calibration, calibration.void(Standing.of(generation))
