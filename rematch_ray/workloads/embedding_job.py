"""What an embedding directory was asked to hold, and what its manifest says it holds.

A directory without a manifest is not an embedding directory. Knows names, shapes and settings,
nothing of rows or of Ray. Top floor.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rematch_ray.config import EmbedSettings
from rematch_ray.data.prompts import Side
from rematch_ray.data.readers.keys import VERSION
from rematch_ray.errors import UserError
from rematch_ray.index.manifest import write_durably
from rematch_ray.model.checkpoint import load_identity, read_meta
from rematch_ray.model.settings import ModelIdentity, ModelSettings
from rematch_ray.scoring.budget import Ladder
from rematch_ray.workloads.disk import writing
from rematch_ray.workloads.shard_files import Dtype, ShardForm
from rematch_ray.workloads.staging import QUARANTINE, Staging, whole_shards

MANIFEST = "manifest.json"
# by which version of row keys the rows of a directory are known; the first one noted none
ROW_KEYS = "row_keys"
FIRST_VERSION = 1
# settings of a model that decide what of an item it reads; the digest covers all but the first
LIMITS = ("max_image_pixels", "max_text_tokens", "min_pixels", "max_pixels", "visual_tokens")


@dataclass(frozen=True)
class Job:
    """What an embedding directory was asked to hold.

    Args:
        identity: the model's identity, as JSON.
        side: `query` or `document`.
        instruction: put before every item; None = the model's own default.
        data: fingerprint of the input; "" where none tells every change.
        model: the export's path, for whoever searches later (`model_path` in the manifest).
        dtype: element type of the stored vectors.
        num_vectors: vectors stored of each item, the first so many; None = all.
        precision: of the backbone; None = the export's own.
        limits: the model's limits of pixels and tokens, for the manifest.
    """

    identity: dict[str, Any]
    side: Side
    instruction: str | None
    data: str
    model: str
    dtype: Dtype = "float16"
    num_vectors: int | None = None
    precision: str | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a prefix that the model was not trained for.

        Raises:
            UserError: names the prefixes that there are.
        """
        ladder = Ladder.parse(self.identity["ladder"])
        rungs = [rung.r_q if self.side == "query" else rung.r_d for rung in ladder.rungs]
        if self.num_vectors is not None and self.num_vectors not in rungs:
            raise UserError(
                f"num_vectors {self.num_vectors} is no prefix that this model's {self.side} side "
                f"was trained for; allowed: {', '.join(map(str, sorted(set(rungs))))}"
            )

    @classmethod
    def of(
        cls,
        export: Path,
        settings: EmbedSettings,
        *,
        side: Side,
        instruction: str | None,
        data: str,
    ) -> "Job":
        """The job that an export and the settings make, and what else was given.

        Raises:
            UserError: the export cannot be read, or has no such prefix of vectors.
        """
        known = read_meta(export)["settings"]
        return cls(
            identity=load_identity(export).to_json(),
            side=side,
            instruction=instruction,
            data=data,
            model=str(export),
            dtype=settings.store_dtype,
            num_vectors=settings.num_vectors,
            precision=settings.precision,
            limits={name: known.get(name) for name in LIMITS},
        )

    @property
    def shape(self) -> dict[str, int | None]:
        """R, D and F of what is stored."""
        identity = ModelIdentity.from_json(self.identity)
        sides = {"query": identity.num_query_vectors, "document": identity.num_document_vectors}
        num_vectors = self.num_vectors or sides[self.side]
        return {"R": num_vectors, "D": identity.embedding_dim, "F": identity.fused_dim}

    @property
    def settled(self) -> dict[str, Any]:
        """What all runs into one directory must agree in."""
        return {
            "model": self.identity["digest"],
            "side": self.side,
            "instruction": self.instruction,
            "precision": self.precision,
            "dtype": self.dtype,
            "R": self.shape["R"],
        }

    @property
    def form(self) -> ShardForm:
        """How the shards store vectors."""
        shape = self.shape
        assert shape["R"] is not None
        assert shape["D"] is not None
        known = {key: str(value) for key, value in shape.items() if value is not None}
        metadata = {**known, "side": self.side, "dtype": self.dtype}
        return ShardForm(shape["R"], shape["D"], self.dtype, metadata)


def output_directory(out: str | Path) -> Path:
    """Return the absolute path of the directory to write.

    Raises:
        UserError: it is a URI.
    """
    # a Path has made s3:/bucket of s3://bucket
    scheme, separator, _ = str(out).partition(":/")
    if separator and scheme.replace("+", "").isalnum():
        raise UserError(
            f"--out {out} is a URI: embeddings are written to a directory, on a cluster to one "
            "that every node sees under the same path; give such a path, and copy the directory "
            "where it is to go when the job has ended"
        )
    return Path(out).expanduser().absolute()


def refuse_another(target: Path, settled: Mapping[str, Any], job: Job) -> None:
    """Refuse a directory that holds what another job made.

    Args:
        target: the embedding directory.
        settled: what was asked for there, as `Job.settled`.
        job: what is asked for now.

    Raises:
        UserError: names the first thing that differs.
    """
    for key, value in job.settled.items():
        if settled[key] != value:
            raise UserError(
                f"{target} was made with {key} {_short(settled[key])}, asked for is "
                f"{_short(value)}; choose another --out, or delete {target}"
            )


def refuse_foreign(target: Path) -> None:
    """Refuse a file, and a directory of something else: finishing removes old shards by name.

    Raises:
        UserError: names what is there.
    """
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; choose a directory as --out")
    if not target.exists() or (target / MANIFEST).exists() or Staging.of(target).root.exists():
        return
    seen = sorted(entry.name for entry in target.iterdir() if not entry.name.startswith("."))
    if seen:
        raise UserError(
            f"{target} holds {seen[0]!r}, which is no embedding; choose an empty or a new directory"
        )


def read_manifest(target: Path, job: Job) -> dict[str, Any] | None:
    """Return the manifest of a finished directory that this job may be added to; None without one.

    Raises:
        UserError: the directory holds something else than this job may be added to.
    """
    refuse_foreign(target)
    manifest = manifest_in(target)
    if manifest is None:
        return None
    refuse_another(target, _settled_in(manifest), job)
    return manifest


def is_finished(target: Path, manifest: Mapping[str, Any], job: Job) -> bool:
    """Whether a directory holds all of the job's data, as far as a fingerprint and sizes tell.

    Staged rows are left where a run was killed behind its manifest: the next one clears them away.
    """
    return (
        bool(job.data)
        and manifest["data"] == job.data
        and len(list(whole_shards(target, manifest))) == len(manifest["shards"])
        and (not manifest["quarantined"] or (target / QUARANTINE).is_file())
        and not any(Staging.latest(target).rows.glob("*.parquet"))
    )


def claim(staging: Staging, job: Job) -> None:
    """Note what is embedded in a directory that this process holds, or refuse what differs.

    Raises:
        UserError: unfinished rows were made otherwise, or the directory cannot be written.
    """
    wanted = _of_every_row(job)
    found = _noted(staging)
    for key, value in wanted.items():
        if found is not None and found.get(key) != value:
            raise UserError(
                f"{staging.root.parent} holds rows made with {key} {found.get(key)!r}, asked for "
                f"is {value!r}; choose another --out, or delete {staging.root.parent}"
            )
    noted = {**wanted, ROW_KEYS: VERSION}
    if found != noted:
        with writing(staging.root.parent):
            staging.write_job(noted)


def older_keys(staging: Staging, manifest: Mapping[str, Any] | None) -> str | None:
    """Tell that an earlier version keyed the rows of a directory, so that some may be done anew.

    Args:
        staging: of the directory, before it is claimed.
        manifest: of the directory; None = nothing is finished there.

    Returns:
        One line; None where there is nothing to tell.
    """
    made = [noted for noted in (manifest, _noted(staging)) if noted is not None]
    if all(noted.get(ROW_KEYS, FIRST_VERSION) == VERSION for noted in made):
        return None
    return (
        f"{staging.root.parent} was made by an earlier version, whose row keys depended on other "
        "rows: those with other_fields, and of CSV those with numbers such as 5.0, may be embedded "
        "anew, once; the others are kept"
    )


def _noted(staging: Staging) -> dict[str, Any] | None:
    """What `claim` noted, None where nothing was.

    Raises:
        UserError: the file is damaged.
    """
    try:
        found: dict[str, Any] | None = (
            json.loads(staging.job.read_text()) if staging.job.exists() else None
        )
    except ValueError as error:
        raise UserError(f"{staging.job} is damaged ({error}); choose another --out") from error
    return found


def _of_every_row(job: Job) -> dict[str, Any]:
    """What all rows of a directory have in common, as JSON."""
    model = ModelSettings.model_validate(read_meta(Path(job.model))["settings"])
    recorded = {name: texts.get(job.side, "") for name, texts in model.instructions.items()}
    return {
        "model": job.identity["digest"],
        "template": job.identity["template_digest"],
        "side": job.side,
        "instruction": recorded if job.instruction is None else job.instruction,
        "precision": job.precision,
    }


def write_manifest(target: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest durably; readers see the old one or the new one."""
    write_durably(target / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def manifest_in(target: Path) -> dict[str, Any] | None:
    """Return the manifest of a directory, None without one.

    Raises:
        UserError: the file is there and is no manifest.
    """
    file = target / MANIFEST
    if not file.exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads(file.read_text())
        _settled_in(manifest), manifest["data"], manifest["shards"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a manifest ({error}); choose another --out") from error
    return manifest


def _settled_in(manifest: Mapping[str, Any]) -> dict[str, Any]:
    same = {key: manifest[key] for key in ("side", "instruction", "precision", "dtype", "R")}
    return {"model": manifest["identity"]["digest"], **same}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 24 else f"{text[:20]}…'"
