"""What router, shards and coordinator say to each other: plain values that are pickled.

No methods that do anything, no arrays but numpy's. Knows no Ray, no HTTP and no index file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rematch_ray.serve.backend import EncodedQuery, Float32

if TYPE_CHECKING:
    from rematch_ray.index.search import SearchResult


class GenerationGoneError(RuntimeError):
    """The generation that a request was admitted with is not on disk any more."""


@dataclass(frozen=True)
class State:
    """One state of an index, as a request is admitted to it.

    Attributes:
        name: what a search reports: of the generation, or of the set of an index that is split.
        generations: of each shard, in the order of the shards.
    """

    name: str
    generations: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """One search of a shard that holds the whole index.

    Attributes:
        generation: that is searched; None takes the newest that the replica has open.
        query: vectors.
        how: what `SearchIndex.search` takes beside the query.
        work: dot products that the request would have cost unloaded, for the autoscaler.
        as_asked: whether it runs as it would have unloaded.
        offset: best hits that are left out.
        limit: hits wanted after `offset`.
        min_score: hits below are left out.
        exclude: id that is left out, or None.
        with_fused: whether the fused vectors of the hits come with them.
        left_s: seconds until the deadline; a search that has waited longer is not begun.
        allow_partial: whether shards that do not answer are left out.
        may_widen: whether candidates may become more where groups are missing, as time allows.
        widen_to: so many of them at most; None for no limit.
    """

    generation: str | None
    query: EncodedQuery
    how: Mapping[str, Any]
    work: int = 0
    as_asked: bool = True
    offset: int = 0
    limit: int = 10
    min_score: float | None = None
    exclude: str | None = None
    with_fused: bool = False
    left_s: float | None = None
    allow_partial: bool = False
    may_widen: bool = True
    widen_to: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the hits are the best ones, with none left out."""
        return self.offset == 0 and self.exclude is None and self.min_score is None


@dataclass(frozen=True)
class Found:
    """What a shard answers.

    Attributes:
        result: hits and what was used.
        dot_products: spent.
        queue_ms: from the arrival of the request to the start of the search.
        search_ms: the search.
        fused: (hits, F) float32, where asked for.
        missing: shards that did not answer, of an index that is split.
    """

    result: SearchResult
    dot_products: int
    queue_ms: float
    search_ms: float
    fused: Float32 | None = None
    missing: tuple[int, ...] = ()


@dataclass(frozen=True)
class ShardReport:
    """What a replica of a shard has open.

    Attributes:
        shard: number.
        replica: its name, of one process.
        states: name of a state of the index -> generation of this shard, the published one last.
    """

    shard: int
    replica: str
    states: Mapping[str, str]


@dataclass(frozen=True)
class RouterReport:
    """What one router saw since its last report.

    Attributes:
        router: its name, of one process.
        delay_s: mean wait of the searches that began, and of those that wait still.
        searches: that began.
        refused: requests that were refused for load.
        unloaded_s: what a search of the top rung takes without waiting; None while unknown.
        demand: key name -> `Demand` of its quota.
    """

    router: str
    delay_s: float = 0.0
    searches: int = 0
    refused: int = 0
    unloaded_s: float | None = None
    demand: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Orders:
    """What routers go by until the next answer of the coordinator.

    Attributes:
        state: of the index; None until every shard has reported.
        level: rungs that `auto` must stay below the top of the ladder.
        refuses_explicit: whether explicit requests that cost more than the ceiling are refused.
        bearable_s: mean time that a search may take; what would take longer is refused. None
            refuses nothing.
        leases: key name -> `Lease` of its quota.
    """

    state: State | None = None
    level: int = 0
    refuses_explicit: bool = False
    bearable_s: float | None = None
    leases: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_calm(self) -> bool:
        """Whether nobody gets less than was asked for."""
        return self.level == 0 and not self.refuses_explicit
