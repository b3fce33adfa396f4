"""8-bit MaxSim on a device of torch's: what the compiled kernel does, to the same bits.

Codes are copied to the device when first read and stay there. A dot product of codes is an exact
integer on every device, and what follows are the same float32 operations in the same order, so that
documents have the same scores wherever they are scored. Takes arrays that `maxsim_best` has
checked; knows nothing of files, segments or plans. Imports torch, hence seconds: imported when a
device is asked for. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rematch_ray.errors import UserError
from rematch_ray.index.maxsim_library import Vectors
from rematch_ray.index.quantisation import from_offset, unpack

# similarities of one block: 2**25 int32 are 128 MiB, and as float32 as much again
BLOCK_CELLS = 1 << 25
_UPLOAD_BYTES = 1 << 26
# what cuBLAS multiplies: sizes are multiples of it, and there are more than twice as many rows
_MULTIPLE, _LEAST_ROWS = 8, 17


@dataclass(frozen=True)
class Held:
    """One plane on a device.

    Attributes:
        codes: (N, n, D) int8, D rounded up to a multiple of 8 with zeros.
        scales: (N, n) float32.
    """

    codes: Tensor
    scales: Tensor


# what is held of which file, for as long as somebody has it open
_held: WeakValueDictionary[tuple[Any, ...], Held] = WeakValueDictionary()
_turn = Lock()


def check_device(name: str) -> None:
    """Refuses a device that is not there.

    Raises:
        UserError: it is not; `cpu` and `cuda` (`cuda:0`, `cuda:1`, ...) are understood.
    """
    try:
        device = torch.device(name)
    except RuntimeError as wrong:
        raise UserError(f"device '{name}' is not understood: give cuda, cuda:0 or cpu") from wrong
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type not in ("cpu", "cuda") or (device.index or 0) >= count:
        raise UserError(
            f"device '{name}' is not there: this machine has {count if count else 'no'} CUDA "
            "devices; give one of them, or none to search with the CPU's own kernel"
            if device.type == "cuda"
            else f"device '{name}' is not possible: give cuda, cuda:0 or cpu"
        )


def hold(plane: Vectors) -> Held:
    """Codes on the plane's device: copied, or what is held of their file already.

    Raises:
        UserError: they do not fit there.
    """
    if plane.file is None:
        return _copied(plane)
    found = plane.file.stat()
    key = (plane.device, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
    with _turn:
        held = _held.get(key)
        if held is None:
            held = _held[key] = _copied(plane)
    return held


def _copied(plane: Vectors) -> Held:
    values, scales, device = plane.values, plane.scales, plane.device
    assert scales is not None
    num_documents, num_vectors, width = values.shape
    # packed codes are not packed on a device
    dim = 2 * width if plane.is_packed else width
    padded = -(-dim // _MULTIPLE) * _MULTIPLE
    try:
        codes = torch.zeros((num_documents, num_vectors, padded), dtype=torch.int8, device=device)
        step = max(1, _UPLOAD_BYTES // (num_vectors * dim))
        for start in range(0, num_documents, step):
            stored = values[start : start + step]
            some = from_offset(unpack(stored, dim) if plane.is_packed else stored)
            codes[start : start + step, :, :dim] = torch.from_numpy(some).to(device)
        return Held(codes, torch.from_numpy(np.array(scales)).to(device))
    except torch.cuda.OutOfMemoryError as full:
        gib = num_documents * num_vectors * padded / 2**30
        raise UserError(
            f"{gib:.1f} GiB of vectors do not fit on {device} beside what is there: open the index "
            "without a device, split it into shards, or search at a smaller budget"
        ) from full


def best_on_device(
    query_codes_BRD: NDArray[np.int8],
    query_scales_BR: NDArray[np.float32],
    planes: Sequence[Held],
    limit: int,
    *,
    rows: NDArray[np.int64] | None,
    allowed: NDArray[np.bool_] | None,
    slack: NDArray[np.float64],
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Runs `maxsim_best.best_of_planes` where the planes are held."""
    device = planes[0].codes.device
    num_queries, r_q, dim = query_codes_BRD.shape
    query = _laid_out(query_codes_BRD.reshape(num_queries * r_q, dim), device)
    query_scales = torch.from_numpy(query_scales_BR).to(device)
    # copies: what an index shares between searches cannot be written to
    chosen = None if rows is None else torch.tensor(rows, device=device)
    may = None if allowed is None else torch.tensor(allowed, device=device)
    count = len(planes[0].codes) if chosen is None else len(chosen)
    scores = torch.empty((num_queries, count), device=device)
    widest = max(plane.codes.shape[1] for plane in planes)
    step = max(1, BLOCK_CELLS // (widest * len(query)))
    for start in range(0, count, step):
        stop = min(start + step, count)
        block = slice(start, stop) if chosen is None else chosen[start:stop]
        best = torch.full((stop - start, num_queries * r_q), -torch.inf, device=device)
        for plane in planes:
            _raise(best, query, plane, block)
        maxima = best.view(stop - start, num_queries, r_q)
        scores[:, start:stop] = _means(maxima, query_scales).T
    return [_kept(own, may, limit, width) for own, width in zip(scores, slack.tolist())]


class DeviceMaxima:
    """Maxima of one query's candidates on a device, carried from rung to rung.

    Args:
        codes_RD: (R, D) int8 of the query.
        scales_R: (R,) float32 of it.
        count: candidates.
        device: of torch.
    """

    def __init__(
        self, codes_RD: NDArray[np.int8], scales_R: NDArray[np.float32], count: int, device: str
    ) -> None:
        self._device = torch.device(device)
        self._codes = codes_RD
        self._scales = torch.from_numpy(np.ascontiguousarray(scales_R)).to(self._device)
        self._best = torch.full((count, len(scales_R)), -torch.inf, device=self._device)

    def carry(
        self,
        first: int,
        stop: int,
        plane: Held,
        rows: NDArray[np.int64],
        mine: NDArray[np.intp] | None,
    ) -> None:
        """Raises the maxima of query vectors first..stop by a plane.

        Args:
            first: query vector.
            stop: query vector after the last.
            plane: held.
            rows: (C,) documents of the plane.
            mine: (C,) candidates that these are; None: all of them.
        """
        query = _laid_out(self._codes[first:stop], self._device)
        where: Any = slice(None) if mine is None else torch.from_numpy(mine).to(self._device)
        best = self._best[where, first:stop]
        step = max(1, BLOCK_CELLS // (plane.codes.shape[1] * len(query)))
        chosen = torch.from_numpy(np.ascontiguousarray(rows)).to(self._device)
        for start in range(0, len(chosen), step):
            block = chosen[start : start + step]
            _raise(best[start : start + step], query, plane, block)
        self._best[where, first:stop] = best

    def scores(self, r_q: int) -> NDArray[np.float32]:
        """(C,) means of the maxima of the first query vectors."""
        found: NDArray[np.float32] = (
            _means(self._best[:, None, :r_q], self._scales[None, :r_q])[:, 0].cpu().numpy()
        )
        return found

    def keep(self, chosen: NDArray[np.intp] | slice) -> None:
        """Goes on with some of the candidates, by position."""
        where = chosen if isinstance(chosen, slice) else torch.from_numpy(chosen).to(self._device)
        self._best = self._best[where]


def _laid_out(codes_RD: NDArray[np.int8], device: torch.device) -> Tensor:
    """Query codes on the device, (R, D) both rounded up to a multiple of 8 with zeros."""
    shape = [-(-size // _MULTIPLE) * _MULTIPLE for size in codes_RD.shape]
    laid_out = np.zeros(shape, np.int8)
    laid_out[: codes_RD.shape[0], : codes_RD.shape[1]] = codes_RD
    return torch.from_numpy(laid_out).to(device)


def _raise(best_CR: Tensor, query_RD: Tensor, plane: Held, rows: slice | Tensor) -> None:
    """Raises maxima by a plane's vectors of some documents, in place."""
    codes, scales = plane.codes[rows], plane.scales[rows]
    count, num_vectors, dim = codes.shape
    if not count or not num_vectors:
        return
    dots = _dot_products(codes.reshape(-1, dim), query_RD)[:, : best_CR.shape[1]]
    found = (dots * scales.reshape(-1, 1)).view(count, num_vectors, -1).amax(dim=1)
    torch.maximum(best_CR, found, out=best_CR)


def _dot_products(codes_VD: Tensor, query_RD: Tensor) -> Tensor:
    """(V, R) float32: exact integers, rounded once."""
    if codes_VD.device.type == "cuda":
        return _by_integers(codes_VD, query_RD)
    # of processors without instructions for it, torch's integer product may saturate
    return (codes_VD.double() @ query_RD.double().T).float()


def _by_integers(codes_VD: Tensor, query_RD: Tensor) -> Tensor:
    """The same by the product of 8-bit integers; sizes as `_laid_out` makes them."""
    missing = _LEAST_ROWS - len(codes_VD)
    if missing > 0:
        codes_VD = torch.nn.functional.pad(codes_VD, (0, 0, 0, missing))
    dots: Tensor = torch._int_mm(codes_VD, query_RD.T).float()
    return dots[:-missing] if missing > 0 else dots


def _means(maxima_CBR: Tensor, scales_BR: Tensor) -> Tensor:
    """(C, B) float32: `maxsim_int8.mean_of_maxima` of several queries."""
    r_q = maxima_CBR.shape[2]
    total = torch.zeros(maxima_CBR.shape[:2], dtype=torch.float64, device=maxima_CBR.device)
    for position in range(r_q):
        total += maxima_CBR[:, :, position] * scales_BR[:, position]
    return (total / r_q).float()


def _kept(
    scores_C: Tensor, allowed: Tensor | None, limit: int, slack: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    positions = None if allowed is None else allowed.nonzero()[:, 0]
    some = scores_C if positions is None else scores_C[positions]
    if limit < len(some):
        threshold = some.topk(limit).values[-1]
        near = (some.double() >= threshold.double() - slack).nonzero()[:, 0]
        some = some[near]
        positions = near if positions is None else positions[near]
    if positions is None:
        positions = torch.arange(len(some), device=some.device)
    return positions.cpu().numpy(), some.cpu().numpy()
