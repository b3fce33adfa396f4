"""Ray Data's building blocks: readers as a Datasource, and the stage that holds the model.

Adapters: they call the middle floor and pass Arrow tables on. All tables are plain Arrow
(`batch_format="pyarrow"`): with Ray's default format nested columns would be written as pickles.
Torch and transformers are imported where they are used: read tasks and Ray's coordinators load this
module too, and would spend seconds on them. Top floor.
"""

import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from rematch_ray.data.prompts import Side
from rematch_ray.data.readers.parquet import Unit
from rematch_ray.data.rows import EncodedRow, RowEncoder, rows_from_table, rows_to_table
from rematch_ray.data.schema import item_from_row
from rematch_ray.errors import UserError
from rematch_ray.model.settings import ModelSettings

if TYPE_CHECKING:
    from rematch_ray.data.samples import SampleEncoder


@dataclass(frozen=True)
class ReadCall:
    """One read task: what to call on a worker, and how many rows it will yield."""

    read: Callable[[], Iterable[pa.Table]]
    num_rows: int


class ReaderSource(Datasource):
    """A Ray Datasource over any reader: one read task per call, in the order given."""

    def __init__(self, calls: Sequence[ReadCall]) -> None:
        super().__init__()
        self._calls = calls

    def get_name(self) -> str:
        """Name shown in Ray's dashboard."""
        return "Reader"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown: Ray then keeps to the number of calls."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: ray.data.DataContext | None = None,
    ) -> list[ReadTask]:
        """Return one task per call, whatever parallelism Ray proposes."""
        return [
            ReadTask(
                call.read,
                BlockMetadata(
                    num_rows=call.num_rows, size_bytes=None, input_files=None, exec_stats=None
                ),
            )
            for call in self._calls
        ]


def read_calls(
    calls: Sequence[ReadCall], *, num_cpus: float, at_once: int | None = None
) -> ray.data.Dataset:
    """Return the dataset of what the calls yield; call `i` comes before call `i + 1`.

    Args:
        calls: one read task each.
        num_cpus: logical CPUs of a read task.
        at_once: read tasks that run at the same time; None = as many as there is room for.
    """
    return ray.data.read_datasource(
        ReaderSource(calls),
        override_num_blocks=len(calls),
        num_cpus=num_cpus,
        compute=ray.data.TaskPoolStrategy(size=at_once),
    )


class PauseBetweenSteps:
    """Execution callback that lets Ray's scheduling loop rest.

    While all that could be done is held back, because the consumer is slower than the stages, the
    loop of Ray 2.60 never waits: beside a training run it took 80 % of a core.
    """

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing to do."""

    def on_execution_step(self, executor: Any) -> None:
        """Rest; the loop still does all that is ready in one step."""
        time.sleep(LOOP_PAUSE_S)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing to do."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing to do."""


def plain_context() -> None:
    """Set this process's Data context for our pipelines; a dataset captures it when it is made."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # it warns that there are no progress bars, which we asked for
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [PauseBetweenSteps]


def fingerprint(units: Sequence[Unit]) -> str:
    """Identify what the units hold: their place, and the footer of each of their files.

    A Parquet footer has the sizes and value ranges of every column, so other content shows.
    """
    digest = hashlib.sha256()
    for path in dict.fromkeys(unit.path for unit in units):
        with Path(path).open("rb") as file:
            file.seek(-8, os.SEEK_END)
            length = int.from_bytes(file.read(4), "little")
            file.seek(-8 - length, os.SEEK_END)
            digest.update(f"{Path(path).name}:{length}:".encode() + file.read(length))
    digest.update(json.dumps([[u.row_group, u.num_rows] for u in units]).encode())
    return digest.hexdigest()


def reason_of(error: BaseException) -> str:
    """Return an error's message on one line, for a column or a log."""
    return " ".join(str(error).split()) or type(error).__name__


LOOP_PAUSE_S = 0.05
OK = "ok"
STATUS_FIELD = pa.field("status", pa.string())


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
        self._payload = payload

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return id, source, payload?, status and the columns of `ROW_SCHEMA` (null where bad)."""
        encoder, settings = load_encoder(self._export)
        encoded: list[EncodedRow] = []
        kept: list[dict[str, Any]] = []
        for number, row in enumerate(table.to_pylist()):
            try:
                item = item_from_row(row, where=f"row {number}")
                instruction = self._instruction
                if instruction is None:
                    instruction = settings.instructions.get(item.source, {}).get(self._side)
                encoded.append(encoder.encode(item, self._side, instruction))
                kept.append(_kept(row, item.id, OK))
            except UserError as error:
                kept.append(_kept(row, row.get("id") or f"row {number}", reason_of(error)))
        return self._assemble(kept, encoded)

    def _assemble(self, kept: list[dict[str, Any]], encoded: list[EncodedRow]) -> pa.Table:
        fields = [pa.field("id", pa.string()), pa.field("source", pa.string()), STATUS_FIELD]
        if self._payload is not None:
            fields.append(pa.field("payload", self._payload))
        columns = pa.Table.from_pylist(kept, schema=pa.schema(fields))
        place = iter(range(len(encoded)))
        places = [next(place) if row["status"] == OK else None for row in kept]
        spread = rows_to_table(encoded).take(pa.array(places, pa.int64()))
        for name in spread.column_names:
            if name != "id":
                columns = columns.append_column(spread.schema.field(name), spread[name])
        return columns


def _kept(row: Mapping[str, Any], item_id: str, status: str) -> dict[str, Any]:
    return {
        "id": item_id,
        "source": row.get("source") or "",
        "status": status,
        "payload": row.get("payload"),
    }


class EmbedActor:
    """Map stage that holds the model: encoded rows -> vectors. Rows with another status pass by.

    Args:
        export: the model's export directory.
        side: `query` or `document`.
        batch_rows: rows per forward pass; rows of similar length go together.
        device: torch device.
        progress: directory in which this actor keeps a file with its number of rows done.
    """

    def __init__(
        self, export: str, side: Side, batch_rows: int, device: str, progress: str
    ) -> None:
        from rematch_ray.model.embedder import Embedder

        self._progress = Path(progress) / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._done = 0
        self._model = Embedder.from_pretrained(export, device=device)
        self._side = side
        self._batch_rows = batch_rows

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return id, source, payload?, status, vectors and fused; zeros where the status is bad."""
        status = np.array(table["status"].to_pylist(), dtype=object)
        good = np.flatnonzero(status == OK)
        rows = rows_from_table(table.take(pa.array(good)))
        vectors = np.zeros(
            (len(status), self._model.num_vectors(self._side), self._model.embedding_dim),
            dtype=np.float16,
        )
        fused = None
        if self._model.fused_dim is not None:
            fused = np.zeros((len(status), self._model.fused_dim), dtype=np.float16)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
        for start in range(0, len(order), self._batch_rows):
            chosen = order[start : start + self._batch_rows]
            batch = self._model.batch([rows[i] for i in chosen], self._side)
            made = self._model.embed(batch, self._side).cpu()
            vectors[good[chosen]] = made.vectors.numpy()
            if fused is not None and made.fused is not None:
                fused[good[chosen]] = made.fused.numpy()
        wrong = ~np.isfinite(vectors).all(axis=(1, 2))
        status[wrong] = "the model's vectors are not finite"
        self._done += len(status)
        self._progress.write_text(str(self._done))
        return _with_vectors(table, status, vectors, fused)


def _with_vectors(
    table: pa.Table, status: np.ndarray, vectors: np.ndarray, fused: np.ndarray | None
) -> pa.Table:
    keep = [name for name in ("id", "source", "payload") if name in table.column_names]
    made = table.select(keep).append_column(STATUS_FIELD, pa.array(status, pa.string()))
    made = made.append_column("vectors", fixed_size(vectors.reshape(len(vectors), -1)))
    return made if fused is None else made.append_column("fused", fixed_size(fused))


def fixed_size(values: np.ndarray) -> pa.Array:
    """Return an (n, width) float16 array as a fixed_size_list column."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), pa.float16())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


@lru_cache(maxsize=2)
def load_encoder(export: str) -> tuple[RowEncoder, ModelSettings]:
    """Load an export's processors and settings once per process."""
    from rematch_ray.model.checkpoint import load_row_encoder, read_meta

    settings = ModelSettings.model_validate(read_meta(Path(export))["settings"])
    return load_row_encoder(export), settings


class EncodeSamples:
    """The stream's encode stage: a `SampleEncoder` that loads its processors once per process.

    Args:
        settings: of the model.
        max_negatives: hard negatives taken per row.
        seed: of the draws.
    """

    def __init__(self, settings: ModelSettings, *, max_negatives: int, seed: int) -> None:
        self._arguments = (settings.model_dump_json(), max_negatives, seed)

    def __call__(self, tables: list[pa.Table], index: int, masked_rows: int) -> pa.Table:
        """Encode the samples of all sub-batches of step `index`, in order, then masked rows."""
        return _sample_encoder(*self._arguments)(tables, index, masked_rows=masked_rows)


@lru_cache(maxsize=1)
def _sample_encoder(settings: str, max_negatives: int, seed: int) -> "SampleEncoder":
    from rematch_ray.data.samples import SampleEncoder
    from rematch_ray.model.checkpoint import build_row_encoder

    model = ModelSettings.model_validate_json(settings)
    return SampleEncoder(
        build_row_encoder(model.base, model),
        max_negatives=max_negatives,
        seed=seed,
        instructions=model.instructions,
    )
