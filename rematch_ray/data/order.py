"""The epoch as a plan: which rows of which source make up every training step.

Pure arithmetic on the middle floor: it reads no file and does not know Ray, tensors or the number
of processes. From a seed and the sizes of the row groups it yields steps of sub-batches, the same
ones at every call; `Step.for_rank` deals a step's sub-batches to however many ranks there are, so
the global batch of a step never depends on the world size. Ranks that come away with one sub-batch
less than others fill the place with masked rows (`Plan.masked_rows`).
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rematch_ray.errors import UserError

PLAN_VERSION = 1


class OrderSettings(BaseModel):
    """How the rows of an epoch are ordered, mixed and cut into steps."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    global_batch: int = Field(default=64, gt=0)
    """Pairs per step over all ranks; a whole number of sub-batches."""
    sub_batch: int = Field(default=32, gt=0)
    """Pairs per sub-batch; all rows of a sub-batch come from one source."""
    window: int = Field(default=8, gt=0)
    """Row groups of one source whose rows are shuffled together; a reader keeps up to twice as many
    of each source in memory."""
    when_source_ends: Literal["end_epoch", "leave_out"] = "end_epoch"
    """`end_epoch` keeps the mix exact; `leave_out` goes on with the other sources to their end."""

    @model_validator(mode="after")
    def _whole_sub_batches(self) -> Self:
        if self.global_batch % self.sub_batch:
            raise ValueError(
                f"global_batch {self.global_batch} is not a whole number of sub-batches of "
                f"{self.sub_batch} rows; make it a multiple"
            )
        return self


@dataclass(frozen=True)
class SourceRows:
    """What the plan knows of one source.

    Args:
        name: the source's name.
        row_groups: rows in each row group, in the order of the reader's list.
        weight: its share of the sub-batches relative to the others; None = by its number of rows.
        fingerprint: identifies the content (files, sizes); part of the plan's digest.
    """

    name: str
    row_groups: tuple[int, ...]
    weight: float | None = None
    fingerprint: str = ""

    @property
    def num_rows(self) -> int:
        """Rows of the source."""
        return sum(self.row_groups)


@dataclass(frozen=True)
class SubBatch:
    """Rows of one source that stay together on one rank.

    Args:
        source: index into the plan's sources.
        row_groups: (n,) int64, the row group of each row.
        rows: (n,) int64, the row inside its row group.
    """

    source: int
    row_groups: np.ndarray
    rows: np.ndarray

    @property
    def mark(self) -> int:
        """A 63-bit number that tells which rows these are, and in which order."""
        places = np.stack([self.row_groups, self.rows]).astype("<i8")
        digest = hashlib.blake2b(f"{self.source}\0".encode() + places.tobytes(), digest_size=8)
        return int.from_bytes(digest.digest(), "little") >> 1


@dataclass(frozen=True)
class Step:
    """One optimisation step: its place and its sub-batches over all ranks."""

    index: int
    epoch: int
    step: int
    sub_batches: tuple[SubBatch, ...]

    def for_rank(self, rank: int, world_size: int) -> tuple[SubBatch, ...]:
        """Return the sub-batches of one rank: they are dealt to the ranks in turn."""
        return self.sub_batches[rank::world_size]


@dataclass(frozen=True)
class Plan:
    """Every step of a run: epoch after epoch over the same sources, each in its own order.

    Sources are mixed evenly by weight (sub-batch j of a source with share w stands at (j+1/2)/w),
    and the order inside a step is drawn anew, so that no rank always gets the same source. Rows
    short of a sub-batch, and sub-batches short of a step, sit an epoch out.

    Args:
        sources: at least one; weights are given for all of them or for none.
        seed: with the epoch's number it fixes every draw.
        settings: batch sizes, shuffle window and the rule for a source that ends.

    Raises:
        UserError: no source, one without a single sub-batch, mixed or non-positive weights, or too
            little data for one step.
    """

    sources: tuple[SourceRows, ...]
    seed: int
    settings: OrderSettings
    _slots: np.ndarray = field(init=False, repr=False, compare=False)
    _ordinals: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        slots = _mix(self.sources, self.settings)
        whole = len(slots) // self.sub_batches_per_step * self.sub_batches_per_step
        if not whole:
            raise UserError(
                f"the data holds {sum(s.num_rows for s in self.sources)} rows, less than one "
                f"global batch of {self.settings.global_batch}; lower data.order.global_batch"
            )
        slots = slots[:whole]
        ordinals = np.empty(whole, dtype=np.int64)
        for source in range(len(self.sources)):
            of_source = slots == source
            ordinals[of_source] = np.arange(of_source.sum())
        object.__setattr__(self, "_slots", slots)
        object.__setattr__(self, "_ordinals", ordinals)

    @property
    def sub_batches_per_step(self) -> int:
        """Sub-batches of one step over all ranks."""
        return self.settings.global_batch // self.settings.sub_batch

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, the same for every epoch."""
        return len(self._slots) // self.sub_batches_per_step

    @property
    def digest(self) -> str:
        """SHA-256 over everything the order depends on, the algorithm's version included."""
        content = {
            "version": PLAN_VERSION,
            "seed": self.seed,
            "settings": self.settings.model_dump(),
            "sources": [asdict(source) for source in self.sources],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def window_steps(self) -> int:
        """Steps that the longest shuffle window spans.

        Whoever reads stretches of at least this many steps at a time, keeping one window per
        source, reads no row group more than about twice in an epoch.
        """
        spans = []
        for index, source in enumerate(self.sources):
            used = int(np.count_nonzero(self._slots == index)) * self.settings.sub_batch
            window_rows = max(source.row_groups) * min(self.settings.window, len(source.row_groups))
            spans.append(window_rows * self.steps_per_epoch / max(used, 1))
        return min(int(np.ceil(max(spans))), self.steps_per_epoch)

    def step(self, index: int) -> Step:
        """Return step `index` of the run, counted from 0 over all epochs."""
        epoch, step = divmod(index, self.steps_per_epoch)
        start = step * self.sub_batches_per_step
        inside = _generator(self.seed, epoch, len(self.sources), step)
        places = start + inside.permutation(self.sub_batches_per_step)
        return Step(index, epoch, step, tuple(self._sub_batch(epoch, int(i)) for i in places))

    def steps(self, start: int, stop: int) -> Iterator[Step]:
        """Yield the steps `start` to `stop` (excluded) of the run."""
        return (self.step(index) for index in range(start, stop))

    def masked_rows(self, rank: int, world_size: int) -> int:
        """Rows of the masked sub-batch that gives this rank as many rows as the others; 0 = none.

        >>> plan = Plan((SourceRows("a", (64,)),), 0, OrderSettings(global_batch=16, sub_batch=4))
        >>> [plan.masked_rows(rank, 3) for rank in range(3)]
        [0, 4, 4]
        """
        dealt = len(range(rank, self.sub_batches_per_step, world_size))
        most = -(-self.sub_batches_per_step // world_size)
        return (most - dealt) * self.settings.sub_batch

    def _sub_batch(self, epoch: int, place: int) -> SubBatch:
        source = int(self._slots[place])
        start = int(self._ordinals[place]) * self.settings.sub_batch
        order = _source_order(
            self.sources[source].row_groups, self.settings.window, (self.seed, epoch, source)
        )
        row_groups, rows = order.rows(start, start + self.settings.sub_batch)
        return SubBatch(source, row_groups, rows)


class _SourceOrder:
    """The shuffled rows of one source in one epoch, made window by window as they are asked for."""

    def __init__(self, row_groups: tuple[int, ...], window: int, key: tuple[int, int, int]) -> None:
        self._sizes = np.asarray(row_groups, dtype=np.int64)
        self._key = key
        self._groups = _generator(*key).permutation(len(row_groups))
        self._window = window
        ends = np.cumsum(self._sizes[self._groups])
        last_of_window = np.minimum(np.arange(window, len(ends) + window, window), len(ends)) - 1
        self._window_ends = ends[last_of_window]
        self._shuffled: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (row groups, rows), each (stop - start,), of the places `start` to `stop`."""
        first, last = np.searchsorted(self._window_ends, [start, stop - 1], side="right")
        pieces = []
        for window in range(int(first), int(last) + 1):
            groups, rows = self._one_window(window)
            begin = int(self._window_ends[window]) - len(rows)
            cut = slice(max(start - begin, 0), stop - begin)
            pieces.append((groups[cut], rows[cut]))
        return (
            np.concatenate([groups for groups, _ in pieces]),
            np.concatenate([rows for _, rows in pieces]),
        )

    def _one_window(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        if window not in self._shuffled:
            members = self._groups[window * self._window : (window + 1) * self._window]
            sizes = self._sizes[members]
            groups = np.repeat(members, sizes)
            rows = np.concatenate([np.arange(size) for size in sizes])
            order = _generator(*self._key, window).permutation(len(rows))
            self._shuffled[window] = (groups[order], rows[order])
            # steps move forward: a window two behind is not asked for again in this pass
            self._shuffled.pop(window - 2, None)
        return self._shuffled[window]


@lru_cache(maxsize=64)
def _source_order(
    row_groups: tuple[int, ...], window: int, key: tuple[int, int, int]
) -> _SourceOrder:
    return _SourceOrder(row_groups, window, key)


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def _mix(sources: Sequence[SourceRows], settings: OrderSettings) -> np.ndarray:
    """Return the source of every sub-batch of an epoch, (n,) int64."""
    if not sources:
        raise UserError("the data names no source; give at least one under data.sources")
    counts = [source.num_rows // settings.sub_batch for source in sources]
    for source, count in zip(sources, counts, strict=True):
        if not count:
            raise UserError(
                f"source {source.name} holds {source.num_rows} rows, less than one sub-batch of "
                f"{settings.sub_batch}; lower data.order.sub_batch or leave the source out"
            )
    weights = _weights(sources, counts)
    places = [(np.arange(n) + 0.5) / weight for n, weight in zip(counts, weights, strict=True)]
    origins = np.repeat(np.arange(len(sources)), counts)
    place = np.concatenate(places)
    order = np.lexsort((origins, place))
    if settings.when_source_ends == "end_epoch":
        end = min((n + 0.5) / weight for n, weight in zip(counts, weights, strict=True))
        order = order[place[order] < end]
    return origins[order]


def _weights(sources: Sequence[SourceRows], counts: Sequence[int]) -> list[float]:
    given = [source.weight for source in sources]
    if all(weight is None for weight in given):
        return [float(count) for count in counts]
    weights = [weight for weight in given if weight is not None and weight > 0]
    if len(weights) < len(given):
        raise UserError(
            "source weights "
            + ", ".join(f"{s.name}={s.weight}" for s in sources)
            + ": give a number above 0 for every source, or for none"
        )
    return weights
