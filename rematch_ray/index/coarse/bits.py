"""A scan of one bit a number, and of the 8-bit codes of what it proposes.

    coarse_fused.npy    (ceil(N / 64), `group_bytes`) uint8    what `one_bit.code_groups` makes

It reads 20 bytes a document of 128 numbers instead of 132, and the 8-bit codes of eight times as
many documents as are wanted. Scores are those of the 8-bit scan; a few of what that finds are
missing, fewer in a split index, whose shards propose for themselves. Middle floor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.coarse.entries import Entries
from rematch_ray.index.coarse.scan import ScanList
from rematch_ray.index.coarse.sizes import BITS
from rematch_ray.index.npy import ArrayWriter
from rematch_ray.index.one_bit import (
    GROUP,
    RoughQuery,
    centre_step,
    code_groups,
    group_bytes,
    roughly_best,
)
from rematch_ray.index.planes import CODES, Listed, open_array
from rematch_ray.index.queries import Codes

# documents proposed per document wanted, and of all documents at least one in so many
_PER_WANTED = 8
_OF_ALL = 64
_BLOCK_DOCUMENTS = 16_384
# groups whose centres tell how far centres reach
_SAMPLED_GROUPS = 1024


def write_bits(directory: Path, key: str, entries: Entries) -> dict[str, Any]:
    """Writes the groups of a key with one vector a document; returns its description."""
    assert entries.width == 1, entries.width
    path = directory / f"coarse_{key}.npy"
    step = _step_of(entries)
    num_groups = -(-entries.rows // GROUP)
    with ArrayWriter(path, (num_groups, group_bytes(entries.dim)), CODES) as writer:
        for start in range(0, entries.rows, _BLOCK_DOCUMENTS):
            some = slice(start, start + _BLOCK_DOCUMENTS)
            writer.append(code_groups(entries.of_documents(some), step))
        writer.finish()
    return {"file": path.name, "kind": BITS, "width": 1, "centre_step": step}


def num_proposed(limit: int, rows: int) -> int:
    """How many documents of a segment the rough scores propose, of which `limit` are wanted.

    >>> num_proposed(200, 1_000_000), num_proposed(2000, 1_000_000)
    (15625, 16000)
    """
    return max(_PER_WANTED * limit, rows // _OF_ALL)


class BitsList(ScanList):
    """Groups of one-bit codes, mapped from disk, before the 8-bit codes of a plane.

    Args:
        directory: the segment's directory.
        description: what `write_bits` returned.
        listed: the vectors that it was made of.

    Raises:
        UserError: the file cannot be mapped, or is of another shape.
    """

    is_exact = False

    def __init__(self, directory: Path, description: dict[str, Any], listed: Listed) -> None:
        super().__init__([listed])
        self._rows, _, dim = listed.shape
        self._step = float(description["centre_step"])
        shape = (-(-self._rows // GROUP), group_bytes(dim))
        self._groups = open_array(directory / description["file"], shape, CODES)

    def search_coded(
        self, query: Codes, limit: int, *, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Finds the best of the 8-bit scan among those of the best rough scores.

        Args:
            query: one vector of one query, coded.
            limit: how many are wanted, at least 1.
            allowed: (N,) True where a document may be returned; None allows all. Where few are,
                each of them is looked at.

        Returns:
            As of the 8-bit scan.
        """
        proposed = num_proposed(limit, self._rows)
        live = self._rows if allowed is None else int(np.count_nonzero(allowed))
        [plane] = self._planes
        # on a device all 8-bit codes lie in memory that reads them faster than the CPU reads bits
        if live <= 2 * proposed or plane.device is not None:
            return super().search_coded(query, limit, allowed=allowed)
        rough = RoughQuery.of(query.vectors[0, 0], self._step)
        rows, _ = roughly_best(rough, self._groups, self._rows, proposed, allowed=allowed)
        return self._best_of(query, limit, rows)


def _step_of(entries: Entries) -> float:
    """Step of the centres' codes, from groups that lie evenly among all."""
    num_groups = max(1, entries.rows // GROUP)
    sampled = np.linspace(0, num_groups - 1, min(num_groups, _SAMPLED_GROUPS)).astype(np.int64)
    size = min(GROUP, entries.rows)
    rows = (sampled[:, None] * GROUP + np.arange(size)).reshape(-1)
    return centre_step(entries.of_documents(rows).reshape(len(sampled), size, entries.dim))
