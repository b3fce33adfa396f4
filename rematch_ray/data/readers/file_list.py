"""The files of a place in columns: a corpus of image files has one for every row.

An entry is made when it is asked for and not kept. It does not know file systems. Middle floor.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file: path or URI, its name below the place it was found in, bytes, and a stamp."""

    path: str
    name: str
    size: int
    stamp: str

    @property
    def suffix(self) -> str:
        """The name's last suffix in lower case, with its dot; empty without one."""
        return Path(self.name).suffix.lower()


class FileList(Sequence[FileEntry]):
    """Files ordered by name.

    Args:
        names: (n,) names, ascending, `large_string`.
        stamps: (n,) stamps, `large_string`.
        sizes: (n,) bytes.
        root: what stands before a name in its path.
        odd_paths: name -> path of those whose path is another.
        rows: (n,) where each stands in the list that they were taken from; None = they are all.
    """

    def __init__(
        self,
        names: pa.LargeStringArray,
        stamps: pa.LargeStringArray,
        sizes: NDArray[np.int64],
        root: str,
        odd_paths: Mapping[str, str],
        rows: NDArray[np.integer] | None = None,
    ) -> None:
        self.names = names
        self.stamps = stamps
        self.sizes = sizes
        self._root = root
        self._odd_paths = odd_paths
        self._rows = rows

    @classmethod
    def of(cls, entries: Iterable[FileEntry]) -> FileList:
        """Columns of files that come in any order and are not kept."""
        sizes = array("q")
        names, stamps = _Texts(), _Texts()
        root: str | None = None
        odd_paths: dict[str, str] = {}
        for entry in entries:
            if root is None:
                root = entry.path.removesuffix(entry.name)
            if entry.path != root + entry.name:
                odd_paths[entry.name] = entry.path
            names.append(entry.name)
            stamps.append(entry.stamp)
            sizes.append(entry.size)
        unsorted = names.whole()
        order = pc.sort_indices(unsorted)
        return cls(
            unsorted.take(order),
            stamps.whole().take(order),
            np.array(sizes, np.int64)[order.to_numpy()],
            root or "",
            odd_paths,
        )

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[FileEntry]:
        for begin in range(0, len(self), _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            columns = self.names[part], self.sizes[part], self.stamps[part]
            for name, size, stamp in zip(*(column.tolist() for column in columns)):
                yield FileEntry(self._path(name), name, size, stamp)

    @overload
    def __getitem__(self, at: int) -> FileEntry: ...
    @overload
    def __getitem__(self, at: slice) -> FileList: ...
    def __getitem__(self, at: int | slice) -> FileEntry | FileList:
        if isinstance(at, slice):
            return self.take(np.arange(len(self))[at])
        name = self.names[at].as_py()
        return FileEntry(self._path(name), name, int(self.sizes[at]), self.stamps[at].as_py())

    def take(self, rows: NDArray[np.integer]) -> FileList:
        """Some of them, in their order."""
        if len(rows) == len(self):
            return self
        return FileList(
            self.names.take(pa.array(rows)),
            self.stamps.take(pa.array(rows)),
            self.sizes[rows],
            self._root,
            self._odd_paths,
            rows if self._rows is None else self._rows[rows],
        )

    @property
    def rows(self) -> NDArray[np.integer]:
        """(n,) where each stands in the list of all files, which these were taken from."""
        return np.arange(len(self)) if self._rows is None else self._rows

    def ending(self, *suffixes: str) -> FileList:
        """Those whose names end so, in upper or lower case."""
        found = np.zeros(len(self), np.bool_)
        for begin in range(0, len(self), _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            lower = pc.utf8_lower(self.names[part])
            for suffix in suffixes:
                found[part] |= pc.ends_with(lower, suffix).to_numpy(zero_copy_only=False)
        return self.take(np.flatnonzero(found))

    def starting(self, *prefixes: str) -> FileList:
        """Those whose names begin so."""
        found = np.zeros(len(self), np.bool_)
        for prefix in prefixes:
            found |= pc.starts_with(self.names, prefix).to_numpy(zero_copy_only=False)
        return self.take(np.flatnonzero(found))

    def top(self) -> FileList:
        """Those that lie directly in the folder."""
        deep = pc.match_substring(self.names, "/").to_numpy(zero_copy_only=False)
        return self.take(np.flatnonzero(~deep))

    def find(self, name: str) -> FileEntry | None:
        """The file of this name, or None."""
        # as Arrow orders them
        place = bisect_left(range(len(self)), name.encode(), key=self._bytes_at)
        found = place < len(self) and self._bytes_at(place) == name.encode()
        return self[place] if found else None

    def rows_of(self, names: pa.LargeStringArray) -> pa.Int32Array:
        """(m,) where each of many names stands; null where none does."""
        return pc.index_in(names, value_set=self.names)

    def _bytes_at(self, row: int) -> bytes:
        return bytes(self.names[row].as_buffer())

    def _path(self, name: str) -> str:
        return self._odd_paths.get(name) or self._root + name


class _Texts:
    """A column of texts in the making."""

    def __init__(self) -> None:
        self._held: list[str] = []
        self._chunks: list[pa.Array] = []

    def append(self, text: str) -> None:
        self._held.append(text)
        if len(self._held) == _AT_ONCE:
            self._put_away()

    def whole(self) -> pa.LargeStringArray:
        """All of them; nothing is held after that."""
        self._put_away()
        chunks, self._chunks = self._chunks, []
        return pa.concat_arrays(chunks)

    def _put_away(self) -> None:
        self._chunks.append(pa.array(self._held, pa.large_string()))
        self._held = []
