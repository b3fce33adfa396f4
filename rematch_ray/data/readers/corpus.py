"""A corpus whose documents are asked for by their ids, in any order.

Parquet can only be decoded by whole row groups, and a training step asks for documents all over a
corpus. So each machine keeps a copy as Arrow files, made at the first use, of which only the pages
that are asked for are read. Of every document a process holds 16 bytes. Middle floor.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from rematch_ray.data.readers.beir import IDS
from rematch_ray.data.readers.files import FAILURES, FileEntry, look
from rematch_ray.data.readers.line_files import read_file_lines
from rematch_ray.data.readers.parquet import row_groups
from rematch_ray.data.readers.row_files import JSONL, PARQUET, columns_of
from rematch_ray.data.readers.row_group import batch_rows, parquet_file
from rematch_ray.data.readers.sample_rows import Row
from rematch_ray.errors import UserError

_ID, _LINE = "rematch_ray:id", "rematch_ray:line"
_BATCH_ROWS = 256


@dataclass(frozen=True)
class Corpus:
    """Documents by id.

    Attributes:
        path: where it was read from.
        batches: its rows, mapped from the machine's copy.
        starts: (batches,) number of each batch's first row.
        keys: (C,) uint64 hashes of the ids, sorted.
        numbers: (C,) row of each key.
    """

    path: str
    batches: tuple[pa.RecordBatch, ...]
    starts: np.ndarray
    keys: np.ndarray
    numbers: np.ndarray

    def rows(self, ids: Sequence[str]) -> dict[str, Row]:
        """The rows of documents; ids that the corpus does not hold are left out."""
        wanted = np.array([_key(name) for name in ids], np.uint64)
        places = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        found = self.keys[places] == wanted
        return {
            name: self._row(int(self.numbers[place]))
            for name, place, is_there in zip(ids, places, found)
            if is_there
        }

    def _row(self, number: int) -> Row:
        batch = int(np.searchsorted(self.starts, number, side="right")) - 1
        [row] = self.batches[batch].slice(number - int(self.starts[batch]), 1).to_pylist()
        return json.loads(row[_LINE]) if _LINE in row else row


def corpus_stamp(path: str) -> str:
    """Identify what a corpus holds, without reading it; its files are checked.

    Raises:
        UserError: no Parquet or JSONL file, or one without a column of ids.
    """
    digest = hashlib.sha256()
    for entry in _entries(path):
        if not set(IDS) & set(columns_of(entry)):
            raise UserError(f"{entry.path}: no column is the id; looked for {', '.join(IDS)}")
        told = row_groups(entry.path)[2] if entry.suffix in PARQUET else str(entry.size)
        digest.update(f"{told}\0".encode())
    return digest.hexdigest()


@lru_cache(maxsize=4)
def open_corpus(path: str, folder: str | None = None) -> Corpus:
    """Open a corpus, made ready on this machine first where it is not.

    Args:
        path: file, folder or URI of Parquet or JSONL with ids.
        folder: where the machine keeps its copy; None = below the system's temporary folder.

    Raises:
        UserError: the corpus cannot be read, holds an id twice, or the copy cannot be written.
    """
    kept = _folder(folder)
    batches = tuple(
        batch for entry in _entries(path) for batch in _batches(_ready(entry, kept)) if len(batch)
    )
    if not batches:
        raise UserError(f"{path}: no documents")
    ends = np.cumsum([len(batch) for batch in batches])
    names = (name for batch in batches for name in batch.column(_ID).to_pylist())
    keys = np.fromiter((_key(name) for name in names), np.uint64, count=int(ends[-1]))
    order = np.argsort(keys, kind="stable")
    corpus = Corpus(path, batches, np.array([0, *ends[:-1]]), keys[order], order)
    if len(twice := np.flatnonzero(np.diff(corpus.keys) == 0)):
        numbers = corpus.numbers[[int(twice[0]), int(twice[0]) + 1]].tolist()
        raise UserError(
            f"{path}: {len(twice)} ids stand there more than once, such as that of rows "
            f"{numbers[0]} and {numbers[1]}; give every document its own"
        )
    return corpus


def _entries(path: str) -> Sequence[FileEntry]:
    entries = look(path).ending(*PARQUET, *JSONL)
    if not entries:
        raise UserError(f"{path}: a corpus is {', '.join((*PARQUET, *JSONL))} files; there is none")
    return entries


def _ready(entry: FileEntry, folder: Path) -> Path:
    """The machine's copy of a file; one process makes it and the others wait."""
    name = hashlib.sha256(f"{entry.path}\0{entry.stamp}".encode()).hexdigest()
    copy, unfinished = folder / f"{name}.arrow", folder / f"{name}.unfinished"
    try:
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not copy.exists():
                _write(entry, unfinished)
                os.replace(unfinished, copy)
    except FAILURES as error:
        raise UserError(
            f"{entry.path} cannot be kept for random access in {folder}: {error}; make room, or "
            "set corpus_copy to another folder"
        ) from error
    return copy


def _write(entry: FileEntry, path: Path) -> None:
    batches = _parquet(entry.path) if entry.suffix in PARQUET else _lines(entry)
    first = next(batches, None)
    schema = pa.schema([(_ID, pa.string())]) if first is None else first.schema
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in chain([] if first is None else [first], batches):
            writer.write_batch(batch)


def _parquet(path: str) -> Iterator[pa.RecordBatch]:
    with parquet_file(path) as file:
        name = next(name for name in IDS if name in file.schema_arrow.names)
        for number in range(file.metadata.num_row_groups):
            rows = batch_rows(path, file.metadata, number)
            for batch in file.iter_batches(rows, [number], use_threads=False):
                yield batch.append_column(_ID, batch.column(name).cast(pa.string()))


def _lines(entry: FileEntry) -> Iterator[pa.RecordBatch]:
    held: list[tuple[str, bytes]] = []
    for number, line in enumerate(read_file_lines(entry.path)):
        try:
            row = json.loads(line)
            held.append((str(next(row[name] for name in IDS if name in row)), line))
        except (ValueError, TypeError, StopIteration, RecursionError) as error:
            raise UserError(f"{entry.path}: line {number} is no document: {error!r}") from error
        if len(held) == _BATCH_ROWS:
            yield _line_batch(held)
            held = []
    if held:
        yield _line_batch(held)


def _line_batch(held: Sequence[tuple[str, bytes]]) -> pa.RecordBatch:
    names, lines = zip(*held)
    columns = {_ID: pa.array(names, pa.string()), _LINE: pa.array(lines, pa.large_binary())}
    return pa.RecordBatch.from_pydict(columns)


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return (reader.get_batch(number) for number in range(reader.num_record_batches))


def _folder(given: str | None) -> Path:
    path = Path(given or Path(tempfile.gettempdir()) / f"rematch-ray-corpus-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if given is None and path.stat().st_uid != os.getuid():
            raise UserError(f"{path} belongs to somebody else; set corpus_copy to another folder")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}; set corpus_copy") from error
    return path


def _key(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(str(name).encode(), digest_size=8).digest(), "little")
