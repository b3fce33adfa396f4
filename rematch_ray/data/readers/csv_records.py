"""Records of CSV: quoted fields may hold line ends, and a quote never closed costs one line.

A record that is no record is one bad row, its first line; the lines after that are read anew. It
knows lines, not files or columns. Middle floor.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator

from rematch_ray.data.readers.files import Damaged
from rematch_ray.data.readers.lines import LINE_BYTES

# a record with the byte where it begins; a text says why it is none
Record = tuple[int, list[str] | str]
Line = tuple[int, bytes]

# of a record's lines together, its longest left out: an image may be one line of any length
RECORD_BYTES = 64 * 2**20
# so many lines inside of one record, nine of ten with the delimiters of a row, are rows: the quote
# before them is a stray one. Lines of prose or of base64 are not so alike
ROW_LINES, ROW_SHARE = 100, 0.9
UNCLOSED = (
    "bad quoting: a quote is opened and not closed as it should be; the lines after this one are "
    "read as records of their own"
)


def records(
    lines: Iterator[Line], delimiter: str, num_fields: int | None = None
) -> Iterator[Record]:
    """The records in lines; blank lines are none, and bad quoting costs one line.

    Where the lines end early, before the end of the last record that is asked for, the records are
    the same: a file can be cut between any two of them.

    Args:
        lines: each with the byte where it begins; the first one begins a record.
        delimiter: between fields.
        num_fields: of a row; None = not known yet.
    """
    # a field may be a data URI; the limit is the process's, and only ever raised
    csv.field_size_limit(max(csv.field_size_limit(), LINE_BYTES))
    feed = _Feed(lines, delimiter, num_fields)
    while True:
        try:
            for record in csv.reader(feed.texts(), delimiter=delimiter, strict=True):
                if record:
                    yield feed.held[0][0], record
                feed.begin()
            break
        except csv.Error as error:
            is_one_line = len(feed.held) == 1 and not feed.has_ended
            yield feed.held[0][0], f"bad quoting: {error}" if is_one_line else UNCLOSED
            feed.go_back()
    # a compressed file that ends early: a record of its own says so
    if feed.damage is not None:
        yield feed.last, str(feed.damage)


class _Unclosed(csv.Error):
    """A record that has grown beyond what a record may be."""


class _Feed:
    """The lines for a parser of CSV, which can be gone back to.

    Attributes:
        held: the lines of the record that is being read.
        last: byte where the last line begins.
        has_ended: whether there are no more lines.
        damage: why they ended early, or None.
    """

    def __init__(self, lines: Iterator[Line], delimiter: str, num_fields: int | None) -> None:
        self.held: list[Line] = []
        self.last = 0
        self.has_ended = False
        self.damage: Damaged | None = None
        self._lines = lines
        self._again: deque[Line] = deque()
        self._delimiter = delimiter.encode()
        # in one column any line is like any other
        self._num_delimiters = num_fields - 1 if num_fields is not None else 0
        self._num_alike = self._size = self._longest = 0

    def texts(self) -> Iterator[str]:
        """The lines from here on, as text."""
        while (found := self._next()) is not None:
            self.held.append(found)
            begin, line = found
            self.last = max(self.last, begin)
            self._measure(line)
            # bytes that are not UTF-8 become a reason when the row is made
            yield line.decode("utf-8-sig" if begin == 0 else "utf-8", "surrogateescape")

    def begin(self) -> None:
        """Begin with the next record."""
        self.held.clear()
        self._num_alike = self._size = self._longest = 0

    def go_back(self) -> None:
        """Begin behind the first line of the record, whose others are read anew."""
        self._again.extendleft(reversed(self.held[1:]))
        self.has_ended = False
        self.begin()

    def _next(self) -> Line | None:
        if self._again:
            return self._again.popleft()
        try:
            found = None if self.damage is not None else next(self._lines, None)
        except Damaged as error:
            self.damage, found = error, None
        self.has_ended = found is None
        return found

    def _measure(self, line: bytes) -> None:
        """Refuse a record that a stray quote has made of many."""
        self._size += len(line)
        self._longest = max(self._longest, len(line))
        num_more = len(self.held) - 1
        if not num_more:
            return
        if self._num_delimiters and line.count(self._delimiter) == self._num_delimiters:
            self._num_alike += 1
        is_many_rows = num_more >= ROW_LINES and self._num_alike >= ROW_SHARE * num_more
        if is_many_rows or self._size - self._longest > RECORD_BYTES:
            raise _Unclosed(UNCLOSED)
