"""Prefix-nested synthetic vectors of any number of documents, made by block and never stored twice.

Documents lie around centres: a latent is a centre with some spread, and every vector of a document
is a share of its latent and noise of its own. The first vector and the fused one have shares of
their own, smaller in poor documents; `fitting` chooses them so that recall@C of either against all
vectors is that of given vectors. A query is made from the latent of a document, its only right one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from rematch_ray.index.shards import EmbeddingBatch, EmbeddingShards

BLOCK = 1000
PER_CENTRE = 100
REST_SHARE, QUERY_SHARE = 0.5, 0.8
# a fused vector is made from sixteen: less noise is left in it
QUERY_FUSED_SHARE = 0.95
POOR_FACTOR = 0.4
LADDER = ("1x1", "2x4", "4x8", "8x16", "16x64")


@dataclass(frozen=True)
class Key:
    """How a vector of its own kind follows the latent.

    Args:
        share: of the latent in the vector, a cosine.
        poor: share of documents in which it is `POOR_FACTOR` of that.
    """

    share: float = 0.8
    poor: float = 0.0

    def shares(self, draws: np.ndarray) -> np.ndarray:
        """The share in each document, from uniform draws."""
        return np.where(draws < self.poor, POOR_FACTOR * self.share, self.share).astype(np.float32)


@dataclass(frozen=True)
class Shape:
    """What the vectors are.

    Args:
        num_documents: a multiple of `BLOCK`.
        num_vectors: R of a document.
        num_query_vectors: R of a query.
        dim: D, and F of the fused vector.
        spread: length of what sets a latent off from its centre of length 1.
        first: of the first vector.
        fused: of the fused vector.
        seed: of everything.
    """

    num_documents: int
    num_vectors: int = 64
    num_query_vectors: int = 16
    dim: int = 128
    spread: float = 1.0
    first: Key = field(default_factory=Key)
    fused: Key = field(default_factory=Key)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_documents % BLOCK:
            raise ValueError(f"num_documents {self.num_documents} is no multiple of {BLOCK}")


@dataclass(frozen=True)
class Block:
    """What some documents are made of: latents, unit noise of either key, and uniform draws."""

    latent: np.ndarray
    noise: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]

    def vectors(self, name: str, key: Key) -> np.ndarray:
        """(N, D) vectors of one key."""
        return mixed(self.latent, self.noise[name], key.shares(self.draws[name])[:, None])

    def take(self, rows: np.ndarray) -> Block:
        """Some of them."""
        return Block(
            self.latent[rows],
            {name: noise[rows] for name, noise in self.noise.items()},
            {name: draws[rows] for name, draws in self.draws.items()},
        )

    @classmethod
    def join(cls, parts: Sequence[Block]) -> Block:
        """Several as one."""
        return cls(
            np.concatenate([part.latent for part in parts]),
            {name: np.concatenate([part.noise[name] for part in parts]) for name in parts[0].noise},
            {name: np.concatenate([part.draws[name] for part in parts]) for name in parts[0].draws},
        )


def mixed(latent: np.ndarray, noise: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    """Unit vectors of a share of the latent and of noise."""
    return _normal(share * latent + np.sqrt(1 - np.square(share)) * noise)


def make_block(shape: Shape, number: int) -> Block:
    """The documents [number x BLOCK, (number + 1) x BLOCK), but for their later vectors."""
    random = np.random.default_rng([shape.seed, 1, number])
    rows = np.arange(number * BLOCK, (number + 1) * BLOCK)
    centre = _centres(shape.seed, shape.num_documents // PER_CENTRE, shape.dim)
    # neighbours lie far apart on disk, as in a corpus that comes in no order
    own = centre[rows % len(centre)]
    latent = _normal(own + shape.spread * _unit(random, (BLOCK, shape.dim)))
    names = ("first", "fused")
    noise = {name: _unit(random, (BLOCK, shape.dim)) for name in names}
    return Block(latent, noise, {name: random.random(BLOCK, np.float32) for name in names})


def later_vectors(shape: Shape, row: int, latent: np.ndarray) -> np.ndarray:
    """(R - 1, D): the vectors after the first of one document."""
    random = np.random.default_rng([shape.seed, 2, row])
    return mixed(latent, _unit(random, (shape.num_vectors - 1, shape.dim)), REST_SHARE)


@dataclass(frozen=True)
class Queries:
    """Queries as a search takes them, and the row that answers each."""

    vectors: np.ndarray
    fused: np.ndarray
    answers: np.ndarray

    def __getitem__(self, rows: slice) -> Queries:
        return Queries(self.vectors[rows], self.fused[rows], self.answers[rows])


def make_queries(shape: Shape, count: int, *, seed: int) -> Queries:
    """Queries from documents' latents and noise; other seeds ask for other documents."""
    random = np.random.default_rng([shape.seed, 3, seed])
    answers = np.sort(random.choice(shape.num_documents, count, replace=False))
    latents = np.stack(
        [make_block(shape, row // BLOCK).latent[row % BLOCK] for row in answers.tolist()]
    )
    noise = _unit(random, (count, shape.num_query_vectors + 1, shape.dim))
    vectors = mixed(latents[:, None], noise[:, :-1], QUERY_SHARE)
    fused = mixed(latents, noise[:, -1], QUERY_FUSED_SHARE)
    return Queries(vectors, fused, answers)


class NestedShards(EmbeddingShards):
    """The documents of a shape in the place of embedding shards: what is read is made."""

    @classmethod
    def of(cls, shape: Shape) -> NestedShards:
        """All documents, ids `document-<row>`."""
        manifest = {
            "identity": {"digest": f"nested {shape}", "name": "nested", "ladder": list(LADDER)},
            "side": "document",
            "R": shape.num_vectors,
            "D": shape.dim,
            "F": shape.dim,
            "embedded": shape.num_documents,
            "shards": [],
            "shape": shape,
        }
        return cls(Path("nested"), manifest)

    def batches(self, rows: int = BLOCK) -> Iterator[EmbeddingBatch]:
        """The documents in row order; batches have `BLOCK` rows, whatever is asked."""
        shape: Shape = self.manifest["shape"]
        for number in range(shape.num_documents // BLOCK):
            # one of its own each: a build holds several
            vectors = np.empty((BLOCK, shape.num_vectors, shape.dim), np.float16)
            block = make_block(shape, number)
            start = number * BLOCK
            vectors[:, 0] = block.vectors("first", shape.first)
            for place in range(BLOCK):
                vectors[place, 1:] = later_vectors(shape, start + place, block.latent[place])
            yield EmbeddingBatch(
                ids=[f"document-{row}" for row in range(start, start + BLOCK)],
                vectors=vectors,
                fused=block.vectors("fused", shape.fused).astype(np.float16),
                sources=["nested"] * BLOCK,
                payloads=[{"name": f"document {row}"} for row in range(start, start + BLOCK)],
            )


@lru_cache(maxsize=2)
def _centres(seed: int, count: int, dim: int) -> np.ndarray:
    return _unit(np.random.default_rng([seed, 0]), (max(1, count), dim))


def _unit(random: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    return _normal(random.standard_normal(tuple(shape), dtype=np.float32))


def _normal(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
