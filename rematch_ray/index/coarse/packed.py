"""A scan of 4-bit codes: half the memory to fetch, which a scan of many documents waits for.

    coarse_fused.npy    (N, 1, ceil(D / 2)) uint8    what `quantisation.pack` makes of the codes

The scales are those of the plane. As every document is scored on its own, neither its neighbours
nor a split into shards change a score. Middle floor.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rematch_ray.index.coarse.entries import Entries
from rematch_ray.index.coarse.scan import ScanList
from rematch_ray.index.coarse.sizes import PACKED
from rematch_ray.index.maxsim_library import Vectors
from rematch_ray.index.npy import ArrayWriter
from rematch_ray.index.planes import CODES, Listed, open_array
from rematch_ray.index.quantisation import pack, quantise, to_offset

_BLOCK_DOCUMENTS = 16_384


def write_packed(directory: Path, key: str, entries: Entries) -> dict[str, Any]:
    """Writes the packed codes of a key with one vector a document; returns its description."""
    assert entries.width == 1, entries.width
    path = directory / f"coarse_{key}.npy"
    with ArrayWriter(path, (entries.rows, 1, -(-entries.dim // 2)), CODES) as writer:
        for start in range(0, entries.rows, _BLOCK_DOCUMENTS):
            vectors = entries.of_documents(slice(start, start + _BLOCK_DOCUMENTS))
            writer.append(pack(to_offset(quantise(vectors[:, None])[0])))
        writer.finish()
    return {"file": path.name, "kind": PACKED, "width": 1}


class PackedList(ScanList):
    """A scan of packed codes, mapped from disk.

    Args:
        directory: the segment's directory.
        description: what `write_packed` returned.
        listed: the vectors that it was made of, of which it takes the scales.

    Raises:
        UserError: the file cannot be mapped, or is of another shape.
    """

    is_exact = False

    def __init__(self, directory: Path, description: dict[str, Any], listed: Listed) -> None:
        super().__init__([listed])
        num_documents, _, dim = listed.shape
        shape = (num_documents, 1, -(-dim // 2))
        self._file = directory / description["file"]
        self._codes = open_array(self._file, shape, CODES)

    def hold(self) -> None:
        """Copies the codes to the device, where they are searched on one; else they are mapped."""
        [plane] = self._planes
        if plane.device is not None:
            _ = plane.held

    @cached_property
    def _planes(self) -> list[Vectors]:
        plane = self._listed[0].plane
        scales = np.ascontiguousarray(plane.scales[:, :1])
        return [Vectors(self._codes, scales, is_packed=True, device=plane.device, file=self._file)]
