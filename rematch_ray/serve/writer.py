"""The deployment that writes: encodes new documents, and makes changes of the index of them.

One replica per index: an index has one lock and publishes one generation after another, and an
index that is split into shards publishes its set as a whole, so that searches see all of a write or
nothing of it. A second writer could only wait for the first; throughput comes from joining writes.

`DocumentWriter` takes whatever encodes; `Writer`, the adapter, gives it a handle and counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from rematch_ray.data.item import Item
from rematch_ray.errors import UserError
from rematch_ray.serve.backend import EncodedQuery, NewDocument, OverloadedError, WriteResult
from rematch_ray.serve.commit_queue import CommitQueue
from rematch_ray.serve.commits import IndexWriter, Outcome, Write
from rematch_ray.serve.documents import ReadyDocument, check_documents, check_ids, make_ready
from rematch_ray.serve.follower import EXCHANGE_S
from rematch_ray.serve.metrics import Recorder
from rematch_ray.serve.settings import WriterSettings
from rematch_ray.serve.shard import LOOK_S

# shards look for a new generation every LOOK_S, routers hear of it with their next exchange; twice
# the sum leaves room for opening it and for a busy machine
VISIBLE_WITHIN_S = 2 * (LOOK_S + EXCHANGE_S)

Encode = Callable[[Item, str], Awaitable[EncodedQuery]]


class DocumentWriter:
    """Upserts and deletes for one index.

    Args:
        index: changes it.
        encode: a document and the instruction -> its vectors.
        settings: how much at a time.
        queue: joins writes; calls `index` in its thread.
    """

    def __init__(
        self, index: IndexWriter, encode: Encode, settings: WriterSettings, queue: CommitQueue
    ) -> None:
        self._index = index
        self._encode = encode
        self._queue = queue
        self._slots = asyncio.Semaphore(settings.encode_ahead)

    async def upsert(self, documents: Sequence[NewDocument]) -> WriteResult:
        """Adds documents, or replaces those of the same ids; the same again replaces them again.

        Raises:
            UserError: names the first document that cannot be written; none of them is.
            OverloadedError: too much waits, or another process writes.
        """
        if not documents:
            raise UserError("no documents were given: give at least one")
        check_documents(documents, self._index.form)
        return await self._queue.write(Write(documents=await self._ready(documents)))

    async def delete(
        self, ids: Sequence[str] = (), filter: Mapping[str, Any] | None = None
    ) -> WriteResult:
        """Deletes documents by their ids, or all that pass a filter.

        Raises:
            UserError: not exactly one of the two, or a filter that is empty or does not fit.
            OverloadedError: too much waits, or another process writes.
        """
        if bool(ids) == (filter is not None):
            raise UserError("give either the ids of the documents to delete or a filter")
        if filter is not None:
            if not filter:
                raise UserError("an empty filter would delete every document: name a field")
            return await self._queue.write(Write(matching=filter))
        wanted = tuple(dict.fromkeys(ids))
        check_ids(wanted)
        return await self._queue.write(Write(delete=wanted))

    async def _ready(self, documents: Sequence[NewDocument]) -> tuple[ReadyDocument, ...]:
        if not any(document.item for document in documents):
            form = self._index.form
            return tuple(make_ready(d, d.vectors, form) for d in documents if d.vectors)
        tasks = [asyncio.ensure_future(self._ready_one(document)) for document in documents]
        try:
            return tuple(await asyncio.gather(*tasks))
        finally:
            for task in tasks:  # the first that fails spares the encoder the others
                task.cancel()

    async def _ready_one(self, document: NewDocument) -> ReadyDocument:
        encoded = document.vectors or await self._encoded(document)
        return make_ready(document, encoded, self._index.form)

    async def _encoded(self, document: NewDocument) -> EncodedQuery:
        assert document.item is not None, "check_documents lets one of the two pass"
        async with self._slots:
            try:
                return await self._encode(document.item, self._index.form.instruction or "")
            except UserError as error:
                raise UserError(f"document '{document.id}': {error}") from error


class Writer:
    """The replica that writes to one index.

    Args:
        index: index directory.
        identity: of the model behind the encoder, as JSON.
        encoder: handle of `Encoder`.
        settings: how much at a time.
        record: makes what counts; called in the replica.
    """

    def __init__(
        self,
        index: str,
        identity: Mapping[str, Any],
        encoder: DeploymentHandle,
        settings: WriterSettings,
        record: Callable[[], Recorder],
    ) -> None:
        self._encoder = encoder
        self._record = record()
        self._index = IndexWriter(
            Path(index), identity, settings, visible_within_s=VISIBLE_WITHIN_S
        )
        self._queue = CommitQueue(self._commit, settings, tidy=self._merge)
        self._writer = DocumentWriter(self._index, self._encode, settings, self._queue)

    async def upsert(self, documents: Sequence[NewDocument]) -> WriteResult:
        """See `DocumentWriter.upsert`."""
        return await self._writer.upsert(documents)

    async def delete(
        self, ids: Sequence[str] = (), filter: Mapping[str, Any] | None = None
    ) -> WriteResult:
        """See `DocumentWriter.delete`."""
        return await self._writer.delete(ids, filter)

    def info(self) -> Mapping[str, Any]:
        """What it writes to, and how much waits."""
        form = self._index.form
        return {
            "generation": form.generation,
            "segments": form.segments,
            "waiting": self._queue.rows,
            "visible_within_s": VISIBLE_WITHIN_S,
        }

    async def _encode(self, item: Item, instruction: str) -> EncodedQuery:
        try:
            encoded: EncodedQuery = await self._encoder.encode.remote(item, instruction, "document")
        except BackPressureError as full:
            raise OverloadedError("the encoder's queue is full; send fewer documents") from full
        except RayTaskError as failed:
            if isinstance(failed.cause, UserError):
                raise failed.cause from None
            raise
        return encoded

    def _commit(self, writes: Sequence[Write], patience_s: float) -> list[Outcome]:
        started = time.perf_counter()
        outcomes = self._index.commit(writes, patience_s)
        self._committed("write", started)
        for outcome in outcomes:
            if isinstance(outcome, WriteResult):
                self._record.wrote(outcome)
        return outcomes

    def _merge(self, is_pressed: bool) -> None:
        started = time.perf_counter()
        if self._index.merge(is_pressed=is_pressed):
            self._committed("merge", started)

    def _committed(self, what: Literal["write", "merge"], started: float) -> None:
        seconds = time.perf_counter() - started
        self._record.committed(what, seconds, self._index.form.segments)
