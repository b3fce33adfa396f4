"""How many of the best documents each possible coarse stage would have kept.

Works on exhaustive scores: what a coarse list could find at best, before any approximation in it.
Middle floor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rematch_ray.errors import UserError
from rematch_ray.evaluation.bootstrap import bootstrap
from rematch_ray.evaluation.metrics import Float64, Scores
from rematch_ray.index.exact import order_best
from rematch_ray.index.stages import interleave

CANDIDATES = 100
BEST = 10


def coarse_recall(
    scores: Mapping[str, Scores], *, truth: str, k: int = BEST, candidates: int = CANDIDATES
) -> dict[str, Float64]:
    """How many of the best documents at the top budget each coarse choice would have kept.

    Args:
        scores: rung -> (B, C); `fused` and the rungs below the truth are the coarse choices.
        truth: rung whose first k documents count.
        k: documents per query to be found.
        candidates: documents that a coarse stage keeps.

    Returns:
        Choice -> (B,) share found: every other rung by name (the rung of one vector each is the
        choice `first`), and `first+fused`, the two lists merged by rank.

    Raises:
        UserError: the truth is not among the scores.
    """
    if truth not in scores:
        raise UserError(f"rung '{truth}' has no scores; there are {', '.join(scores)}")
    columns = np.arange(next(iter(scores.values())).shape[1], dtype=np.uint64)
    best = {
        name: [order_best(row.astype(np.float32), columns, max(k, candidates)) for row in matrix]
        for name, matrix in scores.items()
    }
    kept = {("first" if name == "1x1" else name): best[name] for name in scores if name != truth}
    if "first" in kept and "fused" in kept:
        pairs = zip(kept["fused"], kept["first"])
        kept["first+fused"] = [interleave(pair, candidates) for pair in pairs]
    return {
        name: np.array(
            [
                np.isin(right[:k], found[:candidates]).mean()
                for right, found in zip(best[truth], lists)
            ]
        )
        for name, lists in kept.items()
    }


def report_coarse(
    recall: Mapping[str, Float64],
    *,
    truth: str,
    k: int = BEST,
    candidates: int = CANDIDATES,
    seed: int = 0,
) -> dict[str, Any]:
    """The recall of every coarse choice, as plain JSON types.

    Args:
        recall: of `coarse_recall`, all queries; the others as there.
        truth: rung that it is measured against.
        k: documents per query to be found.
        candidates: documents that a coarse stage keeps.
        seed: of the bootstrap.

    Returns:
        `truth`, `k`, `candidates`, and `recall`: choice -> interval of its mean over the queries.
    """
    return {
        "truth": truth,
        "k": k,
        "candidates": candidates,
        "recall": {name: bootstrap(values, seed=seed).to_json() for name, values in recall.items()},
    }
