"""Finishing an embedding directory: staged rows -> shards, a quarantine, a manifest written last.

Repeatable: until the new manifest stands nothing that an earlier one names is touched. A top-up
keeps the shards of earlier runs but for the rows that have left the input; a row that is in a shard
is not written again. The driver holds some 100 bytes per row, no vectors. Top floor.
"""

import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from rematch_ray.data.readers.keys import VERSION
from rematch_ray.errors import UserError
from rematch_ray.index.manifest import sync_directory
from rematch_ray.workloads.account import REFUSED, Account
from rematch_ray.workloads.disk import writing
from rematch_ray.workloads.embedding_job import (
    ROW_KEYS,
    Job,
    manifest_in,
    write_manifest,
)
from rematch_ray.workloads.ledger import Claim, Ledger
from rematch_ray.workloads.runtime import user_error_in
from rematch_ray.workloads.shard_files import (
    Piece,
    Scan,
    ShardForm,
    Source,
    pack,
    scan,
    write_shard,
)
from rematch_ray.workloads.staging import QUARANTINE, Staging, whole_shards

FORMAT_VERSION = 1
FINISH_CPUS = 0.5


def finish(
    target: Path,
    staging: Staging,
    job: Job,
    *,
    num_units: int,
    max_bad_share: float,
    rows_per_shard: int,
) -> dict[str, Any]:
    """Write shards, quarantine and manifest from the rows of this run and of earlier ones.

    Args:
        target: the embedding directory.
        staging: its staged rows, and the row keys of the input; nothing of it is changed.
        job: what was asked for.
        num_units: units of the input, each of which notes its rows when it is read to its end.
        max_bad_share: share of rows that may be quarantined.
        rows_per_shard: rows that a new shard holds at least, but for the last.

    Returns:
        The manifest.

    Raises:
        UserError: the input has no rows, two rows have one id, too many rows are bad, rows of the
            input are nowhere to be found, or the disk is full; an earlier manifest still holds.
        RuntimeError: a unit of the input did not note its rows, so that they would go unnoticed.
    """
    with writing(target):
        noted = list(staging.input_files())
        if len(noted) != num_units:
            raise RuntimeError(
                f"{num_units} pieces of the data were to be read, {len(noted)} were noted in "
                f"{staging.input}: run the same command again"
            )
        ledger = Ledger(noted)
        if not ledger.rows_in:
            raise UserError("the data holds no rows; give files with at least one")
        old = manifest_in(target)
        sources = list(_sources(target, staging, old))
        scans: list[Scan] = _get([_scan.remote(source) for source in sources])
        account = Account.of(ledger, sources, scans)
        account.refuse_lost(target)
        account.refuse_too_many_bad(max_bad_share, target)
        account.refuse_duplicates()
        pieces = _pieces(sources, scans, account.good)
        shards = _write_shards(target, staging, pack(pieces, job.form, rows_per_shard), old, job)
        account.write_quarantine(target / QUARANTINE)
        manifest = _describe(job, account, shards)
        write_manifest(target, manifest)
        _remove_leftovers(target, manifest)
        (target / REFUSED).unlink(missing_ok=True)
        return manifest


@ray.remote(num_cpus=FINISH_CPUS)
def _scan(source: Source) -> Scan:
    return scan(source)


@ray.remote(num_cpus=FINISH_CPUS)
def _write_shard(pieces: Sequence[Piece], path: Path, form: ShardForm) -> dict[str, Any]:
    return write_shard(pieces, path, form)


def _get(refs: Sequence[Any]) -> list[Any]:
    """Wait for tasks; what the user can mend is raised without the worker's stack."""
    try:
        made: list[Any] = ray.get(list(refs))
    except RayTaskError as error:
        if (mistake := user_error_in(error)) is not None:
            raise UserError(str(mistake)) from error
        raise
    return made


def _sources(target: Path, staging: Staging, old: Mapping[str, Any] | None) -> Iterator[Source]:
    """Yield what may hold rows, finished ones first: a row that is there is not written again."""
    if old is not None:
        for path, entry in whole_shards(target, old):
            yield Source(path, "shard", entry)
    for path in sorted(staging.rows.glob("*.parquet")):
        yield Source(path, "staged")
    # last: the reason that counts is the one of the latest run
    if old is not None and (target / QUARANTINE).is_file():
        yield Source(target / QUARANTINE, "quarantine")


def _pieces(
    sources: Sequence[Source], scans: Sequence[Scan], good: Sequence[Claim]
) -> Iterator[Piece]:
    """Yield the embedded rows that count, source by source."""
    for source, found, claim in zip(sources, scans, good, strict=True):
        if len(claim.rows):
            yield Piece(source, claim.rows, found.schema, whole=len(claim.rows) == len(found.keys))


def _write_shards(
    target: Path,
    staging: Staging,
    packs: Iterable[Sequence[Piece]],
    old: Mapping[str, Any] | None,
    job: Job,
) -> list[dict[str, Any]]:
    """Keep a shard that is to stay as it is, write the others under names that were not used.

    Tasks write them in the run's own folder, from where this process alone moves them.
    """
    taken = [_number_of(entry["file"]) for entry in old["shards"]] if old is not None else []
    number = max(taken, default=-1) + 1
    kept: list[dict[str, Any]] = []
    made = []
    for pieces in packs:
        if len(pieces) == 1 and pieces[0].whole and pieces[0].source.entry is not None:
            kept.append(dict(pieces[0].source.entry))
        else:
            path = staging.shards / f"part-{number:05d}.parquet"
            made.append(_write_shard.remote(pieces, path, job.form))
            number += 1
    new = _get(made)
    for entry in new:
        (staging.shards / entry["file"]).rename(target / entry["file"])
    sync_directory(target)
    return [*kept, *new]


def _number_of(name: str) -> int:
    return int(name.removeprefix("part-").removesuffix(".parquet"))


def _remove_leftovers(target: Path, manifest: Mapping[str, Any]) -> None:
    """Remove shards that the manifest does not name: of runs that were cut off, or replaced."""
    named = {shard["file"] for shard in manifest["shards"]}
    for path in (*target.glob("part-*.parquet"), *target.glob(".part-*.unfinished")):
        if path.name not in named:
            path.unlink()


def _describe(job: Job, account: Account, shards: list[dict[str, Any]]) -> dict[str, Any]:
    embedded, rows_in = sum(shard["rows"] for shard in shards), account.ledger.rows_in
    assert embedded + account.quarantined == rows_in, (embedded, account.quarantined, rows_in)
    return {
        "format_version": FORMAT_VERSION,
        ROW_KEYS: VERSION,
        "identity": job.identity,
        "limits": dict(job.limits),
        "model_path": job.model,
        "side": job.side,
        "instruction": job.instruction,
        **job.shape,
        "dtype": job.dtype,
        "precision": job.precision,
        "data": job.data,
        "rows_in": rows_in,
        "embedded": embedded,
        "quarantined": account.quarantined,
        "shards": shards,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "software": _software(),
    }


def _software() -> dict[str, str]:
    names = ("rematch-ray", "torch", "transformers", "ray", "pyarrow", "pillow", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
