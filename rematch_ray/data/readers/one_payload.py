"""Items whose payload has their own file's type -> the type that all files of a corpus share.

What the payload said before goes along, for the key of the row. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from rematch_ray.data.readers.batches import ERROR_FIELD, conform, to_batches
from rematch_ray.data.readers.content import CONTENT_FIELD
from rematch_ray.data.readers.keys import with_content
from rematch_ray.data.schema import item_schema


def with_payload(
    batches: Iterable[pa.RecordBatch], payload: pa.StructType | None
) -> Iterator[pa.RecordBatch]:
    """Items with another type of payload.

    Args:
        batches: Items with a payload of their file's type, or none, and `error`.
        payload: the type that is wanted.

    Yields:
        Batches of `item_schema(payload)` and `error`, with `payload_content` where the type was
        another; a row whose payload does not fit says so in `error`.
    """
    schema = item_schema(payload)
    for batch in batches:
        place = batch.schema.get_field_index("payload")
        if (batch.schema.field(place).type if place >= 0 else None) == payload:
            yield batch
            continue
        kept = with_content(batch)
        content = [CONTENT_FIELD] if CONTENT_FIELD.name in kept.schema.names else []
        try:
            yield conform(kept, pa.schema([*schema, ERROR_FIELD, *content], schema.metadata))
        # a whole number that no float64 holds
        except pa.ArrowException:
            yield from to_batches(kept.to_pylist(), schema)
