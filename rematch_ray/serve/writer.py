"""The deployment that writes: encodes new documents, and makes changes of the index of them.

One replica per index: an index has one lock and publishes one generation after another, and an
index that is split into shards publishes its set as a whole, so that searches see all of a write or
nothing of it. A second writer could only wait for the first; throughput comes from joining writes.

An adapter: gives `DocumentWriter` a handle of the encoder, and counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ray.serve.handle import DeploymentHandle

from rematch_ray.data.item import Item
from rematch_ray.serve.backend import EncodedQuery, NewDocument, WriteResult
from rematch_ray.serve.commit_queue import CommitQueue
from rematch_ray.serve.commits import IndexWriter, Outcome, Write
from rematch_ray.serve.document_writer import DocumentWriter
from rematch_ray.serve.follower import EXCHANGE_S
from rematch_ray.serve.handles import RemoteEncoder
from rematch_ray.serve.metrics import Recorder
from rematch_ray.serve.settings import WriterSettings
from rematch_ray.serve.shard import LOOK_S

# shards look for a new generation every LOOK_S, routers hear of it with their next exchange; twice
# the sum leaves room for opening it and for a busy machine
VISIBLE_WITHIN_S = 2 * (LOOK_S + EXCHANGE_S)


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
        self._encoder = RemoteEncoder("encoder", encoder)
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
        encoded: EncodedQuery = await self._encoder.encode(item, instruction, "document")
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
