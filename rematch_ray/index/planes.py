"""Plane files: the vectors of one range of document tokens, document-major.

    codes_0_1.npy      (N, n, D) uint8     8-bit codes + 128, read by every search
    scales_0_1.npy     (N, n) float32      vector = scale * (code - 128)
    errors_0_1.npy     (N,) float32        the largest distance of a vector from what is read back
    originals_0_1.npy  (N, n, D) float16   optional: for exact scores of the last few documents

Fused vectors are stored likewise, as a plane of one vector. All are plain `.npy` files, so that
numpy alone opens them; they are written batch by batch and read through memory maps, so that a
small budget never touches the planes above it. Knows nothing of segments or scores. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.manifest import FileEntry
from rematch_ray.index.maxsim_library import Vectors, address
from rematch_ray.index.npy import ArrayWriter, map_npy
from rematch_ray.index.quantisation import (
    dequantise,
    from_offset,
    quantise,
    residual_norms,
    to_offset,
)

ORIGINALS = np.dtype("<f2")
CODES = np.dtype("u1")
FACTORS = np.dtype("<f4")
FUSED = "fused"


def range_name(start: int, stop: int) -> str:
    """Name of the plane that holds document tokens [start, stop).

    >>> range_name(4, 8)
    '4_8'
    """
    return f"{start}_{stop}"


class PlaneWriter:
    """Writes the files of one plane.

    Args:
        directory: the segment's directory.
        name: `range_name` of the tokens, or `fused`.
        shape: (N, n, D).
        originals: whether to keep float16 originals, with the errors that tell when to read them.
        closing: closes the files in the end.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        shape: tuple[int, int, int],
        *,
        originals: bool,
        closing: ExitStack,
    ) -> None:
        kinds = plane_files(name, shape, originals=originals)
        self._writers = {
            kind: closing.enter_context(ArrayWriter(directory / file, size, dtype))
            for kind, (file, size, dtype) in kinds.items()
        }

    def append(self, vectors_NRD: NDArray[np.float16]) -> None:
        """Adds the next documents' vectors, (rows, n, D), unit norm."""
        codes, scales = quantise(vectors_NRD)
        self._writers["codes"].append(to_offset(codes))
        self._writers["scales"].append(scales)
        if "originals" in self._writers:
            self._writers["originals"].append(vectors_NRD)
            self._writers["errors"].append(residual_norms(vectors_NRD, codes, scales).max(axis=1))

    def finish(self) -> dict[str, FileEntry]:
        """Makes the files durable and describes them, by name."""
        return {writer.path.name: writer.finish() for writer in self._writers.values()}


def plane_files(
    name: str, shape: tuple[int, int, int], *, originals: bool
) -> dict[str, tuple[str, tuple[int, ...], np.dtype[Any]]]:
    """Files of a plane: kind -> file name, shape, element type."""
    num_documents, num_vectors, _ = shape
    kinds: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        "codes": (shape, CODES),
        "scales": ((num_documents, num_vectors), FACTORS),
    }
    if originals:
        kinds |= {"errors": ((num_documents,), FACTORS), "originals": (shape, ORIGINALS)}
    return {kind: (f"{kind}_{name}.npy", *content) for kind, content in kinds.items()}


@dataclass(frozen=True)
class Plane:
    """An open plane; files are mapped when first read.

    Args:
        directory: the segment's directory.
        name: `range_name` of the tokens, or `fused`.
        shape: (N, n, D).
        has_originals: whether float16 originals and errors are there.
        device: of torch, where codes are scored; None: the CPU, where they lie.
    """

    directory: Path
    name: str
    shape: tuple[int, int, int]
    has_originals: bool
    device: str | None = None

    @cached_property
    def codes(self) -> NDArray[np.uint8]:
        """(N, n, D) codes + 128, mapped."""
        return self._open("codes")

    @cached_property
    def scales(self) -> NDArray[np.float32]:
        """(N, n) scales, mapped."""
        return self._open("scales")

    @cached_property
    def coded(self) -> Vectors:
        """Codes and scales, as the kernel takes a plane."""
        codes = plane_files(self.name, self.shape, originals=False)["codes"][0]
        return Vectors(self.codes, self.scales, device=self.device, file=self.directory / codes)

    @cached_property
    def errors(self) -> NDArray[np.float32]:
        """(N,) largest distance of a document's vector here from what is read back, mapped."""
        return self._open("errors")

    @cached_property
    def errors_address(self) -> int:
        """Where `errors` lie, for the kernel."""
        return address(self.errors)

    @cached_property
    def largest_error(self) -> float:
        """The largest of all `errors`."""
        return float(self.errors.max(initial=0.0))

    @cached_property
    def originals(self) -> Vectors:
        """(N, n, D) float16, mapped, as the kernel takes a plane; only where they are kept."""
        return Vectors(self._open("originals"))

    def hold(self) -> None:
        """Maps every file now, or copies it to the device: it stays when the file is deleted."""
        _ = self.coded if self.device is None else self.coded.held
        if self.has_originals:
            _ = self.errors, self.originals

    def read(self, rows: NDArray[np.integer] | slice) -> NDArray[np.float16]:
        """Vectors of some documents, (len(rows), n, D): originals, or decoded where none are."""
        if self.has_originals:
            return self.originals.values[rows]
        return dequantise(from_offset(self.codes[rows]), self.scales[rows])

    def _open(self, kind: str) -> NDArray[Any]:
        file, shape, dtype = plane_files(self.name, self.shape, originals=True)[kind]
        return open_array(self.directory / file, shape, dtype)


@dataclass(frozen=True)
class Listed:
    """The first vectors of a plane, as a coarse list takes them (coarse/entries.py).

    Args:
        plane: the plane.
        num_vectors: of each document.
    """

    plane: Plane
    num_vectors: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, vectors, D)."""
        num_documents, _, dim = self.plane.shape
        return num_documents, self.num_vectors, dim

    def __getitem__(self, rows: NDArray[np.integer] | slice) -> NDArray[np.float16]:
        return self.plane.read(rows)[:, : self.num_vectors]


def open_array(path: Path, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Maps a file of a plane without reading it.

    Args:
        path: a file that an ArrayWriter made.
        shape: the shape that the manifest promises.
        dtype: its element type.

    Returns:
        Read-only memory map.

    Raises:
        UserError: the file is missing, cut short, or of another shape or type.
    """
    array = map_npy(path)
    if array.shape != tuple(shape) or array.dtype != dtype:
        raise UserError(
            f"{path} holds {array.dtype} {array.shape}, its manifest says {dtype} "
            f"{tuple(shape)}: the index is damaged, build it again"
        )
    # a plain view: the kernel takes arrays, and a memmap's own slicing is slow
    return array.view(np.ndarray)
