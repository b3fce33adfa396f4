"""The deployment that turns queries into vectors, several at a time.

Each query is decoded and tokenised on its own, so a broken image fails alone; only good rows share
a batch. An adapter: loads the model, converts, knows no HTTP and no index.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ray import serve

from rematch_ray.data.item import Item
from rematch_ray.serve.backend import EncodedQuery
from rematch_ray.serve.settings import EncoderSettings

if TYPE_CHECKING:
    from rematch_ray.data.rows import EncodedRow
    from rematch_ray.model.embedder import Embedder


class Encoder:
    """Replica that holds one model.

    Args:
        model: export directory.
        settings: threads and batching.
        max_image_pixels: larger query images are refused before they are decoded.
    """

    def __init__(self, model: str, settings: EncoderSettings, max_image_pixels: int) -> None:
        import torch

        from rematch_ray.model.embedder import Embedder

        torch.set_num_threads(settings.num_threads)
        device = "cuda" if settings.num_gpus and torch.cuda.is_available() else "cpu"
        self._model = Embedder.from_pretrained(model, device=device)
        self._model.eval()
        self._model.row_encoder.max_image_pixels = max_image_pixels
        self._embed.set_max_batch_size(settings.max_batch_size)
        self._embed.set_batch_wait_timeout_s(settings.batch_wait_s)
        self._model.encode_query("warm-up")  # the first forward pass is not a caller's to wait for

    async def encode(
        self, query: Item, instruction: str | None, side: str = "query"
    ) -> EncodedQuery:
        """Vectors (1, R, D) of one query and the instruction that was used.

        Raises:
            UserError: an image cannot be decoded or is too large.
        """
        used = self.default_instruction() if instruction is None else instruction
        row = await asyncio.to_thread(self._model.row_encoder.encode, query, "query", used)
        return replace(await self._embed(row), instruction=used)

    @serve.batch
    async def _embed(self, rows: list[EncodedRow]) -> list[EncodedQuery]:
        return await asyncio.to_thread(embed_rows, self._model, rows)

    def default_instruction(self) -> str:
        """The instruction of a query that names none."""
        return self._model.instruction_for("query")

    def identity(self) -> Mapping[str, Any]:
        """The identity of the loaded model."""
        assert self._model.identity is not None, "an export always has an identity"
        return self._model.identity.to_json()


def embed_rows(model: Embedder, rows: list[EncodedRow]) -> list[EncodedQuery]:
    """Embeds rows together; one EncodedQuery of a single row each."""
    embeddings = model.embed(model.batch(rows, "query"), "query").cpu()
    vectors = embeddings.vectors.float().numpy()
    fused = None if embeddings.fused is None else embeddings.fused.float().numpy()
    return [
        EncodedQuery(vectors[row : row + 1], None if fused is None else fused[row : row + 1])
        for row in range(len(rows))
    ]
