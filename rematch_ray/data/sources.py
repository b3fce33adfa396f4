"""Where training rows come from: sources of any layout, and their pieces.

What a piece holds is the readers' affair, in which order its rows are read that of order.py. Middle
floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from rematch_ray.data.order import SourceRows
from rematch_ray.data.readers.formats import list_data
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import Unit, fingerprint
from rematch_ray.errors import UserError


class SourceSettings(ReaderSettings):
    """One source of training rows."""

    name: str
    """Name of the source; sub-batches hold one source each."""
    path: Path | str
    """File, folder or URI of training rows in any format of Samples (docs/data.md)."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the sub-batches relative to the other sources; none = by its number of rows."""
    max_rows: int | None = Field(default=None, gt=0)
    """Only the first so many rows; null = all."""

    @property
    def reader(self) -> ReaderSettings:
        """How its files are read; rows that carry no source are the source's own."""
        given = {name: getattr(self, name) for name in ReaderSettings.model_fields}
        return ReaderSettings(**given | {"source": self.source or self.name})


def list_source(source: SourceSettings) -> tuple[list[Unit], SourceRows]:
    """The pieces of a source, and what the plan knows of it.

    With `max_rows` the last piece may hold more rows than the plan counts of it.

    Raises:
        UserError: a path, format, setting or column that does not fit; no rows.
    """
    units, sizes = [], []
    left = source.max_rows
    for unit in list_data(source.path, source.reader, rows="samples"):
        if left == 0:
            break
        taken = unit.counted_rows if left is None else min(left, unit.counted_rows)
        left = None if left is None else left - taken
        if taken:
            units.append(unit)
            sizes.append(taken)
    return units, SourceRows(source.name, tuple(sizes), source.weight, fingerprint(units))


def refuse_repeated(sources: Sequence[SourceSettings]) -> None:
    """Refuse sources of one name: they would be told apart by nothing.

    Raises:
        UserError: a name repeats.
    """
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise UserError(f"source names {', '.join(names)} repeat; give each its own")
