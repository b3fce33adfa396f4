"""Documents and queries of nested vectors, with a tunable agreement between first and full score.

A document has a gist, near its topic's, and three aspects, each the gist mixed with a detail out of
its topic's stock. Its first vector is the gist, the next three are the aspects, all later ones
variants of these. A query asks for one aspect of one document, a little for another: its first
vector is blurred between gist and aspect, later ones are blurred aspects. The more of the gist an
aspect has (`agreement`), the more the first vectors alone say about the score of all. The fused
vector is the normalised mean of the first sixteen, as in training, made worse by some noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

BLOCK = 250
_FUSED_OF = 16
_DETAILS_PER_TOPIC = 64
_ASPECTS = 3
_VECTORS = 64


@dataclass(frozen=True)
class Block:
    """Some documents: their first row, `vectors` (n, R, D) float16, `fused` (n, D) float16."""

    start: int
    vectors: NDArray[np.float16]
    fused: NDArray[np.float16]


class NestedVectors:
    """A corpus that is made anew, block by block, whenever it is read.

    Args:
        num_documents: N.
        dim: D.
        agreement: share of the gist in a document's aspects, 0..1.
        blur: noise of a query vector over its signal.
        fused_noise: noise of a fused vector over its signal, on both sides.
        documents_per_topic: how crowded a topic is.
        seed: of everything.
    """

    def __init__(
        self,
        num_documents: int,
        *,
        dim: int = 128,
        agreement: float = 0.5,
        blur: float = 1.3,
        fused_noise: float = 0.8,
        documents_per_topic: int = 200,
        seed: int = 0,
    ) -> None:
        self.num_documents, self.dim = num_documents, dim
        self._agreement, self._blur, self._seed = agreement, blur, seed
        self._fused_noise = fused_noise
        draw = np.random.default_rng([seed, 0])
        num_topics = max(1, num_documents // documents_per_topic)
        self._topics = _unit(draw.standard_normal((num_topics, dim)))
        stock = draw.standard_normal((num_topics, _DETAILS_PER_TOPIC, dim))
        self._details = _unit(stock)

    def blocks(self, num_vectors: int = 64) -> Iterator[Block]:
        """The corpus in row order; the same vectors at every reading."""
        for start in range(0, self.num_documents, BLOCK):
            count = min(BLOCK, self.num_documents - start)
            vectors = self._documents(start)[:count]
            fused = self._fuse(vectors, np.random.default_rng([self._seed, 3, start]))
            yield Block(start, vectors[:, :num_vectors].astype(np.float16), fused.astype("f2"))

    def queries(self, count: int, *, num_vectors: int = 16) -> tuple[Float32, Float32]:
        """Vectors (count, num_vectors, D) and fused (count, D) of queries from drawn documents."""
        draw = np.random.default_rng([self._seed, 2])
        rows = draw.choice(self.num_documents, count, replace=False)
        vectors = np.empty((count, num_vectors, self.dim), np.float32)
        for position, row in enumerate(rows.tolist()):
            document = self._documents(row - row % BLOCK)[row % BLOCK]
            one, other = 1 + draw.permutation(_ASPECTS)[:2]
            vectors[position, 0] = document[0] + document[one]
            wanted = np.where(np.arange(1, num_vectors) % 4, one, other)
            vectors[position, 1:] = document[wanted]
        noise = draw.standard_normal(vectors.shape) * self._blur / np.sqrt(self.dim)
        vectors = _unit(_unit(vectors) + noise)
        return vectors, self._fuse(vectors, draw)

    def _fuse(self, vectors: Float32, draw: np.random.Generator) -> Float32:
        fused = _unit(vectors[:, :_FUSED_OF].mean(axis=1))
        noise = draw.standard_normal(fused.shape) * self._fused_noise / np.sqrt(self.dim)
        return _unit(fused + noise)

    def _documents(self, start: int) -> Float32:
        draw = np.random.default_rng([self._seed, 1, start])
        topics = draw.integers(len(self._topics), size=BLOCK)
        gist = _unit(self._topics[topics] + 0.8 * _unit(draw.standard_normal((BLOCK, self.dim))))
        chosen = draw.integers(_DETAILS_PER_TOPIC, size=(BLOCK, _ASPECTS))
        own = _unit(draw.standard_normal((BLOCK, _ASPECTS, self.dim)))
        details = _unit(self._details[topics[:, None], chosen] + 0.7 * own)
        aspects = _mix(gist[:, None], details, self._agreement)
        later = np.resize(np.arange(_ASPECTS), _VECTORS - 1 - _ASPECTS)
        noise = draw.standard_normal((BLOCK, len(later), self.dim), dtype=np.float32)
        variants = _unit(aspects[:, later] + 0.5 * noise / np.float32(np.sqrt(self.dim)))
        return np.concatenate([gist[:, None], aspects, variants], axis=1)


def _mix(one: Float32, other: Float32, share: float) -> Float32:
    return _unit(share**0.5 * one + (1 - share) ** 0.5 * other)


def _unit(vectors: NDArray[np.floating]) -> Float32:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / lengths, dtype=np.float32)
