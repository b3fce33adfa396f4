"""The model's stage of an embedding job: encoded rows in, vectors out.

An adapter: batches are cut by data/batching.py, the forward pass is the embedder's. Loads torch
when the process starts, not when this module is imported. Top floor.
"""

import threading
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rematch_ray.data.batching import BatchLimits, cut_batches, padding_share
from rematch_ray.data.prompts import Side
from rematch_ray.data.rows import EncodedRow, rows_from_table
from rematch_ray.model.heap import keep_freed_memory
from rematch_ray.workloads.embed_progress import ActorCounters, refuse_if_stopped
from rematch_ray.workloads.staging import OK, STAGED_FIELDS, STATUS_FIELD, Staging

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class ActorSettings:
    """What a model process is told.

    Attributes:
        export: the model's export directory.
        side: `query` or `document`.
        batch_rows: most items of a forward pass.
        batch_tokens: most tokens of a padded batch, meta tokens included.
        batch_pixels: most pixels of a batch's images, as the processor resized them.
        precision: `fp32`, `bf16` or `fp16`; None = as the export is stored.
        device: torch device.
        staging: where the process keeps a file with its counters.
    """

    export: str
    side: Side
    batch_rows: int
    batch_tokens: int
    batch_pixels: int
    precision: str | None
    device: str
    staging: Staging


class EmbedActor:
    """Map stage that holds the model: encoded rows -> vectors. Rows with another status pass by.

    Two calls may run at a time: one prepares its batches while the other has the device.

    Args:
        settings: what to load and how much to run at once.
    """

    def __init__(self, settings: ActorSettings) -> None:
        import torch

        from rematch_ray.model.embedder import Embedder

        if settings.device == "cpu":
            keep_freed_memory()
        self._side = settings.side
        self._model = Embedder.from_pretrained(settings.export, device=settings.device)
        if settings.precision is not None:
            # heads and banks stay float32, as in training
            self._model.backbone.to(getattr(torch, DTYPES[settings.precision]))
        self._num_meta = self._model.num_vectors(settings.side)
        self._limits = BatchLimits(
            settings.batch_rows,
            settings.batch_tokens,
            max(1, settings.batch_pixels // self._model.row_encoder.patch_pixels),
        )
        self._device = threading.Lock()
        self._staging = settings.staging
        self._counters = ActorCounters(self._staging.actors)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the staged columns, vectors and fused; zeros where the status is bad.

        Raises:
            UserError: the run was told to stop, or this node has another output directory.
        """
        # here, since nobody is told why a process could not start
        self._staging.refuse_unshared()
        refuse_if_stopped(self._staging.actors)
        status = np.array(table["status"].to_pylist(), dtype=object)
        good = np.flatnonzero(status == OK)
        rows = rows_from_table(table.take(pa.array(good)))
        lengths = [len(row.input_ids) + self._num_meta for row in rows]
        batches = cut_batches(lengths, [len(row.pixels) for row in rows], self._limits)
        vectors = np.zeros(
            (len(status), self._num_meta, self._model.embedding_dim), dtype=np.float16
        )
        fused = None
        if self._model.fused_dim is not None:
            fused = np.zeros((len(status), self._model.fused_dim), dtype=np.float16)
        for chosen in batches:
            made_vectors, made_fused = self._forward([rows[i] for i in chosen])
            vectors[good[chosen]] = made_vectors
            if fused is not None and made_fused is not None:
                fused[good[chosen]] = made_fused
        wrong = ~np.isfinite(vectors).all(axis=(1, 2))
        if fused is not None:
            wrong |= ~np.isfinite(fused).all(axis=1)
        status[wrong] = "the model's vectors are not finite"
        vectors[wrong] = 0
        self._counters.count(
            rows=len(status),
            bad=int((status != OK).sum()),
            tokens=sum(lengths),
            padded=sum(lengths) / (1 - padding_share(lengths, batches)),
        )
        self._counters.note(status[status != OK])
        self._counters.write()
        return _with_vectors(table, status, vectors, fused)

    def _forward(self, rows: list[EncodedRow]) -> tuple[np.ndarray, np.ndarray | None]:
        batch = self._model.batch(rows, self._side)
        with self._device:
            started = time.monotonic()
            made = self._model.embed(batch, self._side).cpu()
            self._counters.count(busy_s=time.monotonic() - started)
        return made.vectors.numpy(), None if made.fused is None else made.fused.numpy()


def _with_vectors(
    table: pa.Table, status: np.ndarray, vectors: np.ndarray, fused: np.ndarray | None
) -> pa.Table:
    made = table.select([field.name for field in STAGED_FIELDS])
    place = made.schema.get_field_index(STATUS_FIELD.name)
    made = made.set_column(place, STATUS_FIELD, pa.array(status, pa.string()))
    if "payload" in table.column_names:
        made = made.append_column(table.schema.field("payload"), table["payload"])
    made = made.append_column("vectors", fixed_size(vectors.reshape(len(vectors), -1)))
    return made if fused is None else made.append_column("fused", fixed_size(fused))


def fixed_size(values: np.ndarray) -> pa.Array:
    """Return an (n, width) float16 array as a fixed_size_list column."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), pa.float16())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
