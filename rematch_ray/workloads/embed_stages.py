"""The CPU stages of an embedding job: read with row keys, then decode and encode.

Adapters between Arrow tables and the middle floor; every table is plain Arrow. A row that cannot be
read or encoded stays in the stream with the reason as its status. Transformers is imported where it
is used: read tasks load this module too, and would spend seconds on it. Top floor.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from rematch_ray.data.prompts import Side
from rematch_ray.data.readers.formats import read_keyed
from rematch_ray.data.readers.units import Unit
from rematch_ray.data.rows import EncodedRow, RowEncoder, rows_to_table
from rematch_ray.data.schema import item_from_row, item_schema
from rematch_ray.errors import UserError
from rematch_ray.model.settings import ModelSettings
from rematch_ray.workloads.stages import reason_of
from rematch_ray.workloads.staging import OK, ROW_KEY, STAGED_FIELDS, Staging

ERROR_FIELD = pa.field("error", pa.string())
# encoded rows that pass on together: pictures can be larger encoded than they were as files
ENCODED_BYTES = 32 * 2**20


class ReadItems:
    """Read task: the rows of one unit with their keys, which it notes when it has come to the end.

    Args:
        unit: what to read.
        number: of the unit in this run.
        staging: where the keys are noted.
    """

    def __init__(self, unit: Unit, number: int, staging: Staging) -> None:
        self._unit = unit
        self._number = number
        self._staging = staging
        key = pa.field(ROW_KEY, pa.int64())
        self._schema = pa.schema([key, *item_schema(unit.payload), ERROR_FIELD])

    def __call__(self) -> Iterator[pa.Table]:
        """Yield tables of row_key, the columns of an Item and error (null = fine).

        Raises:
            UserError: this node has another output directory.
        """
        self._staging.refuse_unshared()
        found = [pa.array([], pa.int64())]
        for batch, keys in read_keyed(self._unit):
            found.append(keys)
            yield self._uniform(batch, keys)
        # noted last: a unit that is noted was read to its end
        unit = self._unit
        path = unit.place if unit.num_rows is None else unit.path
        self._staging.write_input(self._number, pa.concat_arrays(found), path, unit.first_row)

    def _uniform(self, batch: pa.RecordBatch, keys: pa.Array) -> pa.Table:
        """The batch with the columns that every other unit's have."""
        columns = []
        for field in self._schema:
            if field.name == ROW_KEY:
                columns.append(keys)
            elif field.name in batch.schema.names:
                columns.append(batch.column(field.name).cast(field.type))
            else:
                columns.append(pa.nulls(batch.num_rows, field.type))
        return pa.Table.from_arrays(columns, schema=self._schema)


class EncodeItems:
    """Map stage on CPU: Items -> encoded rows. A row that cannot be encoded keeps the reason.

    Args:
        export: the model's export directory; only its processors are loaded, once per process.
        side: `query` or `document`.
        instruction: put before every item; None = the default recorded for the item's source.
        payload: type of the payload column, the same for every block; None = no payload.
    """

    def __init__(
        self, export: str, side: Side, instruction: str | None, payload: pa.DataType | None
    ) -> None:
        self._export = export
        self._side = side
        self._instruction = instruction
        fields = [*STAGED_FIELDS, *([] if payload is None else [pa.field("payload", payload)])]
        self._schema = pa.schema(fields)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Yield the staged columns and those of `ROW_SCHEMA` (null where the status is bad)."""
        kept: list[dict[str, Any]] = []
        encoded: list[EncodedRow] = []
        held = 0
        for number in range(table.num_rows):
            row = table.slice(number, 1).to_pylist()[0]
            outcome = self._encode(row, number)
            if isinstance(outcome, EncodedRow):
                encoded.append(outcome)
                held += len(outcome.pixels.data)
                kept.append(_kept(row, outcome.id, OK))
            else:
                kept.append(_kept(row, row.get("id"), outcome))
            if held > ENCODED_BYTES:
                yield self._assemble(kept, encoded)
                kept, encoded, held = [], [], 0
        yield self._assemble(kept, encoded)

    def _encode(self, row: Mapping[str, Any], number: int) -> EncodedRow | str:
        """The encoded row, or why there is none."""
        if row.get("error"):
            return str(row["error"])
        encoder, settings = load_encoder(self._export)
        try:
            item = item_from_row(row, where=f"row {number}")
            instruction = self._instruction
            if instruction is None:
                instruction = settings.instructions.get(item.source, {}).get(self._side)
            return encoder.encode(item, self._side, instruction)
        except UserError as error:
            return reason_of(error)

    def _assemble(self, kept: list[dict[str, Any]], encoded: list[EncodedRow]) -> pa.Table:
        columns = pa.Table.from_pylist(kept, schema=self._schema)
        place = iter(range(len(encoded)))
        places = [next(place) if row["status"] == OK else None for row in kept]
        spread = rows_to_table(encoded).take(pa.array(places, pa.int64()))
        for name in spread.column_names:
            if name != "id":
                columns = columns.append_column(spread.schema.field(name), spread[name])
        return columns


def _kept(row: Mapping[str, Any], item_id: str | None, status: str) -> dict[str, Any]:
    return {
        ROW_KEY: row.get(ROW_KEY),
        "id": item_id,
        "source": row.get("source") or "",
        "parent_id": row.get("parent_id"),
        "status": status,
        "payload": row.get("payload"),
    }


@lru_cache(maxsize=2)
def load_encoder(export: str) -> tuple[RowEncoder, ModelSettings]:
    """Load an export's processors and settings once per process."""
    from rematch_ray.model.checkpoint import load_row_encoder, read_meta

    settings = ModelSettings.model_validate(read_meta(Path(export))["settings"])
    return load_row_encoder(export), settings
