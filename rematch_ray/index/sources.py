"""Where new rows of an index come from: what every source offers, and rows that are in memory.

`EmbeddingShards` reads rows from an embedding directory; `GivenRows` holds some, for writes that
come in one by one. Knows nothing of models or requests. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.shard_columns import check_unit_vectors
from rematch_ray.index.shards import EmbeddingBatch


class RowSource(Protocol):
    """Rows with their vectors, and how these were made."""

    @property
    def where(self) -> str:
        """Where the rows come from, for messages."""
        ...

    @property
    def num_rows(self) -> int:
        """Rows that `batches` gives."""
        ...

    @property
    def num_vectors(self) -> int:
        """R, vectors per row."""
        ...

    @property
    def dim(self) -> int:
        """D, size of a vector."""
        ...

    @property
    def fused_dim(self) -> int | None:
        """F, size of the fused vector; None when there is none."""
        ...

    @property
    def side(self) -> str:
        """`query` or `document`."""
        ...

    @property
    def instruction(self) -> str | None:
        """Instruction that the rows were embedded with."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """Identity of the model that made the vectors."""
        ...

    def payload_fields(self) -> dict[str, str]:
        """Arrow type of every payload field, nested ones by dotted name."""
        ...

    def batches(self, rows: int = 1024) -> Iterator[EmbeddingBatch]:
        """Streams the rows, at most so many at a time; UserError names a row that is not sound."""
        ...


@dataclass(frozen=True)
class GivenRows:
    """Rows of the document side that are in memory, the counterpart of an embedding directory.

    Args:
        rows: all of them.
        identity: of the model that made the vectors.
        instruction: that the documents were embedded with.
        fields: Arrow type of every payload field.
        where: where they come from, for messages.
    """

    rows: EmbeddingBatch
    identity: Mapping[str, Any]
    instruction: str | None
    fields: Mapping[str, str] = field(default_factory=dict)
    where: str = "the documents given"
    side: str = "document"

    @property
    def ids(self) -> list[str]:
        """Ids of all rows."""
        return self.rows.ids

    @property
    def num_rows(self) -> int:
        """See `RowSource`."""
        return len(self.rows.ids)

    @property
    def num_vectors(self) -> int:
        """See `RowSource`."""
        return int(self.rows.vectors.shape[1])

    @property
    def dim(self) -> int:
        """See `RowSource`."""
        return int(self.rows.vectors.shape[2])

    @property
    def fused_dim(self) -> int | None:
        """See `RowSource`."""
        return None if self.rows.fused is None else int(self.rows.fused.shape[1])

    def payload_fields(self) -> dict[str, str]:
        """See `RowSource`."""
        return dict(self.fields)

    def batches(self, rows: int = 1024) -> Iterator[EmbeddingBatch]:
        """See `RowSource`."""
        for start in range(0, self.num_rows, rows):
            batch = self.select(np.arange(start, min(start + rows, self.num_rows))).rows
            check_unit_vectors(batch.vectors, batch.ids, self.where)
            if batch.fused is not None:
                check_unit_vectors(batch.fused[:, None], batch.ids, self.where)
            yield batch

    def select(self, places: NDArray[np.intp] | Sequence[int]) -> GivenRows:
        """Some of the rows, in the order given."""
        held, chosen = self.rows, list(map(int, places))
        some = EmbeddingBatch(
            ids=[held.ids[place] for place in chosen],
            vectors=held.vectors[chosen],
            fused=None if held.fused is None else held.fused[chosen],
            sources=[held.sources[place] for place in chosen],
            payloads=[held.payloads[place] for place in chosen],
        )
        return replace(self, rows=some)
