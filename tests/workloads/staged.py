"""Staged rows and inputs of an embedding directory, written as the stream writes them."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rematch_ray.data.rows import stable_id
from rematch_ray.workloads.embedding_job import Job, manifest_in
from rematch_ray.workloads.shards import finish
from rematch_ray.workloads.staging import OK, Staging
from tests.index.made import halves, unit

R, D, F = 6, 16, 24
LADDER = ["1x1", "2x3", "4x6"]


@dataclass(frozen=True)
class Row:
    """A row of an input: its id, a version of its content, and what came of it."""

    id: str
    version: int = 0
    status: str = OK

    @property
    def key(self) -> int:
        return stable_id(f"{self.id}/{self.version}")

    @property
    def vectors(self) -> np.ndarray:
        return unit((R, D), self.key % 2**32)

    @property
    def fused(self) -> np.ndarray:
        return unit((F,), self.key % 2**31)


def rows_of(names: Sequence[str], **changes: Any) -> list[Row]:
    return [Row(name, **changes) for name in names]


def job(**changes: Any) -> Job:
    identity = {
        "digest": "d1" * 32,
        "name": "stub",
        "ladder": LADDER,
        "num_query_vectors": 4,
        "num_document_vectors": R,
        "embedding_dim": D,
        "fused_dim": F,
        "template_digest": "t",
    }
    given: dict[str, Any] = {
        "identity": identity,
        "side": "document",
        "instruction": None,
        "data": "one",
        "model": "/somewhere/model",
    }
    return Job(**(given | changes))


def set_input(target: Path, units: Sequence[Sequence[Row]]) -> Staging:
    """A new run whose input is these rows: unit 0 is `a.jsonl`, unit 1 `b.jsonl`, ..."""
    staging = Staging.of(target)
    staging.begin_run()
    staging.note_finished(target, manifest_in(target))
    for number, rows in enumerate(units):
        keys = pa.array([row.key for row in rows], pa.int64())
        staging.write_input(number, keys, f"{chr(97 + number)}.jsonl", 0)
    return staging


def stage(target: Path, rows: Sequence[Row], *, name: str | None = None) -> Path:
    """One file of staged rows, and their keys among what is done."""
    count = len(rows)
    vectors = np.stack([row.vectors for row in rows]) if count else np.zeros((0, R, D))
    fused = np.stack([row.fused for row in rows]) if count else np.zeros((0, F))
    columns = {
        "row_key": pa.array([row.key for row in rows], pa.int64()),
        "id": pa.array([row.id for row in rows], pa.string()),
        "source": pa.array(["notes"] * count, pa.string()),
        "status": pa.array([row.status for row in rows], pa.string()),
        "payload": pa.array(
            [{"version": row.version} for row in rows], pa.struct([("version", pa.int64())])
        ),
        "vectors": halves(vectors.reshape(count, R * D)),
        "fused": halves(fused),
    }
    staging = Staging.latest(target)
    file = staging.rows / (name or f"{uuid.uuid4().hex}.parquet")
    for folder in (staging.rows, staging.done):
        folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)
    pq.write_table(pa.table({"row_key": columns["row_key"]}), staging.done / file.name)
    return file


def done_keys(target: Path) -> set[int]:
    """The keys that Ray's filter drops, as it reads them."""
    files = Staging.latest(target).done.glob("*.parquet")
    return {key for file in files for key in pq.read_table(file)["row_key"].to_pylist()}


def finished(
    target: Path,
    *,
    num_units: int | None = None,
    rows_per_shard: int = 1,
    max_bad_share: float = 0.5,
    settles: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """Finish, and settle as the job does unless it is killed in between."""
    staging, asked = Staging.latest(target), job(**changes)
    manifest = finish(
        target,
        staging,
        asked,
        num_units=num_units or len(list(staging.input_files())),
        max_bad_share=max_bad_share,
        rows_per_shard=rows_per_shard,
    )
    if settles:
        staging.settle(target, manifest)
    return manifest
