"""What a write does, from a request to rows on disk: check, encode, join, commit.

Takes whatever encodes. Knows no Ray and no HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from rematch_ray.data.item import Item
from rematch_ray.errors import UserError
from rematch_ray.serve.backend import EncodedQuery, NewDocument, WriteResult
from rematch_ray.serve.commit_queue import CommitQueue
from rematch_ray.serve.commits import IndexWriter, Write
from rematch_ray.serve.documents import ReadyDocument, check_documents, check_ids, make_ready
from rematch_ray.serve.settings import WriterSettings

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
