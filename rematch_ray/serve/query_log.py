"""The query log: vectors of a share of the queries, for the doctor; never what was asked.

Queries are noted on the request path and written by a thread, in files of the layout that
`index.query_vectors` reads. Knows nothing of HTTP or Ray.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import queue
import random
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rematch_ray.errors import UserError
from rematch_ray.index.query_vectors import UNFINISHED, write_query_vectors
from rematch_ray.serve.backend import EncodedQuery
from rematch_ray.serve.settings import QueryLogSettings

# of one file: small, so that the oldest can go piece by piece
_FILE_BYTES = 1_048_576
# queries that wait for a disk that is slow; further ones are not logged
_MOST_WAITING = 1024
# a file that has been unfinished for so long is of a replica that died
_ABANDONED_S = 3600.0
_CLOSE_S = 10.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Noted:
    """A query, and the identity of the model that its vectors are of."""

    query: EncodedQuery
    model: Mapping[str, Any]

    @property
    def form(self) -> tuple[Any, ...]:
        """What all queries of a file have in common."""
        fused = self.query.fused
        width = None if fused is None else fused.shape[1]
        return (self.model.get("digest"), self.query.vectors.shape, width)

    @property
    def num_bytes(self) -> int:
        """Of its row, as float16."""
        fused = self.query.fused
        return 2 * (self.query.vectors.size + (0 if fused is None else fused.size))


class QueryLog:
    """Writes the vectors of a share of the queries; one lives in each ingress replica.

    Args:
        settings: where to, which share, and how much is kept.
        flush_s: a query waits so long at most until it is written.
        seed: of the draws.

    Raises:
        UserError: the directory cannot be written to.
    """

    def __init__(
        self, settings: QueryLogSettings, *, flush_s: float = 30.0, seed: int | None = None
    ) -> None:
        self._directory = settings.directory
        self._share = settings.share
        self._max_bytes = settings.max_bytes
        self._file_bytes = min(_FILE_BYTES, settings.max_bytes // 16)
        self._flush_s = flush_s
        self._random = random.Random(seed)
        self._waiting: queue.Queue[_Noted | None] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._has_failed = False
        if self._directory is not None:
            _check_writable(self._directory)

    def offer(self, query: EncodedQuery, model: Mapping[str, Any]) -> bool:
        """Perhaps note a query that was answered; returns at once, whether it is noted.

        Args:
            query: as it was searched.
            model: identity of the model that is served. Where it has fused vectors, a query that
                came without is left out: a log is of one form.
        """
        if self._directory is None or self._is_closed or self._random.random() >= self._share:
            return False
        if query.fused is None and model.get("fused_dim"):
            return False
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="query-log", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(_Noted(query, model))
        except queue.Full:
            return False
        return True

    def close(self) -> None:
        """Write what was noted, and end."""
        self._is_closed = True
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(_CLOSE_S)

    def _work(self) -> None:
        """Gather queries until they fill a file, or have waited long enough."""
        held: list[_Noted] = []
        num_bytes, due = 0, math.inf
        while True:
            try:
                left_s = None if not held else max(0.0, due - time.monotonic())
                noted = self._waiting.get(timeout=left_s)
            except queue.Empty:
                held = self._write(held)
                continue
            if noted is None:
                self._write(held)
                return
            if held and noted.form != held[0].form:
                held = self._write(held)
            if not held:
                num_bytes, due = 0, time.monotonic() + self._flush_s
            held.append(noted)
            num_bytes += noted.num_bytes
            if num_bytes >= self._file_bytes:
                held = self._write(held)

    def _write(self, held: list[_Noted]) -> list[_Noted]:
        """Write queries of one form; those that cannot be written are lost, and that is said once.

        Returns:
            What is held then: nothing.
        """
        if not held:
            return []
        assert self._directory is not None
        fused = [noted.query.fused for noted in held if noted.query.fused is not None]
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            # of the room for a file, ids and what Parquet adds take a little
            coming = self._file_bytes + sum(each.num_bytes for each in held)
            _make_room(self._directory, self._max_bytes - coming)
            write_query_vectors(
                self._directory / _new_name(),
                np.concatenate([noted.query.vectors for noted in held]),
                np.concatenate(fused) if fused else None,
                held[0].model,
            )
        except OSError as full:
            if not self._has_failed:
                logger.error("the query log in %s cannot be written: %s", self._directory, full)
            self._has_failed = True
        else:
            self._has_failed = False
        return []


def _new_name() -> str:
    """Of a file; names sort by time, and no two replicas make the same."""
    place = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    return f"queries-{time.time_ns():019d}-{place}.parquet"


def _check_writable(directory: Path) -> None:
    probe = directory / f".{uuid.uuid4().hex}{UNFINISHED}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as refused:
        raise UserError(
            f"query_log.directory {directory} cannot be written to: {refused}"
        ) from refused


def _make_room(directory: Path, most_bytes: int) -> None:
    """Delete the oldest files until the rest are no larger, and what dead replicas left.

    Other replicas do the same meanwhile: what is gone is gone.
    """
    for file in directory.glob(f".queries-*{UNFINISHED}"):
        if (found := _stat(file)) and time.time() - found.st_mtime > _ABANDONED_S:
            file.unlink(missing_ok=True)
    kept = [(file, found.st_size) for file in _files(directory) if (found := _stat(file))]
    over = sum(size for _, size in kept) - most_bytes
    for file, size in kept:
        if over <= 0:
            break
        file.unlink(missing_ok=True)
        over -= size


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob("queries-*.parquet"))


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except FileNotFoundError:
        return None
