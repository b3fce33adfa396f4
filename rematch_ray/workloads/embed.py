"""Embedding a corpus: Parquet of Items -> model actors -> shards, a quarantine and a manifest.

Every row leaves the stream with a status; the finishing step (workloads/shards.py) splits the good
from the bad and writes the manifest last. A finished directory is left alone; one made with
another model or other settings is refused. Top floor.
"""

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from rematch_ray.config import EmbedSettings
from rematch_ray.data.prompts import Side
from rematch_ray.data.readers.parquet import Unit, list_units, read_unit
from rematch_ray.errors import UserError
from rematch_ray.model.checkpoint import load_identity, resolve_export
from rematch_ray.workloads.runtime import Background, Bundle, connect
from rematch_ray.workloads.shards import Job, finish, read_manifest
from rematch_ray.workloads.stages import (
    EmbedActor,
    EncodeItems,
    ReadCall,
    fingerprint,
    plain_context,
    read_calls,
)

READ_CPUS = 0.25
# rows that pass between stages together: small enough to spread, large enough to group by length
BLOCK_ROWS = 256
# what an encode task's process takes; also what keeps Ray from fusing the stage into the actors',
# where decoding would wait for the forward pass
ENCODER_BYTES = 640 * 2**20
PROGRESS_SECONDS = 5.0


def embed(
    *,
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    side: Side = "document",
    instruction: str | None = None,
    settings: EmbedSettings | None = None,
) -> dict[str, Any]:
    """Embed a corpus to a directory of shards.

    Args:
        model: an export or a run directory.
        data: Parquet files of Items, or directories of them; one or several.
        out: directory to write; a finished one made from the same data in the same way is kept.
        side: which bank of meta tokens reads the items.
        instruction: put before every item; None = the default recorded with the model, "" = none.
        settings: actors, batch sizes and the share of bad rows that is accepted.

    Returns:
        Counts, paths and timing.

    Raises:
        UserError: model, data or output do not fit, the output holds other embeddings, two rows
            have one id, or too many rows are bad.
    """
    settings = settings or EmbedSettings()
    export, target = resolve_export(model).absolute(), Path(out).expanduser().absolute()
    paths = [data] if isinstance(data, str | Path) else data
    units = list_units([Path(path).expanduser().absolute() for path in paths], rows="items")
    job = Job(
        identity=load_identity(export).to_json(),
        side=side,
        instruction=instruction,
        data=fingerprint(units),
        rows_in=sum(unit.num_rows for unit in units),
        model=str(export),
    )
    if (manifest := read_manifest(target, job)) is not None:
        _say(f"{target} holds these embeddings already ({manifest['embedded']} rows)")
        return {**_summary(target, manifest), "skipped": True}
    payload = _payload_type(units)
    started = time.monotonic()
    staging = _fresh_staging(target)
    with connect(embed_bundles(settings)):
        _stream(units, payload, export, job, settings, staging)
        manifest = finish(target, staging, job, max_bad_share=settings.max_bad_share)
    shutil.rmtree(staging)
    seconds = time.monotonic() - started
    return {
        **_summary(target, manifest),
        "seconds": round(seconds, 1),
        "rows_per_second": round(job.rows_in / seconds, 1),
        "skipped": False,
    }


def _summary(target: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    counts = {key: manifest[key] for key in ("side", "rows_in", "embedded", "quarantined")}
    return {"out": str(target), **counts, "shards": len(manifest["shards"])}


def embed_bundles(settings: EmbedSettings) -> list[Bundle]:
    """Return what an embedding job needs of the cluster."""
    return [
        Bundle(
            "embedding process",
            settings.cpus_per_actor,
            settings.gpus_per_actor,
            settings.num_actors,
            "num_actors, cpus_per_actor or gpus_per_actor",
        ),
        Bundle("data task", settings.cpus_per_encoder, key="cpus_per_encoder"),
    ]


def _fresh_staging(target: Path) -> Path:
    """Make the directory for unfinished files, without what an interrupted run left behind."""
    staging = target / ".unfinished"
    try:
        target.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        (staging / "rows").mkdir(parents=True)
        (staging / "progress").mkdir()
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; choose another --out") from error
    return staging


def _stream(
    units: Sequence[Unit],
    payload: pa.DataType | None,
    export: Path,
    job: Job,
    settings: EmbedSettings,
    staging: Path,
) -> None:
    """Run the pipeline in a thread and show its progress; Ctrl-C stays with the main thread."""
    dataset = _pipeline(units, payload, export, job, settings, staging / "progress")
    rows = str(staging / "rows")
    started = time.monotonic()
    write = Background(
        lambda: dataset.write_parquet(rows, min_rows_per_file=settings.rows_per_shard), "embed"
    )
    while not write.wait(PROGRESS_SECONDS):
        _say(progress_line(staging / "progress", job.rows_in, time.monotonic() - started))
    write.result()


def _pipeline(
    units: Sequence[Unit],
    payload: pa.DataType | None,
    export: Path,
    job: Job,
    settings: EmbedSettings,
    progress: Path,
) -> ray.data.Dataset:
    plain_context()
    calls = [ReadCall(_ReadUnit(unit), unit.num_rows) for unit in units]
    device = "cuda" if settings.gpus_per_actor else "cpu"
    return (
        read_calls(calls, num_cpus=READ_CPUS)
        .repartition(target_num_rows_per_block=BLOCK_ROWS)
        .map_batches(
            EncodeItems(str(export), job.side, job.instruction, payload),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=settings.cpus_per_encoder,
            memory=ENCODER_BYTES,
        )
        .map_batches(
            EmbedActor,
            fn_constructor_args=(str(export), job.side, settings.batch_rows, device, str(progress)),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=settings.num_actors),
            num_cpus=settings.cpus_per_actor,
            num_gpus=settings.gpus_per_actor or None,
        )
    )


def progress_line(folder: Path, rows_in: int, seconds: float) -> str:
    """Return the line of progress from what the actors wrote down."""
    done = sum(int(file.read_text() or 0) for file in folder.iterdir())
    if not done:
        return f"embedding {rows_in} rows: starting ({seconds:.0f} s)"
    rate = done / seconds
    left = max(rows_in - done, 0) / rate
    clock = f"{int(left // 60)}:{int(left % 60):02d}"
    return f"embedded {done}/{rows_in} rows  {rate:.0f} rows/s  {clock} left"


class _ReadUnit:
    """Read task: one row group of Items."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def __call__(self) -> list[pa.Table]:
        return [pa.Table.from_batches(read_unit(self._unit))]


def _payload_type(units: Sequence[Unit]) -> pa.DataType | None:
    """Return the payload's type; files that differ in it are refused by name."""
    found: dict[pa.DataType, str] = {}
    for path in dict.fromkeys(unit.path for unit in units):
        schema = pq.read_schema(path)
        if "payload" in schema.names:
            found.setdefault(schema.field("payload").type, path)
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise UserError(
            f"{first} has a payload of type {one}, {second} of {other}; "
            "give every file of a corpus the same payload fields"
        )
    return next(iter(found), None)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
