"""Chooses the shape of `fitted_vectors` whose recall@C of first and fused vector is a given one.

Keys are tried on a random sample of the documents, which is quick, and the best is then moved on
all of them: what is fitted is what a search of the whole corpus finds. Which documents are the best
at the largest budget depends on the first vector, one of the 64, so they are looked up anew
whenever its share has moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from shapes.fitted_vectors import (
    BLOCK,
    Block,
    Key,
    Queries,
    Shape,
    later_vectors,
    make_block,
    make_queries,
)

CUTS = (100, 1000, 4000)
TOP = 10
NAMES = ("first", "fused")
# one document in so many, at random, stands for the others while keys are tried
SAMPLE_STEP = 10
# by either, the latent and the first vector: who may be among the best
NEAREST = 300
QUERIES_TO_FIT = 100
SPREADS = (0.6, 1.0, 1.5)
# a sum of six squares: recalls within some two hundredths, as near as a hundred queries tell
NEAR_ENOUGH = 0.002
SHARES = np.linspace(0.1, 0.98, 45)
POOR = np.linspace(0.0, 0.4, 9)
_STEPS = ((0.02, 0.05), (0.01, 0.02), (0.005, 0.01))
_ROUNDS = 3


@dataclass(frozen=True)
class Fitted:
    """A shape, and recall@C of either key: wanted and found, in the order of `CUTS`."""

    shape: Shape
    wanted: dict[str, Sequence[float]]
    reached: dict[str, Sequence[float]]

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Fitted:
        """What `dataclasses.asdict` made of one."""
        sizes = dict(kept["shape"])
        keys = {name: Key(**sizes.pop(name)) for name in NAMES}
        return cls(Shape(**sizes, **keys), kept["wanted"], kept["reached"])

    def lines(self) -> list[list[str]]:
        """A table of both."""
        lines = [["recall@C against all vectors", *map(str, CUTS)]]
        for name in self.wanted:
            lines.append([f"{name}, wanted", *(f"{value:.3f}" for value in self.wanted[name])])
            lines.append([f"{name}, fitted", *(f"{value:.3f}" for value in self.reached[name])])
        return lines


def fit(shape: Shape, wanted: dict[str, Sequence[float]]) -> Fitted:
    """Chooses spread and both keys so that recall@C is as wanted, or as near as can be.

    Args:
        shape: what is not chosen.
        wanted: `first` and `fused` -> recall@C of the best 10 at the largest budget, at `CUTS`.
    """
    best: tuple[float, Fitted] | None = None
    for spread in SPREADS:
        fitted = _Trial.of(replace(shape, spread=spread)).fitted(wanted)
        error = sum(_distance(fitted.reached[name], wanted[name]) for name in wanted)
        print(f"spread {spread}: {fitted.shape.first}, {fitted.shape.fused}, error {error:.5f}")
        if best is None or error < best[0]:
            best = error, fitted
        if error < NEAR_ENOUGH:
            break
    assert best is not None
    return best[1]


def _distance(reached: Sequence[float], wanted: Sequence[float]) -> float:
    return float(np.sum(np.square(np.subtract(reached, wanted))))


class _Later:
    """Best match of each query vector among a document's later vectors, made once per document."""

    def __init__(self, shape: Shape, queries: Queries, latents: np.ndarray) -> None:
        self._shape = shape
        self._queries = queries
        self._latents = latents
        self._known: dict[tuple[int, int], np.ndarray] = {}

    def of(self, query: int, row: int) -> np.ndarray:
        """(R_q,) of one query and one document."""
        found = self._known.get((query, row))
        if found is None:
            vectors = later_vectors(self._shape, row, self._latents[row])
            found = (self._queries.vectors[query] @ vectors.T).max(axis=1)
            self._known[query, row] = found
        return found


@dataclass(frozen=True)
class _Trial:
    """Everything about a corpus of one spread that a recall takes.

    Attributes:
        shape: of the corpus.
        queries: B.
        block: latents, noise and draws of all N documents.
        parts: by key: (2, B, N) inner products of the queries with latents and noise.
        overlap: by key: (N,) inner products of latents and noise.
        sample: rows that stand for all.
        sampled: `parts` of these rows.
        later: of the queries.
    """

    shape: Shape
    queries: Queries
    block: Block
    parts: dict[str, np.ndarray]
    overlap: dict[str, np.ndarray]
    sample: np.ndarray
    sampled: dict[str, np.ndarray]
    later: _Later

    @classmethod
    def of(cls, shape: Shape) -> _Trial:
        queries = make_queries(shape, QUERIES_TO_FIT, seed=0)
        blocks = [make_block(shape, number) for number in range(shape.num_documents // BLOCK)]
        block = Block.join(blocks)
        sides = {"first": queries.vectors[:, 0], "fused": queries.fused}
        parts = {
            name: np.stack([side @ block.latent.T, side @ block.noise[name].T])
            for name, side in sides.items()
        }
        overlap = {name: np.einsum("nd,nd->n", block.latent, block.noise[name]) for name in NAMES}
        random = np.random.default_rng(shape.seed)
        count = shape.num_documents // SAMPLE_STEP
        sample = np.sort(random.choice(shape.num_documents, count, replace=False))
        later = _Later(shape, queries, block.latent)
        sampled = {name: parts[name][:, :, sample] for name in NAMES}
        return cls(shape, queries, block, parts, overlap, sample, sampled, later)

    def fitted(self, wanted: dict[str, Sequence[float]]) -> Fitted:
        """Both keys; the first again until the best documents stay as they are."""
        first = self.shape.first
        best = self.best_rows(first)
        for _ in range(_ROUNDS):
            first = self.nearest("first", best, wanted["first"])
            before, best = best, self.best_rows(first)
            if np.array_equal(before, best):
                break
        first, first_recalls = self.moved("first", first, best, wanted["first"])
        best = self.best_rows(first)
        fused = self.nearest("fused", best, wanted["fused"])
        fused, fused_recalls = self.moved("fused", fused, best, wanted["fused"])
        first_recalls = self.recalls("first", first, best)
        shape = replace(self.shape, first=first, fused=fused)
        return Fitted(shape, wanted, {"first": first_recalls, "fused": fused_recalls})

    def best_rows(self, first: Key) -> np.ndarray:
        """(B, TOP) the best documents at the largest budget, given the key of the first vectors."""
        chosen = []
        latent_share, noise_share = self.shares("first", first)
        for number, query in enumerate(self.queries.vectors):
            by_latent = self.block.latent @ query.mean(axis=0)
            latent, noise = self.parts["first"][:, number]
            by_first = latent_share * latent + noise_share * noise
            near = np.union1d(_largest(by_latent, NEAREST), _largest(by_first, NEAREST))
            own = self.block.take(near).vectors("first", first)
            later = np.stack([self.later.of(number, row) for row in near.tolist()])
            scores = np.maximum(later, own @ query.T).mean(axis=1)
            chosen.append(near[np.argsort(-scores, kind="stable")[:TOP]])
        return np.stack(chosen)

    def nearest(self, name: str, best: np.ndarray, wanted: Sequence[float]) -> Key:
        """The key whose recalls come nearest on the sample: every third share, then around."""
        key = self._best_of(name, product(SHARES[::3], POOR[::2]), best, wanted, sampled=True)[0]
        shares = SHARES[np.abs(SHARES - key.share) < 0.05]
        poor = POOR[np.abs(POOR - key.poor) < 0.06]
        return self._best_of(name, product(shares, poor), best, wanted, sampled=True)[0]

    def moved(
        self, name: str, key: Key, best: np.ndarray, wanted: Sequence[float]
    ) -> tuple[Key, list[float]]:
        """A key moved in ever smaller steps while recalls come nearer, on all documents."""
        recalls = self.recalls(name, key, best)
        for share, poor in _STEPS:
            while True:
                around = product((key.share - share, key.share, key.share + share),
                                 (key.poor - poor, key.poor, key.poor + poor))  # fmt: skip
                allowed = [(s, p) for s, p in around if 0 < s < 1 and 0 <= p <= 1]
                found, recalls = self._best_of(name, allowed, best, wanted, sampled=False)
                if found == key:
                    break
                key = found
        return key, recalls

    def _best_of(
        self,
        name: str,
        keys: Iterable[tuple[float, float]],
        best: np.ndarray,
        wanted: Sequence[float],
        *,
        sampled: bool,
    ) -> tuple[Key, list[float]]:
        tried = []
        for share, poor in keys:
            key = Key(float(share), float(poor))
            recalls = self.recalls(name, key, best, sampled=sampled)
            tried.append((_distance(recalls, wanted), key, recalls))
        _, key, recalls = min(tried, key=lambda one: one[0])
        return key, recalls

    def recalls(
        self, name: str, key: Key, best: np.ndarray, *, sampled: bool = False
    ) -> list[float]:
        """Recall@C at `CUTS` of the best documents."""
        latent_share, noise_share = self.shares(name, key)
        rows = self.sample if sampled else slice(None)
        shares = latent_share[rows], noise_share[rows]
        others = self.sampled[name] if sampled else self.parts[name]
        ranks = []
        for number, own_rows in enumerate(best):
            latent, noise = self.parts[name][:, number, own_rows]
            own = latent_share[own_rows] * latent + noise_share[own_rows] * noise
            scores = shares[0] * others[0, number] + shares[1] * others[1, number]
            above = np.sort(scores[scores > own.min()])
            rank = len(above) - np.searchsorted(above, own, side="right")
            ranks.append(rank * (SAMPLE_STEP if sampled else 1))
        return [float((np.stack(ranks) < cut).mean()) for cut in CUTS]

    def shares(self, name: str, key: Key) -> tuple[np.ndarray, np.ndarray]:
        """(N,) each: of latent and noise in the unit vectors that `mixed` makes of them."""
        share = key.shares(self.block.draws[name])
        rest = np.sqrt(1 - np.square(share))
        # the two together are not of length 1
        length = np.sqrt(1 + 2 * share * rest * self.overlap[name])
        return share / length, rest / length


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    return np.argpartition(-values, min(count, len(values) - 1))[:count]
