"""The account of a run: what of its input the sources hold, and what the user must be told of it.

Every row is embedded, quarantined, or the run is refused: rows that are nowhere, ids that occur
twice, too many bad rows. Knows sources and places, nothing of vectors or of Ray. Top floor.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.workloads.ledger import Claim, Ledger, repeated
from rematch_ray.workloads.shard_files import QUARANTINE_SCHEMA, Scan, Source, read_rows, whole_file
from rematch_ray.workloads.staging import ROW_KEY, Staging

REFUSED = "refused.parquet"
REASONS_SHOWN = 3
IDS_SHOWN = 3
PLACES_SHOWN = 4
QUARANTINE_ROWS = 4096


def _claim(ledger: Ledger, found: Scan, chosen: NDArray[np.bool_]) -> Claim:
    """Claim some of the rows of a source."""
    rows = np.flatnonzero(chosen)
    claim = ledger.claim(found.keys[rows])
    return Claim(rows[claim.rows], claim.entries, claim.copies)


@dataclass(frozen=True)
class Account:
    """What the sources hold of the input.

    Attributes:
        ledger: the rows of the input, all that could be claimed.
        sources: files, the first of those that hold a row counts.
        good: for each source its embedded rows that count.
        bad: for each source its bad rows that count.
        id_keys: for each source a hash of the id of each of its good rows.
    """

    ledger: Ledger
    sources: Sequence[Source]
    good: Sequence[Claim]
    bad: Sequence[Claim]
    id_keys: Sequence[NDArray[np.int64]]

    @classmethod
    def of(cls, ledger: Ledger, sources: Sequence[Source], scans: Sequence[Scan]) -> "Account":
        """Let the sources claim what they hold, in their order.

        Good rows first: one that could not be embedded once may have been since.
        """
        good = [_claim(ledger, found, found.good) for found in scans]
        bad = [_claim(ledger, found, ~found.good) for found in scans]
        id_keys = [found.id_keys[own.rows] for found, own in zip(scans, good, strict=True)]
        return cls(ledger, sources, good, bad, id_keys)

    @property
    def quarantined(self) -> int:
        """Bad rows of the input, copies included."""
        return sum(claim.total for claim in self.bad)

    def refuse_lost(self, target: Path) -> None:
        """Refuse to finish when a row of the input is in no source.

        Raises:
            UserError: names the first place.
        """
        lost = self.ledger.unclaimed()
        if not len(lost):
            return
        first = min(lost.tolist(), key=self.ledger.order_of)
        raise UserError(
            f"{len(lost)} of {self.ledger.rows_in} rows were embedded into {target} before, but "
            f"what was written for them is gone, the first is {self.ledger.places(first)[0]}; "
            f"delete {Staging.of(target).root} and give the same command again: what lies in "
            "shards is kept"
        )

    def refuse_too_many_bad(self, max_bad_share: float, target: Path) -> None:
        """Refuse to finish past the accepted share of bad rows, or without a good one.

        Raises:
            UserError: gives the first reasons; all bad rows are written to `refused.parquet`.
        """
        bad, rows_in = self.quarantined, self.ledger.rows_in
        if bad <= max_bad_share * rows_in and bad < rows_in:
            return
        self.write_quarantine(target / REFUSED)
        first = islice(self._bad_rows(), REASONS_SHOWN)
        reasons = "; ".join(f"{row['path']} row {row['row']}: {row['reason']}" for row in first)
        raise UserError(
            f"{bad} of {rows_in} rows cannot be embedded, more than max_bad_share "
            f"{max_bad_share:g} allows ({reasons}); all are listed in {target / REFUSED}"
        )

    def refuse_duplicates(self) -> None:
        """Refuse ids that several embedded rows have.

        Raises:
            UserError: names the first ids of the input and where each occurs.
        """
        found = repeated(self.id_keys, self.good)
        if not found:
            return
        # in the order of the input, so that the message does not depend on how rows were spread
        found.sort(key=lambda at: self.ledger.order_of(int(self.good[at[0]].entries[at[1]])))
        by_id: dict[int, list[tuple[int, int]]] = {}
        for source, number in found:
            by_id.setdefault(int(self.id_keys[source][number]), []).append((source, number))
        told = "; ".join(self._name_duplicate(rows) for rows in islice(by_id.values(), IDS_SHOWN))
        raise UserError(
            f"{len(by_id)} ids occur more than once: {told}"
            f"{' ...' if len(by_id) > IDS_SHOWN else ''}; give every item of a corpus an id of "
            "its own"
        )

    def write_quarantine(self, path: Path) -> None:
        """Write id, source, reason and place of every bad row of the input."""
        rows = self._bad_rows()
        with whole_file(path) as partial, pq.ParquetWriter(partial, QUARANTINE_SCHEMA) as writer:
            while some := list(islice(rows, QUARANTINE_ROWS)):
                writer.write_table(pa.Table.from_pylist(some, QUARANTINE_SCHEMA))

    def _bad_rows(self) -> Iterator[dict[str, Any]]:
        for source, claim in zip(self.sources, self.bad, strict=True):
            if not len(claim.rows):
                continue
            reason = "status" if source.kind == "staged" else "reason"
            batches = read_rows(source, claim.rows, ["id", "source", reason, ROW_KEY])
            told = (row for batch in batches for row in batch.to_pylist())
            for row, entry, copies in zip(told, claim.entries, claim.copies, strict=True):
                row["reason"] = row.pop(reason)
                for place in self.ledger.places(int(entry), int(copies)):
                    yield {**row, "path": place.path, "row": place.row}

    def _name_duplicate(self, rows: Sequence[tuple[int, int]]) -> str:
        """An id in quotes, and the places of the rows that have it."""
        places = [
            str(place)
            for source, number in rows
            for place in self.ledger.places(
                int(self.good[source].entries[number]), int(self.good[source].copies[number])
            )
        ]
        source, number = rows[0]
        row = self.good[source].rows[number : number + 1]
        name = next(read_rows(self.sources[source], row, ["id"])).column("id")[0].as_py()
        more = f" and {len(places) - PLACES_SHOWN} more" if len(places) > PLACES_SHOWN else ""
        return f"{name!r} ({', '.join(places[:PLACES_SHOWN])}{more})"
