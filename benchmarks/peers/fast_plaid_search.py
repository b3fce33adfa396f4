"""fast-plaid on one thread: centroids, 4-bit residuals, its own late interaction. Width = probes.

Its compiled part is made for one release of torch (1.7.0.2110: torch 2.11) and crashes beside
another, so it runs only in an environment of its own; `check` refuses before that happens.
"""

from __future__ import annotations

from importlib.metadata import requires
from pathlib import Path

import torch
from arms.searching import TOP_K, SearchArm
from shapes.search_task import Query

from rematch_ray.index.shards import EmbeddingShards


def check() -> None:
    """Refuses a torch that fast-plaid was not compiled for.

    Raises:
        ImportError: names both.
    """
    [needed] = [line for line in requires("fast-plaid") or [] if line.startswith("torch==")]
    if torch.__version__.split("+")[0] != needed.removeprefix("torch=="):
        raise ImportError(f"fast-plaid needs {needed}, this is torch {torch.__version__}")


check()
from fast_plaid import search  # noqa: E402 -- crashes without the check


class FastPlaidArm(SearchArm):
    """An index on disk, mapped."""

    name = "fast-plaid"
    widths = (4, 8, 16, 32, 64)

    def build(self, documents: EmbeddingShards, folder: Path) -> None:
        """Holds all vectors in float32 while it builds."""
        self._index = search.FastPlaid(index=str(folder), device="cpu", low_memory=False)
        self._ids: list[str] = []
        vectors: list[torch.Tensor] = []
        for batch in documents.batches():
            self._ids += batch.ids
            vectors += list(torch.from_numpy(batch.vectors).float())
        self._index.create(documents_embeddings=vectors)

    def search(self, query: Query, width: int) -> list[str]:
        """Probes and scores, 4,096 documents in full at most."""
        [found] = self._index.search(
            queries_embeddings=torch.from_numpy(query.vectors).float(),
            top_k=TOP_K,
            n_ivf_probe=width,
            n_full_scores=4096,
        )
        return [self._ids[row] for row, _ in found]
