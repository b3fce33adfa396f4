"""A mining job's identity, its unfinished files and its output, which appears whole or not at all.

Beside the output `OUT` an unfinished job keeps `.OUT.unfinished`, with what it was asked for; the
output is that directory's `rows`, renamed. Knows nothing of mining or Ray. Top floor.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rematch_ray.errors import UserError
from rematch_ray.workloads.mining_tasks import Workspace, write_whole

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
UNREADABLE = "unreadable.jsonl"
JOB = "job.json"
LOCK = "LOCK"
FOLDERS = ("scan", "problems", "queries", "items", "documents", "rows", "counts", "outside-items",
           "outside-documents")  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What a directory of mined rows was asked to hold.

    Args:
        model: digest of the model's identity.
        data: fingerprint of the training rows.
        corpus: fingerprint of the corpus, or None.
        index: digest of the manifest of the index's generation, or None.
        settings: those that change what comes out.
    """

    model: str
    data: str
    corpus: str | None
    index: str | None
    settings: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, the format version first."""
        plain = json.loads(json.dumps(asdict(self)))
        return {"format_version": FORMAT_VERSION, **plain}


def read_finished(out: Path, job: Job) -> dict[str, Any] | None:
    """Return the manifest of a finished output of exactly this job, None where there is nothing.

    Raises:
        UserError: the output holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / MANIFEST).is_file():
        raise UserError(f"{out} holds something that is not mined rows; choose another --out")
    manifest = _read(out / MANIFEST)
    _refuse_another(out, manifest.get("job"), job)
    return manifest


@contextmanager
def hold_workspace(out: Path, job: Job) -> Iterator[Workspace]:
    """Hold where the job keeps its files, made new or left by an interrupted run.

    What that run mined from another state of the index is mined anew: rows of two states are of
    different documents.

    Raises:
        UserError: it cannot be written, an interrupted run of another job left it, or another
            process is at work in it.
    """
    root = out.with_name(f".{out.name}.unfinished")
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / LOCK).open("w")
    except OSError as error:
        raise UserError(f"cannot write {root}: {error.strerror}; choose another --out") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            raise UserError(f"{out} is being written by another process: wait for it") from taken
        if (root / JOB).exists():
            _go_on(root, _read(root / JOB), job)
        for name in FOLDERS:
            (root / name).mkdir(exist_ok=True)
        write_whole(root / JOB, json.dumps(job.to_json(), indent=1) + "\n")
        try:
            yield Workspace(root)
        finally:
            scans = root / "scan"
            if scans.is_dir() and not any(scans.iterdir()):
                # nothing was begun: the cluster refused, for example
                shutil.rmtree(root)


def publish(
    workspace: Workspace,
    out: Path,
    manifest: Mapping[str, Any],
    unreadable: Sequence[Mapping[str, Any]],
) -> None:
    """Make the finished rows the output, in one rename, and remove the rest."""
    rows = workspace.root / "rows"
    for leftover in rows.glob(".*"):
        leftover.unlink()
    lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in unreadable)
    write_whole(rows / UNREADABLE, "".join(lines))
    write_whole(rows / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    os.rename(rows, out)
    remove_workspace(out)


def remove_workspace(out: Path) -> None:
    """Remove what a finished job does not need."""
    shutil.rmtree(out.with_name(f".{out.name}.unfinished"), ignore_errors=True)


def _go_on(root: Path, found: dict[str, Any], job: Job) -> None:
    """Refuse what another job left; of another state of the index, forget what came from it."""
    left = found | {"index": job.index} if "index" in found else found
    _refuse_another(root, left, job)
    if found["index"] != job.index:
        # counts first: they say that a row group is finished
        for folder in (root / "counts", root / "rows"):
            shutil.rmtree(folder, ignore_errors=True)
        Workspace(root).lines("items").unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); choose another --out") from error
    return found if isinstance(found, dict) else {}


def _refuse_another(where: Path, found: Any, job: Job) -> None:
    old, new = _flat(found if isinstance(found, dict) else {}), _flat(job.to_json())
    for key in new.keys() | old.keys():
        if old.get(key) != new.get(key):
            raise UserError(
                f"{where} was made with {key} {_short(old.get(key))}, asked for is "
                f"{_short(new.get(key))}; choose another --out, or delete {where}"
            )


def _flat(job: Mapping[str, Any]) -> dict[str, Any]:
    settings = job.get("settings") or {}
    plain = {key: value for key, value in job.items() if key != "settings"}
    return plain | {f"setting {key}": value for key, value in settings.items()}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 24 else f"{text[:20]}…"
