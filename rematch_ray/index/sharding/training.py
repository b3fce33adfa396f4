"""One coarse quantiser for all shards of a build, trained on a sample of the embeddings.

    .trained/<what of>/<key>.faiss    while the set is built; every shard takes a copy

A code then means the same in every shard, and nothing is trained N times. Shards too small for the
kind are scanned. Middle floor.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.build import IndexForm
from rematch_ray.index.coarse.entries import Entries
from rematch_ray.index.coarse.keys import prefix_planes
from rematch_ray.index.coarse.kinds import kind_for, training_rows
from rematch_ray.index.coarse.sizes import SCANS
from rematch_ray.index.coarse.training import SEED, CoarseWriter, train_coarse
from rematch_ray.index.shards import EmbeddingBatch, EmbeddingShards, open_parquet
from rematch_ray.scoring.budget import Ladder

# rows of a file that are drawn, of those that are read: fewer would read more for the same sample
_SHARE = 0.25
_NEEDS_NO_TRAINING = (*SCANS, "flat")


@dataclass(frozen=True)
class SharedTraining:
    """What is to be trained, or was, for all shards.

    Args:
        folder: where the trained files are.
        form: how the index is to be built.
        kind: of the lists of every shard, `auto` resolved: see `set_kind`.
        documents: of a shard, about.
    """

    folder: Path
    form: IndexForm
    kind: str
    documents: int

    @property
    def is_needed(self) -> bool:
        """Whether the lists are of a kind that is trained."""
        return self.kind not in _NEEDS_NO_TRAINING

    def file(self, key: str) -> Path:
        """The trained file of a key."""
        return self.folder / f"{key}.faiss"

    def run(self, embeddings: EmbeddingShards) -> None:
        """Trains a list for every key, unless an earlier run did.

        Raises:
            UserError: too few documents in a shard for the kind, or vectors that it cannot take.
        """
        if not self.is_needed or all(self.file(key).exists() for key in self.form.coarse_keys):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        stops = _stops(self.form)
        most = training_rows(self.kind, self.documents)
        sample = _sample(embeddings, stops, most)
        for key, vectors in sample.items():
            entries = Entries.of(vectors)
            partial = self.folder / f".{key}.{uuid.uuid4().hex[:8]}.unfinished"
            train_coarse(
                partial,
                entries.sample(training_rows(self.kind, self.documents * entries.width), SEED),
                kind=self.kind,
                num_entries=self.documents * entries.width,
            )
            os.replace(partial, self.file(key))

    def writer(self, shard: Path) -> CoarseWriter:
        """What writes the lists of a shard that is built.

        Args:
            shard: its directory, the lock held.
        """
        made = CoarseWriter(shard, keys=self.form.coarse_keys, kind=self.kind, scan_below=0)
        for key in self.form.coarse_keys if self.is_needed else ():
            made.adopt(key, self.file(key), kind=self.kind, documents=self.documents)
        return made


def set_kind(asked: str, num_documents: int) -> str:
    """The kind of coarse list that every shard of a set gets.

    By the documents of the whole set, not of a shard. Shards differ by chance, and candidates are
    cut by scores of all shards, which must be of one precision; a set has the kind of one index, so
    that the scans that are cut globally give the hits of one; and what a search costs in all, hence
    how many machines a load needs, is the sum over the shards, whatever their number. A search is
    answered N times sooner than the kind was chosen for: who would spend that on recall names
    another kind.

    >>> set_kind("auto", 250_000), set_kind("scan", 250_000)
    ('scan4', 'scan')
    """
    return kind_for(asked, num_documents)


def _stops(form: IndexForm) -> Mapping[str, int]:
    """How many vectors of a document each key holds; 0 stands for the fused one."""
    planes = Ladder.parse(form.ladder).planes()
    known = {"fused": 0, "first": 1, "prefix": planes[prefix_planes(planes) - 1][1]}
    return {key: known[key] for key in form.coarse_keys}


def _sample(
    embeddings: EmbeddingShards, stops: Mapping[str, int], wanted: int
) -> dict[str, NDArray[np.float16]]:
    """Vectors of about `wanted` documents by key, from files spread evenly over the directory."""
    draw = np.random.default_rng(SEED)
    held: dict[str, list[NDArray[np.float16]]] = {key: [] for key in stops}
    share = _SHARE if wanted < _SHARE * embeddings.num_rows else 1.0
    for batch in _spread_batches(embeddings, wanted / share):
        count = max(1, round(share * len(batch.ids)))
        rows = np.sort(draw.choice(len(batch.ids), count, replace=False))
        for key, stop in stops.items():
            vectors = batch.vectors[:, :stop] if stop else batch.fused
            assert vectors is not None
            held[key].append(vectors[rows].reshape(count, -1, vectors.shape[-1]))
    return {key: np.concatenate(parts) for key, parts in held.items()}


def _spread_batches(embeddings: EmbeddingShards, rows: float) -> Iterator[EmbeddingBatch]:
    """Batches of as many files as hold so many rows, evenly spread over the manifest."""
    files = embeddings.files
    count = min(len(files), max(1, round(rows * len(files) / embeddings.num_rows)))
    for place in np.unique(np.linspace(0, len(files) - 1, count).round().astype(int)):
        for batch in open_parquet(files[place]).iter_batches(batch_size=1024):
            if batch.num_rows:
                yield embeddings.read_batch(batch, files[place])
