"""The deployment that turns queries and documents into vectors, several at a time.

Each item is decoded and tokenised on its own, so a broken image fails alone; only good rows share a
batch, which is bounded by the work in it. An adapter: loads the model, converts, knows no HTTP and
no index.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from ray import serve

from rematch_ray.data.item import Item
from rematch_ray.errors import UserError
from rematch_ray.serve.backend import EncodedQuery, Float32, Side
from rematch_ray.serve.batching import BatchSize, Queued, groups_of
from rematch_ray.serve.settings import EncoderSettings

if TYPE_CHECKING:
    from rematch_ray.model.embedder import Embedder

# pairs of the matching head per forward pass
MATCH_CHUNK = 64
# characters that are tokenised in a tenth of a millisecond or so
_SHORT_TEXT = 500
Answer = TypeVar("Answer")
logger = logging.getLogger(__name__)


class Encoder:
    """Replica that holds one model.

    Args:
        model: export directory.
        settings: threads and batching.
        max_image_pixels: larger images are refused before they are decoded.
    """

    def __init__(self, model: str, settings: EncoderSettings, max_image_pixels: int) -> None:
        import torch

        from rematch_ray.model.embedder import Embedder
        from rematch_ray.model.heap import keep_freed_memory

        torch.set_num_threads(settings.num_threads)
        # a thread of its own kind: how many threads a pass takes is a setting of who starts it
        self._passes = _pass_thread("embed", settings.num_threads)
        self._matching = _pass_thread("match", settings.num_threads)
        # passes run in threads, whose heaps would give large blocks back after each
        keep_freed_memory()
        device = "cuda" if settings.num_gpus and torch.cuda.is_available() else "cpu"
        self._model = Embedder.from_pretrained(model, device=device)
        self._model.eval()
        self._model.row_encoder.max_image_pixels = max_image_pixels
        # made here, not by the decorator on the class: the size of a batch depends on the settings
        self._embed = serve.batch(
            max_batch_size=settings.max_batch_size,
            batch_wait_timeout_s=settings.batch_wait_s,
            batch_size_fn=BatchSize(settings.max_batch_size, settings.max_batch_tokens),
        )(self._embed_queued)
        self._model.encode_query("warm-up")  # the first forward pass is not a caller's to wait for

    async def encode(
        self, item: Item, instruction: str | None, side: Side = "query"
    ) -> EncodedQuery:
        """Vectors (1, R, D) of one item, the instruction that was used, and the tokens read.

        Raises:
            UserError: an image cannot be decoded or is too large.
        """
        used = self.default_instruction(side) if instruction is None else instruction
        encode = self._model.row_encoder.encode
        if item.images or len(item.text) > _SHORT_TEXT:
            row = await asyncio.to_thread(encode, item, side, used)
        else:
            # tokenising takes less than a thread's turn
            row = encode(item, side, used)
        queued = Queued(row, side, self._model.num_vectors(side))
        return replace(await self._embed(queued), instruction=used)

    async def match(self, query_fused: Float32, document_fused: Float32) -> Float32:
        """The matching head's answer, from stored fused vectors alone.

        Args:
            query_fused: (1, F).
            document_fused: (N, F).

        Returns:
            (N,) float32, log p(Yes) - log p(No).

        Raises:
            UserError: the model has no matching head, or vectors of another width.
        """
        return await _run(self._matching, match_fused, self._model, query_fused, document_fused)

    async def match_raw(
        self,
        query: Item,
        instruction: str | None,
        documents: Sequence[Item],
        document_instruction: str | None = None,
    ) -> list[float | None]:
        """The matching head's answer over a raw query and raw documents.

        Args:
            query: as it was sent.
            instruction: of the query; None takes the default.
            documents: N items.
            document_instruction: that the documents were embedded with; None takes the default.

        Returns:
            log p(Yes) - log p(No) of each document; None where it cannot be read.

        Raises:
            UserError: the model has no matching head, or the query cannot be read.
        """
        return await _run(
            self._matching,
            match_raw,
            self._model,
            query,
            instruction,
            documents,
            document_instruction,
        )

    async def _embed_queued(self, queued: list[Queued]) -> list[EncodedQuery]:
        return await _run(self._passes, embed_queued, self._model, queued)

    def default_instruction(self, side: Side = "query") -> str:
        """The instruction of an item that names none."""
        return self._model.instruction_for(side)

    def identity(self) -> Mapping[str, Any]:
        """The identity of the loaded model."""
        assert self._model.identity is not None, "an export always has an identity"
        return self._model.identity.to_json()


def _pass_thread(name: str, num_threads: int) -> ThreadPoolExecutor:
    """One thread for forward passes that take so many threads."""
    import torch

    # torch's setting holds for the thread that makes it; others have what the environment says
    return ThreadPoolExecutor(
        1, thread_name_prefix=name, initializer=torch.set_num_threads, initargs=(num_threads,)
    )


async def _run(threads: ThreadPoolExecutor, work: Callable[..., Answer], *values: Any) -> Answer:
    return await asyncio.get_running_loop().run_in_executor(threads, work, *values)


def embed_queued(model: Embedder, queued: list[Queued]) -> list[EncodedQuery]:
    """Embeds a batch of either side; one EncodedQuery of a single row each, in their order."""
    answers: dict[int, EncodedQuery] = {}
    digest = "" if model.identity is None else model.identity.digest
    for places in groups_of(queued):
        rows = [queued[place].row for place in places]
        side = queued[places[0]].side
        embeddings = model.embed(model.batch(rows, side), side).cpu()
        vectors = embeddings.vectors.float().numpy()
        fused = None if embeddings.fused is None else embeddings.fused.float().numpy()
        for at, place in enumerate(places):
            answers[place] = EncodedQuery(
                vectors[at : at + 1],
                None if fused is None else fused[at : at + 1],
                tokens=len(rows[at].input_ids),
                model=digest,
            )
    return [answers[place] for place in range(len(queued))]


def match_fused(model: Embedder, query_fused: Float32, document_fused: Float32) -> Float32:
    """As `Encoder.match`, on a model in this process."""
    import torch

    width = model.fused_dim
    if width is not None and (
        query_fused.shape != (1, width) or document_fused.shape[1:] != (width,)
    ):
        raise UserError(
            f"fused vectors of shapes {query_fused.shape} and {document_fused.shape} do not fit "
            f"this model: it needs (1, {width}) and (documents, {width})"
        )
    if not len(document_fused):
        return np.zeros(0, np.float32)
    query = torch.from_numpy(np.array(query_fused, np.float32)).to(model.device)
    documents = torch.from_numpy(np.array(document_fused, np.float32)).to(model.device)
    return model.match(query, documents[None], chunk=MATCH_CHUNK)[0].float().cpu().numpy()


def match_raw(
    model: Embedder,
    query: Item,
    instruction: str | None,
    documents: Sequence[Item],
    document_instruction: str | None = None,
) -> list[float | None]:
    """As `Encoder.match_raw`, on a model in this process."""
    from rematch_ray.model.raw_matching import raw_log_odds

    encoder = model.row_encoder
    used = model.instruction_for("query") if instruction is None else instruction
    asked = encoder.encode(query, "query", used)
    used = model.instruction_for("document")
    used = used if document_instruction is None else document_instruction
    rows, places = [], []
    for place, document in enumerate(documents):
        try:
            rows.append(encoder.encode(document, "document", used))
        except UserError as broken:
            logger.warning("left out of the matching: %s", broken)
        else:
            places.append(place)
    odds: list[float | None] = [None] * len(documents)
    for place, odd in zip(places, raw_log_odds(model, asked, rows).tolist(), strict=True):
        odds[place] = odd
    return odds
