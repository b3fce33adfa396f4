"""The deployment that turns queries and documents into vectors, several at a time.

Each item is decoded and tokenised on its own, so a broken image fails alone; only good rows share a
batch, which is bounded by the work in it. An adapter: loads the model, converts, knows no HTTP and
no index.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from ray import serve

from rematch_ray.data.item import Item
from rematch_ray.errors import UserError
from rematch_ray.serve.backend import EncodedQuery, Float32, Side
from rematch_ray.serve.batching import BatchSize, Pack, Queued, groups_of, packs_of
from rematch_ray.serve.gathering import ToEncode
from rematch_ray.serve.settings import EncoderSettings

if TYPE_CHECKING:
    from rematch_ray.model.embedder import Embedder

# pairs of the matching head per forward pass
MATCH_CHUNK = 64
Answer = TypeVar("Answer")
logger = logging.getLogger(__name__)


class EncoderRecorder(Protocol):
    """See `metrics.Recorder`."""

    def encoded(self, size: int, seconds: float, side: str) -> None:
        """One pass: its rows, its time, its side."""
        ...


class Encoder:
    """Replica that holds one model.

    Args:
        model: export directory.
        settings: threads and batching.
        max_image_pixels: larger images are refused before they are decoded.
        record: makes what takes metrics; None takes none.
    """

    def __init__(
        self,
        model: str,
        settings: EncoderSettings,
        max_image_pixels: int,
        *,
        record: Callable[[], EncoderRecorder] | None = None,
    ) -> None:
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
        self._recorder = None if record is None else record()
        self._settings = settings
        # made here, not by the decorator on the class: the size of a batch depends on the settings
        self._embed = serve.batch(
            max_batch_size=settings.max_batch_size,
            batch_wait_timeout_s=settings.batch_wait_s,
            batch_size_fn=BatchSize(settings.max_batch_size, settings.max_batch_tokens),
        )(self._embed_packs)
        self._model.encode_query("warm-up")  # the first forward pass is not a caller's to wait for

    async def encode(
        self, item: Item, instruction: str | None, side: Side = "query"
    ) -> EncodedQuery:
        """Vectors (1, R, D) of one item, the instruction that was used, and the tokens read.

        Raises:
            UserError: an image cannot be decoded or is too large, or an instruction is too long.
        """
        used = self._instruction(ToEncode(item, instruction, side))
        asked = ToEncode(item, used, side)
        # what is short is tokenised in less than a thread's turn
        row = self._row(asked) if asked.is_short else await asyncio.to_thread(self._row, asked)
        [encoded] = await self._embed(Pack([row]))
        return replace(encoded, instruction=used)

    async def encode_many(self, asked: Sequence[ToEncode]) -> list[EncodedQuery | UserError]:
        """As `encode`, of several short texts; one that cannot be read fails alone."""
        read = await asyncio.to_thread(self._rows, asked)
        answers: list[Any] = [one if isinstance(one, UserError) else None for one in read]
        good = [place for place, one in enumerate(read) if isinstance(one, Queued)]
        rows = [one for one in read if isinstance(one, Queued)]
        packs = list(
            packs_of(
                rows,
                max_size=self._settings.max_batch_size,
                max_tokens=self._settings.max_batch_tokens,
            )
        )
        embedded = await asyncio.gather(
            *(self._embed(Pack([rows[at] for at in places])) for places in packs)
        )
        for places, encoded in zip(packs, embedded, strict=True):
            for at, one in zip(places, encoded, strict=True):
                place = good[at]
                answers[place] = replace(one, instruction=self._instruction(asked[place]))
        return answers

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

    def _rows(self, asked: Sequence[ToEncode]) -> list[Queued | UserError]:
        rows: list[Queued | UserError] = []
        for one in asked:
            try:
                rows.append(self._row(one))
            except UserError as broken:
                rows.append(broken)
        return rows

    def _row(self, asked: ToEncode) -> Queued:
        row = self._model.row_encoder.encode(asked.item, asked.side, self._instruction(asked))
        return Queued(row, asked.side, self._model.num_vectors(asked.side))

    def _instruction(self, asked: ToEncode) -> str:
        given = asked.instruction
        return self.default_instruction(asked.side) if given is None else given

    async def _embed_packs(self, packs: list[Pack]) -> list[list[EncodedQuery]]:
        rows = [row for pack in packs for row in pack.rows]
        encoded = iter(await _run(self._passes, embed_queued, self._model, rows, self._recorder))
        return [[next(encoded) for _ in pack.rows] for pack in packs]

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


def embed_queued(
    model: Embedder, queued: list[Queued], recorder: EncoderRecorder | None = None
) -> list[EncodedQuery]:
    """Embeds a batch of either side; one EncodedQuery of a single row each, in their order."""
    answers: dict[int, EncodedQuery] = {}
    digest = "" if model.identity is None else model.identity.digest
    for places in groups_of(queued):
        rows = [queued[place].row for place in places]
        side = queued[places[0]].side
        started = time.perf_counter()
        embeddings = model.embed(model.batch(rows, side), side).cpu()
        vectors = embeddings.vectors.float().numpy()
        fused = None if embeddings.fused is None else embeddings.fused.float().numpy()
        if recorder is not None:
            recorder.encoded(len(rows), time.perf_counter() - started, side)
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
