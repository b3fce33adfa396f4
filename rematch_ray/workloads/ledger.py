"""The account of a corpus: which rows went in, and which were found again.

Holds 17 bytes per row of the input, whatever the rows are; the files of `Staging.input` are read
again only for the places of the few rows that are named to the user. Knows row keys, nothing of
vectors or of Ray. Top floor.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rematch_ray.workloads.staging import ROW_KEY

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Place:
    """Where a row of the input came from."""

    path: str
    row: int

    def __str__(self) -> str:
        return f"{self.path} row {self.row}"


@dataclass(frozen=True)
class Claim:
    """The rows of one source that count.

    Attributes:
        rows: (n,) their numbers in the source, ascending.
        entries: (n,) where each one's key stands first in the ledger.
        copies: (n,) rows of the input with that key.
    """

    rows: Int64
    entries: Int64
    copies: Int64

    def __getitem__(self, chosen: NDArray[np.bool_]) -> "Claim":
        return Claim(self.rows[chosen], self.entries[chosen], self.copies[chosen])

    @property
    def total(self) -> int:
        """Rows of the input that these stand for."""
        return int(self.copies.sum())


class Ledger:
    """Every row of the input by its key; sources claim the keys they hold, each key once.

    Args:
        files: of `INPUT_SCHEMA`, one for each unit of the input.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = list(files)
        found = [pq.read_table(file, columns=[ROW_KEY])[ROW_KEY].to_numpy() for file in self._files]
        self._starts = np.cumsum([0, *(len(keys) for keys in found)])
        keys = np.concatenate([np.empty(0, np.int64), *found])
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]
        self._claimed = np.zeros(len(keys), dtype=bool)
        # of this run only: the next one writes other files under the same names
        self._read_places = lru_cache(maxsize=4)(_read_places)

    @property
    def rows_in(self) -> int:
        """Rows of the input, copies included."""
        return len(self._sorted)

    def claim(self, keys: Int64) -> Claim:
        """Take what a source holds of the input and no source before it held.

        Args:
            keys: (n,) row keys of the source's rows; a key that is repeated counts once.
        """
        first = np.searchsorted(self._sorted, keys, side="left")
        beyond = np.searchsorted(self._sorted, keys, side="right")
        rows = np.flatnonzero(beyond > first)
        rows = rows[~self._claimed[first[rows]]]
        _, earliest = np.unique(keys[rows], return_index=True)
        rows = rows[np.sort(earliest)]
        self._claimed[first[rows]] = True
        return Claim(rows, first[rows], (beyond - first)[rows])

    def unclaimed(self) -> Int64:
        """Entries that no source held, one for each key."""
        is_first = np.ones(self.rows_in, dtype=bool)
        is_first[1:] = self._sorted[1:] != self._sorted[:-1]
        return np.flatnonzero(is_first & ~self._claimed)

    def order_of(self, entry: int) -> int:
        """How many rows of the input stand before an entry's first."""
        return int(self._order[entry])

    def places(self, entry: int, copies: int = 1) -> list[Place]:
        """Where an entry's rows came from, in the order of the input."""
        return [self._place(int(p)) for p in self._order[entry : entry + copies]]

    def _place(self, position: int) -> Place:
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        table = self._read_places(self._files[number])
        row = position - int(self._starts[number])
        return Place(table["path"][row].as_py(), table["row"][row].as_py())


def _read_places(file: Path) -> pa.Table:
    return pq.read_table(file, columns=["path", "row"])


def repeated(id_keys: Sequence[Int64], claims: Sequence[Claim]) -> list[tuple[int, int]]:
    """Find rows whose id another row has too.

    Args:
        id_keys: for each source a hash of the id of each claimed row.
        claims: of the same sources.

    Returns:
        Source and number in `claims[source].rows` of every row that shares its id, a row that has
        copies among them.
    """
    every = np.concatenate([np.empty(0, np.int64), *id_keys])
    every.sort()
    shared = np.unique(every[1:][every[1:] == every[:-1]])
    found = []
    for source, (keys, claim) in enumerate(zip(id_keys, claims, strict=True)):
        wanted = np.isin(keys, shared) | (claim.copies > 1)
        found += [(source, number) for number in np.flatnonzero(wanted).tolist()]
    return found
