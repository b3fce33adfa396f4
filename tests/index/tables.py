"""Calibration tables made by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

from rematch_ray.index.calibration import Calibration, Row, Share, Standing, Timing
from rematch_ray.index.plan import Plan
from rematch_ray.scoring.budget import Budget

STANDING = Standing(built=1, live=10_000, changes=0, coarse=("first:flat", "fused:flat"))


def row(
    budget: str,
    candidates: int | None,
    low: float,
    ms: float,
    *,
    narrowing: Sequence[tuple[str, int]] = (),
    coarse: str = "first",
    lows: Mapping[int, float] | None = None,
    **changes: Any,
) -> Row:
    """A measured plan; recall is `low` at every cut-off unless `lows` says otherwise."""
    at = {1: low, 10: low, 100: low} | dict(lows or {})
    plan = Plan(
        Budget.parse(budget),
        candidates,
        tuple((Budget.parse(rung), keep) for rung, keep in narrowing),
        None if candidates is None else coarse,
    )
    fields: dict[str, Any] = {
        "plan": plan,
        "recall": {k: Share(min(1.0, value + 0.01), value) for k, value in at.items()},
        "own": Share(min(1.0, low + 0.01), low),
        "dot_products": int(1000 * ms),
        "ms": Timing(ms, 2 * ms),
        "stages": {"filter": Timing(0.1, 0.2)},
        "front": True,
        "own_front": True,
    }
    return Row(**{**fields, **changes})


def table(*rows: Row, **changes: Any) -> Calibration:
    fields: dict[str, Any] = {
        "generation": "generation-000001",
        "standing": STANDING,
        "created": "2026-01-01T00:00:00+00:00",
        "k": 10,
        "queries": {"count": 200, "fitted": 100, "reported": 100, "digest": "d"},
        "machine": {"processor": "any", "cores": 2, "threads": 2, "software": {}},
        "rows": tuple(rows),
    }
    return Calibration(**{**fields, **changes})
