"""What an open index holds, without searching it: sizes, ids, payloads, fused vectors, checks.

Knows nothing of queries or scores. Middle floor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from rematch_ray.errors import UserError
from rematch_ray.index.coarse.keys import choices_of
from rematch_ray.index.exact import Float32
from rematch_ray.index.generation import Generation
from rematch_ray.index.identity import check_identity
from rematch_ray.index.info import bytes_per_document, describe
from rematch_ray.index.preload import Preloader
from rematch_ray.index.sharding.opened import current_name, open_generation
from rematch_ray.scoring.budget import Budget, Ladder


class IndexReader:
    """An open index, as far as it can be read without a query.

    Args:
        generation: what to read.
    """

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._manifest = generation.manifest
        self.ladder = Ladder.parse(self._manifest.ladder)
        self.identity: Mapping[str, Any] = self._manifest.identity
        self._preloader: Preloader | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        hold: bool = False,
        preload: bool = False,
    ) -> Self:
        """Opens the published generation; checks versions and file sizes, reads no vectors.

        Args:
            path: directory of an index, or of one that is split into shards.
            device: of torch, `cuda` for example, where 8-bit vectors are held and scored; scores
                are the same, and hits but for the coarse kind `scan1`, of which a few more are
                found. None: the CPU's own kernel, on the files.
            hold: open every file now, so that a writer who deletes it meanwhile does no harm; else
                files are mapped when first read, and are gone after two more changes.
            preload: read it into memory now and keep it there, as far as it fits into half of what
                is free: for a process that searches for long. See `Preloader`.

        Raises:
            UserError: not an index, another format version, a damaged one, or no such device.
        """
        if device is not None:
            from rematch_ray.index.maxsim_device import check_device

            check_device(device)
        opened = cls(open_generation(Path(path).absolute(), device=device, hold=hold))
        if preload:
            opened._preloader = Preloader()
            opened._preloader.take(opened._generation)
        return opened

    @property
    def generation(self) -> str:
        """Name of the generation that is searched."""
        return self._generation.name

    def latest(self) -> Self:
        """This index, or the published generation where that is another by now.

        Raises:
            UserError: the directory is no index any more, or a damaged one.
        """
        path = self._generation.path
        if current_name(path) == self._generation.name:
            return self
        held = self._generation.is_held
        newer = type(self).open(path, device=self._generation.device, hold=held)
        if self._preloader is not None:
            newer._preloader = self._preloader
            self._preloader.take(newer._generation)
            self._preloader.keep([self._generation, newer._generation])
        return newer

    def __len__(self) -> int:
        """Live documents."""
        return self._manifest.live

    @property
    def has_fused(self) -> bool:
        """Whether documents carry a fused vector, hence the fused rung."""
        return self._manifest.fused_dim is not None

    @property
    def keeps_originals(self) -> bool:
        """Whether float16 vectors are kept beside the 8-bit ones: scores are float's then."""
        return self._generation.has_originals

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """Every rung that can be asked for, the fused one first where there is one."""
        return ((Budget.FUSED,) if self.has_fused else ()) + self.ladder.rungs

    @cached_property
    def coarse_choices(self) -> tuple[str, ...]:
        """What a coarse stage can go by here."""
        return choices_of(self._generation.coarse_keys)

    def ids(self, filter: Mapping[str, Any] | None = None) -> list[str]:
        """Ids of the live documents that pass a filter, in row order.

        Raises:
            UserError: a filter field that is not there.
        """
        allowed = self._generation.select(filter)
        return [name for name, keep in zip(self._generation.ids(), allowed) if keep]

    def payload(self, ids: Sequence[str]) -> list[Mapping[str, Any] | None]:
        """Payload of each id; None for an id that is not here."""
        rows = self._generation.rows_of(ids)
        known = [name for name in ids if name in rows]
        stored = self._generation.documents(np.array([rows[name] for name in known], np.int64))
        payloads = {name: payload for name, (_, payload) in zip(known, stored)}
        return [payloads.get(name) for name in ids]

    def fused_vectors(self, ids: Sequence[str]) -> Float32:
        """(len(ids), F) float32 fused vectors as stored; UserError for none, or an unknown id."""
        if not self.has_fused:
            raise UserError("this index holds no fused vectors: its model was trained without")
        return self._generation.fused_of(ids).astype(np.float32)

    def check_model(self, identity: Any) -> None:
        """Refuses a model other than the one that embedded the documents.

        Args:
            identity: a `ModelIdentity` or its JSON.

        Raises:
            UserError: its digest differs from the index's.
        """
        check_identity(identity, self.identity)

    def bytes_per_document(self) -> dict[str, int]:
        """Bytes of vectors that a score at each rung reads per document."""
        return bytes_per_document(self._manifest)

    def info(self) -> dict[str, Any]:
        """What the index is, as plain JSON types."""
        return describe(self._generation)

    def verify(self) -> dict[str, Any]:
        """Reads every file and checks it against its checksum.

        Raises:
            UserError: names the first file that differs.
        """
        read = self._generation.verify()
        return {"generation": self._generation.name, "documents": len(self), "bytes": read}
