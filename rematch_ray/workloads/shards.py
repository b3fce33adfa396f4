"""Finishing an embedding directory: staged rows -> shards, a quarantine, a manifest written last.

A directory without a manifest is not an embedding directory; one with a manifest accounts for every
row of its input. Repeatable: it only reads staged files and overwrites what it wrote. Top floor.
"""

import hashlib
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from rematch_ray.data.prompts import Side
from rematch_ray.data.rows import stable_id
from rematch_ray.data.schema import write_parquet
from rematch_ray.errors import UserError
from rematch_ray.model.settings import ModelIdentity
from rematch_ray.workloads.staging import OK

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
QUARANTINE = "quarantine.parquet"
QUARANTINE_SCHEMA = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("reason", pa.string())]
)
FINISH_CPUS = 0.5
REASONS_SHOWN = 3


@dataclass(frozen=True)
class Job:
    """What an embedding directory was asked to hold.

    Args:
        identity: the model's identity, as JSON.
        side: `query` or `document`.
        instruction: put before every item; None = the model's own default.
        data: fingerprint of the input files.
        rows_in: rows of the input.
        model: the export's path, for whoever searches later (`model_path` in the manifest).
    """

    identity: dict[str, Any]
    side: Side
    instruction: str | None
    data: str
    rows_in: int
    model: str

    @property
    def shape(self) -> dict[str, int | None]:
        """R, D and F of what is stored."""
        identity = ModelIdentity.from_json(self.identity)
        sides = {"query": identity.num_query_vectors, "document": identity.num_document_vectors}
        return {"R": sides[self.side], "D": identity.embedding_dim, "F": identity.fused_dim}


def read_manifest(target: Path, job: Job) -> dict[str, Any] | None:
    """Return the manifest of a finished directory that holds exactly this job, else None.

    Raises:
        UserError: the directory is finished and holds something else.
    """
    file = target / MANIFEST
    if not file.exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads(file.read_text())
        old = {
            "model": manifest["identity"]["digest"],
            "side": manifest["side"],
            "instruction": manifest["instruction"],
            "data": manifest["data"],
        }
    except (ValueError, KeyError) as error:
        raise UserError(f"{file} is not a manifest ({error}); choose another --out") from error
    new = {
        "model": job.identity["digest"],
        "side": job.side,
        "instruction": job.instruction,
        "data": job.data,
    }
    for key, value in new.items():
        if old[key] != value:
            raise UserError(
                f"{target} was made with {key} {_short(old[key])}, asked for is {_short(value)}; "
                f"choose another --out, or delete {target}"
            )
    return manifest


def finish(target: Path, staging: Path, job: Job, *, max_bad_share: float) -> dict[str, Any]:
    """Write shards, quarantine and manifest from the staged rows.

    Args:
        target: the embedding directory.
        staging: holds `rows/*.parquet`, every row with its status.
        job: what was asked for.
        max_bad_share: share of rows that may be quarantined.

    Returns:
        The manifest.

    Raises:
        UserError: two rows have one id, or too many rows are bad; no manifest is written.
        RuntimeError: the staged rows are not the input's rows.
    """
    for old in target.glob("part-*.parquet"):
        old.unlink()
    metadata = {**{k: str(v) for k, v in job.shape.items() if v is not None}, "side": job.side}
    staged = sorted((staging / "rows").glob("*.parquet"))
    made = ray.get(
        [
            _finish_shard.remote(path, target / f"part-{number:05d}.parquet", metadata)
            for number, path in enumerate(staged)
        ]
    )
    shards = [shard for shard, _, _ in made if shard is not None]
    quarantine = pa.concat_tables([QUARANTINE_SCHEMA.empty_table(), *(bad for _, bad, _ in made)])
    _check_count(job, shards, quarantine)
    write_parquet(quarantine, target / QUARANTINE)
    _refuse_too_many_bad(job, quarantine, max_bad_share, target)
    _refuse_duplicates(target, shards, np.concatenate([keys for _, _, keys in made]))
    manifest = {
        "format_version": FORMAT_VERSION,
        "identity": job.identity,
        "model_path": job.model,
        "side": job.side,
        "instruction": job.instruction,
        **job.shape,
        "dtype": "float16",
        "data": job.data,
        "rows_in": job.rows_in,
        "embedded": sum(shard["rows"] for shard in shards),
        "quarantined": quarantine.num_rows,
        "shards": shards,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "software": _software(),
    }
    partial = target / f".{MANIFEST}.unfinished"
    partial.write_text(json.dumps(manifest, indent=1) + "\n")
    partial.replace(target / MANIFEST)
    return manifest


@ray.remote(num_cpus=FINISH_CPUS)
def _finish_shard(
    staged: Path, shard: Path, metadata: dict[str, str]
) -> tuple[dict[str, Any] | None, pa.Table, np.ndarray]:
    """Write one shard from one staged file; return its entry, its bad rows and its ids' keys."""
    table = pq.read_table(staged)
    is_good = pc.equal(table["status"], OK)
    bad = table.filter(pc.invert(is_good)).select(["id", "source", "status"])
    bad = bad.rename_columns(QUARANTINE_SCHEMA.names).cast(QUARANTINE_SCHEMA)
    good = table.filter(is_good).drop_columns(["status"])
    keys = np.array([stable_id(name) for name in good["id"].to_pylist()], dtype=np.int64)
    if not good.num_rows:
        return None, bad, keys
    write_parquet(good.replace_schema_metadata(metadata), shard)
    with shard.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    entry = {
        "file": shard.name,
        "rows": good.num_rows,
        "sha256": digest,
        "bytes": shard.stat().st_size,
    }
    return entry, bad, keys


def _check_count(job: Job, shards: Sequence[dict[str, Any]], quarantine: pa.Table) -> None:
    embedded = sum(shard["rows"] for shard in shards)
    if embedded + quarantine.num_rows != job.rows_in:
        raise RuntimeError(
            f"{job.rows_in} rows went in, {embedded} were embedded and {quarantine.num_rows} "
            "quarantined: rows were lost or doubled; run the job again"
        )


def _refuse_too_many_bad(
    job: Job, quarantine: pa.Table, max_bad_share: float, target: Path
) -> None:
    bad = quarantine.num_rows
    if bad <= max_bad_share * job.rows_in and bad < job.rows_in:
        return
    first = quarantine.slice(0, REASONS_SHOWN).to_pylist()
    reasons = "; ".join(f"{row['id']}: {row['reason']}" for row in first)
    raise UserError(
        f"{bad} of {job.rows_in} rows cannot be embedded, more than max_bad_share "
        f"{max_bad_share:g} allows ({reasons}); all are listed in {target / QUARANTINE}"
    )


def _refuse_duplicates(target: Path, shards: Sequence[dict[str, Any]], keys: np.ndarray) -> None:
    unique, counts = np.unique(keys, return_counts=True)
    doubled = set(unique[counts > 1].tolist())
    if not doubled:
        return
    places: dict[str, list[str]] = {}
    for shard in shards:
        ids = pq.read_table(target / shard["file"], columns=["id"])["id"].to_pylist()
        for row, name in enumerate(ids):
            if stable_id(name) in doubled:
                places.setdefault(name, []).append(f"{shard['file']} row {row}")
    name, where = next((n, w) for n, w in places.items() if len(w) > 1)
    raise UserError(
        f"{len(doubled)} ids occur more than once, the first is {name!r} ({', '.join(where)}); "
        "give every item of a corpus an id of its own"
    )


def _software() -> dict[str, str]:
    names = ("rematch-ray", "torch", "transformers", "ray", "pyarrow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 24 else f"{text[:20]}…'"
