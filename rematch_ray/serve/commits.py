"""Writes that arrive together as one change of the index, each with its own counts.

A document is added where its id is new and replaces where it is known, in the order in which the
writes arrived; what reaches the disk is the last word on every id. Knows neither Ray nor asyncio.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rematch_ray.errors import UserError
from rematch_ray.index.compaction import pick_segments
from rematch_ray.index.payload_types import check_types
from rematch_ray.index.sharding.changes import merge_segments
from rematch_ray.index.sharding.opened import current_name
from rematch_ray.index.sharding.writes import Written, delete_matching, write_documents
from rematch_ray.serve.backend import WriteResult
from rematch_ray.serve.documents import DocumentForm, ReadyDocument, rows_of
from rematch_ray.serve.settings import WriterSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Write:
    """What one request writes: documents, ids to delete, or a filter to delete by.

    Attributes:
        documents: to add or replace, each id once.
        delete: ids to delete, each once.
        matching: a filter; all documents that pass it are deleted.
    """

    documents: tuple[ReadyDocument, ...] = ()
    delete: tuple[str, ...] = ()
    matching: Mapping[str, Any] | None = None

    @property
    def rows(self) -> int:
        """Its share of a change."""
        return len(self.documents) + len(self.delete)


Outcome = WriteResult | UserError


class IndexWriter:
    """Changes one index, one change at a time; call it from one thread.

    Args:
        path: index directory, split into shards or not.
        identity: of the model that makes the vectors.
        settings: when to merge.
        visible_within_s: when searches find what was written, for results.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        settings: WriterSettings,
        *,
        visible_within_s: float = 0.0,
    ) -> None:
        self._path = path
        self._identity = identity
        self._settings = settings
        self._visible_within_s = visible_within_s
        self.form = self._read_form()

    def commit(self, writes: Sequence[Write], patience_s: float = 0.0) -> list[Outcome]:
        """Makes one change of several writes; it is on disk when this returns.

        Args:
            writes: in the order of their arrival; one with a filter comes alone.
            patience_s: how long to wait for another writer to end.

        Returns:
            Of each write its counts, or why it cannot be; the others are written without it.

        Raises:
            UserError: the index is not what it was: of another model, damaged or gone.
            IndexBusyError: another process writes; nothing was changed.
        """
        if writes[0].matching is not None:
            assert len(writes) == 1
            written = delete_matching(self._path, writes[0].matching, patience_s=patience_s)
            self._look()
            return [self._result(written, deleted=len(written.known))]
        self._look()
        refused = self._refused(writes)
        sound = [write for write, error in zip(writes, refused, strict=True) if error is None]
        if not sound:
            return [error for error in refused if error is not None]
        last = last_words(sound)
        documents = [document for document in last.values() if document is not None]
        written = write_documents(
            self._path,
            rows_of(documents, self.form) if documents else None,
            delete=[name for name, document in last.items() if document is None],
            patience_s=patience_s,
        )
        self._look()
        counts = iter(count(sound, written.known))
        return [error or self._result(written, **next(counts)) for error in refused]

    def merge(self, *, is_pressed: bool) -> int:
        """Merges segments of about one size where there are many.

        Args:
            is_pressed: whether writes wait; then only what has piled up beyond all measure.

        Returns:
            How many became one; 0 where nothing was to be gained.

        Raises:
            UserError: see `commit`.
        """
        settings = self._settings
        if is_pressed and self.form.segments <= settings.most_segments:
            return 0
        if self.form.segments < settings.merge_fan_in:
            return 0
        choose = partial(
            pick_segments, fan_in=settings.merge_fan_in, max_rows=settings.merge_max_rows
        )
        merged = merge_segments(self._path, choose=choose).merged
        self._look()
        if merged:
            logger.info("merged %d segments, %d are left", merged, self.form.segments)
        return merged

    def _look(self) -> None:
        """Follows changes, also those of other processes."""
        if current_name(self._path) != self.form.generation:
            self.form = self._read_form()

    def _read_form(self) -> DocumentForm:
        return replace(DocumentForm.of(self._path), identity=self._identity)

    def _refused(self, writes: Sequence[Write]) -> list[UserError | None]:
        """Why each write cannot be, seen after those before it."""
        fields = dict(self.form.fields)
        refused: list[UserError | None] = []
        for write in writes:
            new: dict[str, str] = {}
            try:
                for document in write.documents:
                    where = f"document '{document.id}'"
                    check_types(document.fields, fields | new, where)
                    new = {**document.fields, **new}
            except UserError as error:
                refused.append(error)
                continue
            fields = {**new, **fields}
            refused.append(None)
        return refused

    def _result(self, written: Written, **counts: int) -> WriteResult:
        generation, seconds = written.info.generation, self._visible_within_s
        return WriteResult(**counts, generation=generation, visible_within_s=seconds)


def last_words(writes: Sequence[Write]) -> dict[str, ReadyDocument | None]:
    """What is to become of every id: its last document, or None where it is deleted."""
    last: dict[str, ReadyDocument | None] = {}
    for write in writes:
        last |= {document.id: document for document in write.documents}
        last |= dict.fromkeys(write.delete)
    return last


def count(writes: Sequence[Write], known: frozenset[str]) -> list[dict[str, int]]:
    """What each of several writes did, one after the other.

    Args:
        writes: in the order of their arrival.
        known: of their ids, those that were there before the first.

    >>> count([Write(delete=("a", "b")), Write(delete=("a",))], frozenset("a"))[1]
    {'added': 0, 'replaced': 0, 'deleted': 0, 'unknown': 1}
    """
    present = set(known)
    counts = []
    for write in writes:
        ids = {document.id for document in write.documents}
        gone = set(write.delete)
        replaced, deleted = len(ids & present), len(gone & present)
        counts.append(
            {
                "added": len(ids) - replaced,
                "replaced": replaced,
                "deleted": deleted,
                "unknown": len(gone) - deleted,
            }
        )
        present = (present | ids) - gone
    return counts
