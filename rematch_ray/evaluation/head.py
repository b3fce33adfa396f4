"""What the matching head adds over an index: a weight fitted on one half, its gain on the other.

score = mean MaxSim + lambda * (log p(Yes) - log p(No)) over the best documents of an exhaustive
search, the second term from stored fused vectors alone. Takes the head as a function; knows no
model. Middle floor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rematch_ray.evaluation.bootstrap import bootstrap, paired_bootstrap
from rematch_ray.evaluation.judged import NDCG_AT
from rematch_ray.evaluation.metrics import Float64, Relevance, ndcg_at, rank_relevant

CANDIDATES = 100
# 0 leaves the head off
LAMBDAS = (0.0, *np.geomspace(1e-4, 1.0, 17).round(6).tolist())

Float32 = NDArray[np.float32]
# (B, F) fused query vectors and (B, N, F) those of their documents -> (B, N) log-odds of Yes
Match = Callable[[Float32, Float32], Float32]


@dataclass(frozen=True)
class Ranked:
    """The best documents of one judged query.

    Args:
        scores: (N,) MaxSim at the full budget.
        odds: (N,) log p(Yes) - log p(No).
        right: place among the N -> gain.
        missed: gains of relevant documents that are not among them.
    """

    scores: Float64
    odds: Float64
    right: Mapping[int, float]
    missed: Sequence[float]

    def ndcg(self, weight: float) -> float:
        """nDCG@10 with the head at some weight."""
        never = np.full(len(self.missed), -np.inf)
        scores = np.concatenate([self.scores + weight * self.odds, never])
        gains = {**self.right, **dict(enumerate(self.missed, start=len(self.scores)))}
        relevance = Relevance.of([gains], len(scores))
        return float(ndcg_at(rank_relevant(scores[None], relevance), NDCG_AT)[0])


def fit_head(
    ranked: Sequence[Ranked],
    fitted: NDArray[np.bool_],
    *,
    weights: Sequence[float] = LAMBDAS,
    seed: int = 0,
) -> dict[str, Any]:
    """Fits the head's weight on some queries and measures its gain on the others.

    A weight above 0 is taken only where its gain on the fitted queries is above chance itself: the
    best of many weights gains a little even where the head says nothing.

    Args:
        ranked: judged queries.
        fitted: (len(ranked),) which of them the weight is fitted on.
        weights: that are tried.
        seed: of the bootstrap.

    Returns:
        Plain JSON types: `lambda`, `k`, `candidates`, `without` (mean nDCG of the others without
        the head), `gain` (paired interval on them) and `fitted`, `reported` (queries); None for
        what no query tells.
    """
    values = {weight: np.array([one.ndcg(weight) for one in ranked]) for weight in weights}
    base, chosen = values[0.0], 0.0
    report: dict[str, Any] = {"fitted": int(fitted.sum()), "reported": int((~fitted).sum())}
    if fitted.any():
        best = max(weights, key=lambda weight: (values[weight][fitted].mean(), -weight))
        gain = paired_bootstrap(values[best][fitted], base[fitted], seed=seed)
        chosen = best if gain.low > 0 else 0.0
    report |= {"lambda": chosen, "k": NDCG_AT, "candidates": CANDIDATES}
    if fitted.all():
        return {**report, "without": None, "gain": None}
    others = ~fitted
    difference = paired_bootstrap(values[chosen][others], base[others], seed=seed)
    without = bootstrap(base[others], seed=seed).mean
    return {**report, "without": without, "gain": difference.to_json()}
