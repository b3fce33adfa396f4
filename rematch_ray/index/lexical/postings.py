"""Postings: which documents of a segment hold a term, how often, and how long they are.

    lexical.sqlite       terms(term, start, stop): where a term's postings lie
    lexical_rows.npy     rows of the documents, by term, ascending within a term
    lexical_counts.npy   how often the term occurs in that document
    lexical_lengths.npy  terms of every document

Plain counts without any score: what a score needs beside them (how many documents there are, how
many hold a term) changes with every write and belongs to the generation. Written once, mapped when
read. Knows nothing of deletions or other segments. Middle floor.
"""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.lexical.tokeniser import Tokeniser
from rematch_ray.index.npy import map_npy

TERMS_FILE = "lexical.sqlite"
ROWS_FILE = "lexical_rows.npy"
COUNTS_FILE = "lexical_counts.npy"
LENGTHS_FILE = "lexical_lengths.npy"
POSTINGS_FILES = (TERMS_FILE, ROWS_FILE, COUNTS_FILE, LENGTHS_FILE)
_UNSORTED_FILE = "lexical.unsorted"
_SCHEMA = """
CREATE TABLE terms (
    term TEXT PRIMARY KEY, start INTEGER NOT NULL, stop INTEGER NOT NULL
) WITHOUT ROWID;
"""
# terms that are held at once before they are counted and written: 2**20 take some 50 MiB
_BLOCK_TERMS = 1 << 20
# postings that are sorted at once: 2**21 take some 150 MiB
_BLOCK_POSTINGS = 1 << 21
Integers = NDArray[np.uint32]
_INTEGER = np.dtype("<u4")


def write_postings(directory: Path, texts: Iterable[str], tokeniser: Tokeniser) -> dict[str, int]:
    """Writes the postings of a segment.

    Memory grows with the vocabulary, not with the documents: postings go to a file in the order of
    the documents, and are put in the order of the terms block by block.

    Args:
        directory: the segment's.
        texts: of every document in row order; "" for one without text.
        tokeniser: cuts them into terms.

    Returns:
        `documents` that have a term at all, `tokens` of all of them together, distinct `terms`,
        and `postings`.
    """
    unsorted = directory / _UNSORTED_FILE
    try:
        vocabulary = _Vocabulary(tokeniser)
        lengths = _write_unsorted(unsorted, map(tokeniser.words, texts), vocabulary)
        terms = sorted(vocabulary.terms)
        numbers = np.fromiter(map(vocabulary.terms.__getitem__, terms), np.int64, len(terms))
        ends = _invert(unsorted, directory, numbers)
    finally:
        unsorted.unlink(missing_ok=True)
    _write_terms(directory / TERMS_FILE, terms, ends)
    np.save(directory / LENGTHS_FILE, lengths)
    return {
        **count_texts(lengths),
        "terms": len(terms),
        "postings": int(ends[-1]) if len(ends) else 0,
    }


def count_texts(lengths: Integers) -> dict[str, int]:
    """How many documents have a text, and the terms of all of them.

    >>> count_texts(np.array([3, 0, 4], np.uint32))
    {'documents': 2, 'tokens': 7}
    """
    return {
        "documents": int(np.count_nonzero(lengths)),
        "tokens": int(lengths.sum(dtype=np.int64)),
    }


class Postings:
    """Reads the postings of a segment; safe to share between threads.

    Args:
        directory: the segment's.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        name = quote(str(directory / TERMS_FILE))
        self._database = sqlite3.connect(
            f"file:{name}?mode=ro&immutable=1", uri=True, check_same_thread=False
        )

    def find(self, terms: Sequence[str]) -> dict[str, slice]:
        """Where the postings of those terms lie that are here: slices of `rows` and `counts`."""
        found = self._database.execute(
            "SELECT term, start, stop FROM terms WHERE term IN (SELECT value FROM json_each(?))",
            (json.dumps(list(terms)),),
        )
        return {term: slice(start, stop) for term, start, stop in found}

    def hold(self) -> None:
        """Maps every file now: it stays readable when it is deleted."""
        _ = self.rows, self.counts, self.lengths

    @cached_property
    def rows(self) -> Integers:
        """(P,) documents, by term."""
        return _open(self._directory / ROWS_FILE)

    @cached_property
    def counts(self) -> Integers:
        """(P,) how often the term occurs in the document."""
        return _open(self._directory / COUNTS_FILE)

    @cached_property
    def lengths(self) -> Integers:
        """(N,) terms of every document."""
        return _open(self._directory / LENGTHS_FILE)


class _Vocabulary(dict[str, int]):
    """Word -> number of its term, in the order of first sight; a word is folded only once."""

    def __init__(self, tokeniser: Tokeniser) -> None:
        self.terms: dict[str, int] = {}
        self._tokeniser = tokeniser

    def __missing__(self, word: str) -> int:
        number = self.terms.setdefault(self._tokeniser.term(word), len(self.terms))
        self[word] = number
        return number


def _write_unsorted(
    path: Path, documents: Iterable[Sequence[str]], vocabulary: _Vocabulary
) -> Integers:
    """Writes (term, row, count) in the order of the rows; returns the documents' lengths."""
    terms, lengths, first = array("I"), array("I"), 0
    with open(path, "wb") as file:
        for words in documents:
            terms.extend(map(vocabulary.__getitem__, words))
            lengths.append(len(words))
            if len(terms) >= _BLOCK_TERMS:
                _count_terms(terms, lengths, first).tofile(file)
                terms, first = array("I"), len(lengths)
        _count_terms(terms, lengths, first).tofile(file)
    return np.array(lengths, dtype=_INTEGER)


def _count_terms(terms: array[int], lengths: array[int], first: int) -> Integers:
    """(P, 3): term, row, count, of the documents from `first` on."""
    each = np.array(lengths[first:], dtype=np.int64)
    rows = np.repeat(np.arange(first, first + len(each), dtype=np.uint64), each)
    pairs, counts = np.unique((rows << 32) | np.array(terms, np.uint64), return_counts=True)
    return np.stack([pairs & 0xFFFFFFFF, pairs >> 32, counts], axis=1).astype(_INTEGER)


def _invert(unsorted: Path, directory: Path, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Writes rows and counts by term; returns where each term's end, in the terms' order."""
    place = np.empty(len(numbers), np.int64)
    place[numbers] = np.arange(len(numbers))
    held = np.zeros(len(numbers), np.int64)
    for block in _blocks(unsorted):
        held += np.bincount(place[block[:, 0]], minlength=len(numbers))
    ends = np.cumsum(held)
    total = int(ends[-1]) if len(ends) else 0
    rows, counts = (_create(directory / name, total) for name in (ROWS_FILE, COUNTS_FILE))
    free = ends - held
    for block in _blocks(unsorted):
        term = place[block[:, 0]]
        order = np.argsort(term, kind="stable")
        here = np.bincount(term, minlength=len(numbers))
        # of the k-th posting in this order: the term's next free place, plus its rank in the term
        target = np.arange(len(term)) + np.repeat(free - np.cumsum(here) + here, here)
        rows[target], counts[target] = block[order, 1], block[order, 2]
        free += here
    rows.flush()
    counts.flush()
    return ends


def _blocks(path: Path) -> Iterator[Integers]:
    with open(path, "rb") as file:
        while len(block := np.fromfile(file, _INTEGER, 3 * _BLOCK_POSTINGS)):
            yield block.reshape(-1, 3)


def _create(path: Path, length: int) -> np.memmap[Any, np.dtype[np.uint32]]:
    return np.lib.format.open_memmap(path, mode="w+", dtype=_INTEGER, shape=(length,))


def _write_terms(path: Path, terms: Sequence[str], ends: NDArray[np.int64]) -> None:
    database = sqlite3.connect(path, isolation_level=None)
    try:
        # the file is published by rename after an fsync: SQLite's own journal would buy nothing
        database.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + _SCHEMA)
        database.execute("BEGIN")
        spans = pairwise([0, *ends.tolist()])
        database.executemany(
            "INSERT INTO terms VALUES (?, ?, ?)",
            ((term, start, stop) for term, (start, stop) in zip(terms, spans, strict=True)),
        )
        database.execute("COMMIT")
    finally:
        database.close()


def _open(path: Path) -> Integers:
    # as a plain array: slices of a memmap object cost several times those of an array
    return np.asarray(map_npy(path))
