"""`shards.json`: which shards make an index, and at which generation of each it stands.

    shards.json                  replaced by rename: a reader sees the old set or the new one
    shard-00000-of-00004/ ...    ordinary indexes, whose published generation may be one ahead
    LOCK                         held by the one writer of the set

Readers open shards at the generations named here, whatever a shard itself has published since. A
writer publishes at most one generation of each shard, then the set; a shard that is ahead of the
set when a writer begins, or when one fails, was left by a change that never came to be: it goes
back to what the set names, which is always one of the two generations that a shard keeps. Knows
nothing of documents. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rematch_ray.errors import UserError
from rematch_ray.index.generation import generation_file, read_current
from rematch_ray.index.manifest import (
    FORMAT_VERSION,
    GenerationManifest,
    hash_file,
    read_manifest,
    unfinished_name,
    write_manifest,
)
from rematch_ray.index.records import read_record, reading
from rematch_ray.index.sharding.hashing import HASH_RULE, shard_name
from rematch_ray.index.store import LOCK_FILE, IndexInfo, describe_index, hold_lock, now, roll_back

SET_FILE = "shards.json"
# what a build keeps here until it ends
ROUTED, TRAINED = ".routed", ".trained"
_OWN_NAMES = {SET_FILE, unfinished_name(SET_FILE), LOCK_FILE, ROUTED, TRAINED}
# what all shards have in common
_SHARED = ("identity", "ladder", "default_coarse", "side", "instruction", "dim", "fused_dim")


@dataclass(frozen=True)
class ShardEntry:
    """A shard as the set names it: directory, generation, SHA-256 of the generation's manifest."""

    name: str
    generation: str
    manifest_sha256: str


@dataclass(frozen=True)
class ShardSet:
    """One state of an index that is split into shards.

    Args:
        generation: number of the state, from 1.
        created: time, ISO 8601.
        num_shards: N.
        hash: how a document's shard is found: `blake2b-64` of its id modulo N.
        identity: the model's identity.
        ladder: rungs as text.
        default_coarse: coarse choice when a search names none.
        side: side of the model that made the vectors.
        instruction: instruction the documents were embedded with.
        dim: D of the multi-vectors.
        fused_dim: F of the fused vector, or None.
        shards: in order of their numbers.
        calibration: what the doctor measured; None until it has.
    """

    generation: int
    created: str
    num_shards: int
    hash: str
    identity: Mapping[str, Any]
    ladder: tuple[str, ...]
    default_coarse: str
    side: str
    instruction: str | None
    dim: int
    fused_dim: int | None
    shards: tuple[ShardEntry, ...]
    calibration: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """Name of the state, as a search reports it."""
        return f"set-{self.generation:06d}"

    @classmethod
    def read(cls, path: Path) -> ShardSet:
        """Reads the set of an index directory.

        Raises:
            UserError: missing, unreadable, of another format version or hash rule, without
                something that belongs to it, or not naming every shard.
        """
        file = path / SET_FILE
        fields = read_manifest(file)
        with reading(file):
            fields["ladder"] = tuple(fields["ladder"])
            fields["shards"] = tuple(read_record(ShardEntry, each) for each in fields["shards"])
            found = read_record(cls, fields)
        if found.hash != HASH_RULE:
            raise UserError(
                f"{file} spreads documents by {found.hash!r}, this software by {HASH_RULE!r}: "
                "build the index again from its embedding shards"
            )
        names = [shard_name(number, found.num_shards) for number in range(found.num_shards)]
        if [entry.name for entry in found.shards] != names:
            raise UserError(
                f"{file} says {found.num_shards} shards, but names {len(found.shards)}, "
                f"{', '.join(entry.name for entry in found.shards)}: the index is damaged"
            )
        return found

    def open_manifest(self, path: Path, entry: ShardEntry) -> GenerationManifest:
        """Reads the manifest of a shard's generation and compares it with the set.

        Args:
            path: directory of the set.
            entry: the shard.

        Raises:
            UserError: the shard is missing, damaged, or of another model or shape than the set.
        """
        if not (path / entry.name).is_dir():
            raise UserError(
                f"{path / entry.name} is missing, {SET_FILE} names it: the index is damaged, put "
                "the shard back or build the index again"
            )
        file = generation_file(path / entry.name, entry.generation)
        manifest = GenerationManifest.read(file)
        if (differs := _difference(shared_by(manifest), self)) is not None:
            raise UserError(
                f"{path / entry.name} differs from {SET_FILE} in {differs}: it is a shard of "
                "another index, put the right one back or build the index again"
            )
        if hash_file(file) != entry.manifest_sha256:
            raise UserError(
                f"{file} does not match its checksum in {SET_FILE}: the index is damaged"
            )
        return manifest


def is_sharded(path: Path) -> bool:
    """Whether a directory holds an index that is split into shards."""
    return (path / SET_FILE).is_file()


def shared_by(manifest: GenerationManifest) -> dict[str, Any]:
    """What the manifests of all shards of one index agree in."""
    return {name: getattr(manifest, name) for name in _SHARED}


@contextmanager
def changing(path: Path, *, patience_s: float = 0.0) -> Iterator[ShardSet]:
    """Holds the set for one change of its shards; a change that fails leaves it as it was.

    Args:
        path: directory of the set.
        patience_s: how long to wait for another writer to end.

    Raises:
        UserError: not a set, or another process writes to it.
    """
    before = ShardSet.read(path)
    with hold_lock(path, patience_s=patience_s):
        before = ShardSet.read(path)
        _return_to(path, before)
        try:
            yield before
        finally:
            # what was published meanwhile is the last word; after a failure that is the old set
            _return_to(path, ShardSet.read(path))


def _return_to(path: Path, wanted: ShardSet) -> None:
    for entry in wanted.shards:
        wanted.open_manifest(path, entry)
        if read_current(path / entry.name) != entry.generation:
            roll_back(path / entry.name, entry.generation)


def publish_set(path: Path, num_shards: int) -> IndexInfo:
    """Makes the published generations of all shards the state that readers find.

    Args:
        path: directory of the set, its lock held.
        num_shards: N; every shard has a published generation.

    Returns:
        What the index is now: the state before where no shard has published since.
    """
    before = ShardSet.read(path) if is_sharded(path) else None
    calibration = None if before is None else before.calibration
    entries, shared = [], {}
    for number in range(num_shards):
        name = shard_name(number, num_shards)
        generation = read_current(path / name)
        file = generation_file(path / name, generation)
        entries.append(ShardEntry(name, generation, hash_file(file)))
        manifest = GenerationManifest.read(file)
        shared = shared_by(manifest)
        is_new = before is not None and before.shards[number] != entries[number]
        if is_new and manifest.built == manifest.generation:
            # a build made it, not a change: perhaps with other rungs or lists than were measured
            calibration = None
    if before is not None and before.shards == tuple(entries):
        return describe_set(path)
    published = ShardSet(
        generation=1 if before is None else before.generation + 1,
        created=now(),
        num_shards=num_shards,
        hash=HASH_RULE,
        shards=tuple(entries),
        calibration=calibration,
        **shared,
    )
    return _write_set(path, published)


def calibrate_set(path: Path, held: ShardSet, calibration: Mapping[str, Any]) -> IndexInfo:
    """Makes a calibration that of the whole set; the shards stay as they are.

    Args:
        path: directory of the set, held by `changing`.
        held: the set, as `changing` gives it.
        calibration: what the doctor measured.
    """
    number = held.generation + 1
    return _write_set(
        path, replace(held, generation=number, created=now(), calibration=calibration)
    )


def _write_set(path: Path, published: ShardSet) -> IndexInfo:
    fields = asdict(published)
    write_manifest(path / SET_FILE, {"format_version": FORMAT_VERSION, **fields})
    return describe_set(path)


def describe_set(path: Path) -> IndexInfo:
    """What the published set is."""
    found = ShardSet.read(path)
    infos = [describe_index(path / entry.name) for entry in found.shards]
    documents, size = (sum(getattr(i, name) for i in infos) for name in ("documents", "bytes"))
    return IndexInfo(
        path=str(path),
        generation=found.name,
        documents=documents,
        ladder=found.ladder,
        bytes=size,
        bytes_per_document=round(size / max(1, documents), 1),
    )


def refuse_foreign(path: Path, num_shards: int) -> None:
    """Refuses a directory that is no place for an index of so many shards.

    Raises:
        UserError: it is a file, or holds something else, for example an index of other shards.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: give a directory for the index")
    if is_sharded(path) and (held := ShardSet.read(path).num_shards) != num_shards:
        raise UserError(
            f"{path} holds an index of {held} shards, asked for are {num_shards}: give --shards "
            f"{held}, or another --out"
        )
    names = {shard_name(number, num_shards) for number in range(num_shards)}
    found = {file.name for file in path.iterdir()} if path.exists() else set()
    if foreign := sorted(found - names - _OWN_NAMES):
        raise UserError(
            f"{path} holds {foreign[0]!r}, which is not part of an index of {num_shards} shards: "
            "give an empty directory, a new one, or such an index"
        )


def refuse_shard_of_set(path: Path) -> None:
    """Refuses to change one shard behind the back of its set.

    Raises:
        UserError: the directory is a shard of a set.
    """
    above = path.absolute().parent
    if is_sharded(above) and path.name in {entry.name for entry in ShardSet.read(above).shards}:
        raise UserError(f"{path} is a shard of the index {above}: change that one")


def _difference(fields: Mapping[str, Any], wanted: ShardSet) -> str | None:
    """The first field that differs, in words."""
    for name, value in fields.items():
        if name == "identity":
            pair: Sequence[Any] = (value.get("digest"), wanted.identity.get("digest"))
        else:
            pair = (value, getattr(wanted, name))
        if pair[0] != pair[1]:
            return f"{'model' if name == 'identity' else name} ({pair[0]!r} and {pair[1]!r})"
    return None
