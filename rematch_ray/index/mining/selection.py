"""Which ranked candidates become hard negatives of a training row: a pure choice.

Takes scores, references and modalities of the candidates of one row and what the row says; gives
positions, kinds and a reason for everything dropped. Knows nothing of vectors, files, indexes or
models. Middle floor.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from rematch_ray.config_file import Settings
from rematch_ray.index.mining.references import ANY_MODALITY, References, same

MINED, MINED_MODALITY = "mined", "mined:modality"
KINDS = (MINED, MINED_MODALITY)
REASONS = (
    "positive",
    "query",
    "duplicate",
    "near_duplicate",
    "too_similar_score",
    "modality",
    "rank",
    "not_drawn",
)


class MiningRules(Settings):
    """Which candidates of a row are admissible as negatives, and how many are taken."""

    per_row: int = Field(default=4, gt=0)
    """Negatives added to each row, as far as there are admissible ones."""
    ranks: tuple[int, int] = (1, 50)
    """First and last rank that is looked at, counted without the row's positives."""
    max_share: float | None = Field(default=0.95, gt=0, le=1)
    """A candidate above this share of the positive's score is a probable positive; null = off."""
    margin: float | None = Field(default=None, ge=0)
    """A candidate must also score so much less than the positive, absolutely; null = off."""
    max_similarity: float | None = Field(default=0.99, gt=0, le=1)
    """Cosine with a positive above which a candidate is a near duplicate of it; null = off."""
    modality_share: float = Field(default=0.5, ge=0, le=1)
    """Share of documents of the wrong modality ranked above the positive, in rows that name one."""
    content_from_rank: int | None = Field(default=None, gt=0)
    """First rank of the right modality in rows that name one; null = the first of `ranks`."""
    draw: Literal["random", "hardest"] = "random"
    """Among the admissible: drawn at random, or the best ranked."""
    seed: int = Field(default=0, ge=0)
    """Seed of every draw."""

    @model_validator(mode="after")
    def _ranks_are_ordered(self) -> Self:
        first, last = self.ranks
        if not 1 <= first <= last:
            raise ValueError(f"ranks {first}, {last} are not possible: first <= last, from 1")
        if self.content_from_rank is not None and not first <= self.content_from_rank <= last:
            raise ValueError(
                f"content_from_rank {self.content_from_rank} lies outside ranks {first}, {last}"
            )
        return self


@dataclass(frozen=True)
class Candidates:
    """Documents that a search found for one row, best first.

    Args:
        references: n documents.
        scores: (n,) float32, at the budget of the search.
        modality: (n,) int8.
        similarity: (n,) float32, highest cosine with a positive of the row.
    """

    references: References
    scores: NDArray[np.float32]
    modality: NDArray[np.int8]
    similarity: NDArray[np.float32]


@dataclass(frozen=True)
class RowFacts:
    """What one training row says.

    Args:
        positives: right documents of every row that asks the same.
        negatives: hard negatives that the row has.
        query_content: content of the query.
        positive_score: of the row's own positive, the lowest if there are several.
        target_modality: what is asked for; `ANY_MODALITY` when the row does not say.
    """

    positives: References
    negatives: References
    query_content: int
    positive_score: float
    target_modality: int = ANY_MODALITY


@dataclass(frozen=True)
class Selection:
    """The negatives of one row.

    Args:
        chosen: positions among the candidates, in order of rank.
        kinds: of each, `mined` or `mined:modality`.
        dropped: reason -> candidates not taken.
    """

    chosen: tuple[int, ...]
    kinds: tuple[str, ...]
    dropped: Mapping[str, int]


def select_negatives(
    candidates: Candidates, row: RowFacts, rules: MiningRules, draw: np.random.Generator
) -> Selection:
    """Chooses the hard negatives of one row.

    A candidate of the wrong modality above the positive is wrong for sure, so the limits on its
    score do not apply to it; of the right modality (or when none is named) a candidate that scores
    close to the positive is probably right, too, and dropped.

    Args:
        candidates: best first.
        row: what the row says.
        rules: what is admissible.
        draw: of this row alone.

    Returns:
        The negatives; they and the dropped are all candidates.

    Source: MM-Embed (arXiv 2411.02571), modality-aware negatives; the limit relative to the
    positive's score is NV-Retriever's (arXiv 2407.15831).
    """
    reasons = _reasons(candidates, row, rules)
    buckets: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for position, reason in enumerate(reasons):
        if reason in buckets:
            buckets[reason].append(position)
    taken: dict[int, str] = {}
    for kind, count in _counts(buckets, row, rules, draw).items():
        taken |= dict.fromkeys(_draw(buckets[kind], count, rules, draw), kind)
    dropped = Counter(
        "not_drawn" if reason in buckets else reason
        for position, reason in enumerate(reasons)
        if position not in taken
    )
    chosen = tuple(sorted(taken))
    return Selection(chosen, tuple(taken[position] for position in chosen), dict(dropped))


def score_limit(positive_score: float, rules: MiningRules) -> float:
    """The highest score that a negative may have.

    A share of a negative score would lie above it; the same distance below is meant.

    >>> score_limit(0.8, MiningRules(max_share=0.5)), score_limit(-0.8, MiningRules(max_share=0.5))
    (0.4, -1.2000000000000002)
    >>> score_limit(0.8, MiningRules(max_share=None, margin=0.25))
    0.55
    """
    limits = [math.inf]
    if rules.max_share is not None:
        limits.append(positive_score - (1 - rules.max_share) * abs(positive_score))
    if rules.margin is not None:
        limits.append(positive_score - rules.margin)
    return min(limits)


def _reasons(candidates: Candidates, row: RowFacts, rules: MiningRules) -> list[str]:
    """Per candidate: the kind it is admissible as, or why it is not; the first reason counts."""
    references = candidates.references
    is_positive = _any(same(references, row.positives))
    earlier = np.tril(same(references, references), -1) & ~is_positive[None]
    is_double = _any(same(references, row.negatives)) | _any(earlier)
    is_query = references.content == row.query_content
    rank = np.cumsum(~is_positive)
    limit = score_limit(row.positive_score, rules)
    first, last = rules.ranks
    names_modality = row.target_modality != ANY_MODALITY
    content_first = (rules.content_from_rank if names_modality else None) or first
    reasons = []
    for position, score in enumerate(candidates.scores.tolist()):
        wrong_modality = names_modality and candidates.modality[position] != row.target_modality
        if is_positive[position]:
            reasons.append("positive")
        elif rank[position] > last or (not wrong_modality and rank[position] < content_first):
            reasons.append("rank")
        elif is_query[position]:
            reasons.append("query")
        elif is_double[position]:
            reasons.append("duplicate")
        elif _is_near(candidates.similarity[position], rules):
            reasons.append("near_duplicate")
        elif wrong_modality:
            reasons.append(MINED_MODALITY if score > row.positive_score else "modality")
        else:
            reasons.append(MINED if score <= limit else "too_similar_score")
    return reasons


def _any(pairs: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(n,) whether any of a row of (n, m) is True."""
    return np.asarray(pairs.any(axis=1), dtype=np.bool_)


def _is_near(similarity: np.float32, rules: MiningRules) -> bool:
    return rules.max_similarity is not None and bool(similarity > rules.max_similarity)


def _counts(
    buckets: Mapping[str, list[int]],
    row: RowFacts,
    rules: MiningRules,
    draw: np.random.Generator,
) -> dict[str, int]:
    """How many of each kind: by share, rounded at random, the other kind filling what is short."""
    share = rules.modality_share if row.target_modality != ANY_MODALITY else 0.0
    wanted = rules.per_row * share
    modality = math.floor(wanted) + int(draw.random() < wanted - math.floor(wanted))
    available = {kind: len(found) for kind, found in buckets.items()}
    if share == 0:
        available[MINED_MODALITY] = 0
    elif share == 1:
        available[MINED] = 0
    modality = min(modality, available[MINED_MODALITY])
    content = min(rules.per_row - modality, available[MINED])
    modality = min(rules.per_row - content, available[MINED_MODALITY])
    return {MINED: content, MINED_MODALITY: modality}


def _draw(
    bucket: list[int], count: int, rules: MiningRules, draw: np.random.Generator
) -> list[int]:
    if rules.draw == "hardest" or count >= len(bucket):
        return bucket[:count]
    chosen = draw.choice(len(bucket), size=count, replace=False)
    return [bucket[position] for position in chosen]
