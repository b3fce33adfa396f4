"""What a step has read, how fast, in how much memory, and which rows broke it.

Pure functions of a batch and of times; the loop calls them and knows nothing of how they count.
Middle floor.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rematch_ray.collectives import largest_over_ranks, world_size
from rematch_ray.data.rows import EncodedRow
from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.losses.joint import JointLoss
from rematch_ray.model.embeddings import Embeddings
from rematch_ray.model.settings import ModelSettings
from rematch_ray.training.flops import Decoder, Trained, VisionTower, peak_flops

MEMORY_EVERY = 25
_NAMED_ROWS = 10


@dataclass(frozen=True)
class Work:
    """What a step reads; whole numbers, so that those of several ranks may be added.

    Attributes:
        pairs: rows that count.
        tokens: text, visual and meta tokens, without padding.
        visual_tokens: of which come from images.
        flops: operations of the model, forward and backward (see `flops`).
    """

    pairs: int = 0
    tokens: int = 0
    visual_tokens: int = 0
    flops: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other))))


class WorkCounter:
    """Counts the work of batches for one model.

    Args:
        config: the base model's transformers config.
        settings: how the embedder was built; says what is trained.
    """

    def __init__(self, config: Any, settings: ModelSettings) -> None:
        self._decoder = Decoder.of(config.get_text_config())
        self._vision = VisionTower.of(config.vision_config)
        self._trained = Trained.of(settings)

    def count(self, batch: TrainBatch) -> Work:
        """The work of this rank's batch."""
        layout = batch.layout
        lengths = [len(row.input_ids) + layout.num_query_meta for row in batch.query_rows]
        lengths += [len(row.input_ids) + layout.num_document_meta for row in batch.document_rows]
        grids = _grids([*batch.query_rows, *batch.document_rows])
        return Work(
            pairs=int(batch.valid.sum()),
            tokens=sum(lengths),
            visual_tokens=sum(f * h * w for f, h, w in grids) // self._vision.merge**2,
            flops=self._decoder.step(lengths, self._trained)
            + self._vision.step(grids, self._trained),
        )


class Meter:
    """What a step of a run is told of its speed and memory.

    Args:
        counter: of the model.
        device: of this rank.
        dtype: precision of the backbone's arithmetic, for the device's peak.
    """

    def __init__(self, counter: WorkCounter, device: torch.device, dtype: str) -> None:
        self._counter = counter
        self._device = device
        self._peak = device_peak(device, dtype)
        self._steps = self._memory = 0

    def work(self, batch: TrainBatch | None) -> Work:
        """The work of this rank's batch; none without one."""
        return Work() if batch is None else self._counter.count(batch)

    def look(self) -> None:
        """Ask every so often for the largest memory of any rank; every rank calls it each step."""
        if self._steps % MEMORY_EVERY == 0:
            self._memory = largest_over_ranks(peak_memory_bytes(self._device), device=self._device)
        self._steps += 1

    def speed(self, work: Work, *, seconds: float, waited: float) -> dict[str, float | None]:
        """`throughput` of a step, and `peak_memory_bytes` of the rank that took most.

        Args:
            work: of all ranks.
            seconds: the whole step took.
            waited: of which for data.
        """
        peak = None if self._peak is None else self._peak * world_size()
        found = throughput(work, seconds=seconds, waited=waited, peak=peak)
        return {**found, "peak_memory_bytes": self._memory}


def _grids(rows: Sequence[EncodedRow]) -> list[tuple[int, int, int]]:
    return [(int(f), int(h), int(w)) for row in rows for f, h, w in row.grid]


def throughput(
    work: Work, *, seconds: float, waited: float, peak: float | None = None
) -> dict[str, float | None]:
    """Speed of a step.

    Args:
        work: of all ranks.
        seconds: the whole step took, waiting included.
        waited: of which the loop waited for data.
        peak: operations per second that all devices together could do at most; None = not known.

    Returns:
        `pairs_per_s`, `tokens_per_s`, `visual_tokens_per_s`, `tflops`, `mfu` (0..1, None when the
        peak is not known) and `stall` (0..1).

    >>> throughput(Work(8, 100, 60, 10**12), seconds=2.0, waited=0.5, peak=5e12)
    {'pairs_per_s': 4.0, 'tokens_per_s': 50.0, 'visual_tokens_per_s': 30.0, 'tflops': 0.5, \
'mfu': 0.1, 'stall': 0.25}
    """
    seconds = max(seconds, 1e-9)
    rate = work.flops / seconds
    return {
        "pairs_per_s": work.pairs / seconds,
        "tokens_per_s": work.tokens / seconds,
        "visual_tokens_per_s": work.visual_tokens / seconds,
        "tflops": rate / 1e12,
        "mfu": None if peak is None else rate / peak,
        "stall": waited / seconds,
    }


def device_peak(device: torch.device, dtype: str) -> float | None:
    """Operations per second that a device does at most in a precision; None when not known.

    Known for bfloat16 on the devices of `flops.PEAK_TFLOPS` only: what float32 reaches depends on
    whether the device rounds it (TF32).
    """
    if device.type != "cuda" or dtype != "bfloat16":
        return None
    return peak_flops(torch.cuda.get_device_name(device))


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory taken since the process began: of torch on a CUDA device, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def broken_rows(batch: TrainBatch, queries: Embeddings, documents: Embeddings) -> Tensor:
    """Which queries have a vector that is not finite among their own items.

    Args:
        batch: b queries and their documents.
        queries: b of them, encoded.
        documents: n of them, encoded.

    Returns:
        (b,) bool: the query's own vectors, its positive's or a hard negative's are not finite.
    """
    broken_document = _broken(documents)
    negatives = broken_document[batch.negative_slot.clamp(min=0)] & (batch.negative_slot >= 0)
    return _broken(queries) | broken_document[batch.positive_slot] | negatives.any(dim=1)


def _broken(encoded: Embeddings) -> Tensor:
    parts = [encoded.vectors] if encoded.fused is None else [encoded.vectors, encoded.fused]
    finite = [part.detach().isfinite().flatten(1).all(dim=1) for part in parts]
    return ~torch.stack(finite).all(dim=0)


def blame(batch: TrainBatch, loss: JointLoss) -> str:
    """Say which rows and terms made a loss that is not finite; every rank calls it.

    Args:
        batch: this rank's rows.
        loss: this rank's loss, with `broken` where the objective looked.

    Returns:
        The same words on every rank.
    """
    mine = ([], 0) if loss.broken is None else _suspects(batch, loss.broken)
    terms = {name for name, value in loss.parts.items() if not value.isfinite().all()}
    everybody: list[tuple[tuple[list[str], int], set[str]]] = [(mine, terms)] * world_size()
    if world_size() > 1:
        dist.all_gather_object(everybody, (mine, terms))
    names = [name for (found, _), _ in everybody for name in found]
    rows = sum(count for (_, count), _ in everybody)
    return describe_blame(names, rows, sorted(set().union(*(found for _, found in everybody))))


def _suspects(batch: TrainBatch, broken: Tensor) -> tuple[list[str], int]:
    flags = (broken & batch.valid).tolist()
    found = [row.id for row, flag in zip(batch.query_rows, flags, strict=True) if flag]
    return found, int(batch.valid.sum())


def describe_blame(queries: Sequence[str], rows: int, terms: Sequence[str]) -> str:
    """Words for the rows to blame.

    Args:
        queries: ids of queries with vectors that are not finite.
        rows: queries of the step.
        terms: loss terms that are not finite.

    >>> describe_blame(["q7"], 64, ["fused"])
    "in the terms fused; of 64 rows these have vectors that are not finite: query 'q7'"
    >>> describe_blame([], 64, ["matching"])
    'in the terms matching; the vectors of all 64 rows are finite'
    """
    where = f"in the terms {', '.join(terms)}; " if terms else ""
    if not queries:
        return f"{where}the vectors of all {rows} rows are finite"
    if len(queries) == rows:
        return (
            f"{where}the vectors of all {rows} rows are not finite: "
            "the weights are broken, go on from an earlier checkpoint"
        )
    shown = ", ".join(f"query {name!r}" for name in queries[:_NAMED_ROWS])
    more = f" and {len(queries) - _NAMED_ROWS} more" if len(queries) > _NAMED_ROWS else ""
    return f"{where}of {rows} rows these have vectors that are not finite: {shown}{more}"
