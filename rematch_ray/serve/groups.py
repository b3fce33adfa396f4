"""The passes of a grouped search over the shards of an index, as `index.execution` runs them.

Knows shards by what they are asked with, and no Ray.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from rematch_ray.index.choice import Choice
from rematch_ray.index.grouping import needs_source
from rematch_ray.index.hits import SearchResult
from rematch_ray.index.sharding.phases import Filter
from rematch_ray.index.sharding.scatter import ShardedRequest
from rematch_ray.index.widening import GroupPasses
from rematch_ray.serve.backend import DeadlineError, NotReadyError, OverloadedError
from rematch_ray.serve.partial import ShardsLostError
from rematch_ray.serve.wire import GenerationGoneError

logger = logging.getLogger(__name__)
# what a later pass may meet that the first one did not
_NO_MORE = (OverloadedError, NotReadyError, DeadlineError, ShardsLostError, GenerationGoneError)


@dataclass(frozen=True)
class Asking:
    """What the shards of one state are asked.

    Attributes:
        run: another pass.
        count: documents that pass a filter.
        sources: source of each document, by id.
    """

    run: Callable[[ShardedRequest], Awaitable[SearchResult]]
    count: Callable[[Filter], Awaitable[int]]
    sources: Callable[[Sequence[str]], Awaitable[list[str]]]


async def find_groups(
    asking: Asking,
    request: ShardedRequest,
    choice: Choice,
    result: SearchResult,
    *,
    began: float,
    until: float | None,
    most: int | None,
) -> GroupPasses:
    """Runs the passes that groups are missing for, and those that fail leave what was found.

    Args:
        asking: asks the shards.
        request: of the first pass.
        choice: its plan.
        result: what it found.
        began: reading of `time.perf_counter` when it began.
        until: such a reading by which all must end; None for no limit.
        most: documents that a further pass may score at the final budget; None for no limit.
    """
    assert request.group_by is not None
    passes = GroupPasses(
        choice,
        result,
        time.perf_counter() - began,
        top_k=request.top_k,
        num_allowed=int(request.filter_stage["out"]),
        group_by=request.group_by,
        until=until,
        most=most,
    )
    try:
        while passes.next_plan() is not None:
            await _look_further(asking, request, passes)
    except _NO_MORE as failed:
        # the first pass is an answer, which says that groups may be missing
        logger.warning("no further pass for groups: %r", failed)
    return passes


async def _look_further(asking: Asking, request: ShardedRequest, passes: GroupPasses) -> None:
    """Whether any other group is left, and if so another pass."""
    sources: list[str] = []
    if needs_source(request.group_by):
        sources = await asking.sources(passes.hits)
    conditions = passes.conditions(request.filter, sources)
    if conditions is not None:
        passes.saw(await asking.count(conditions), sources)
    if (plan := passes.next_plan()) is not None:
        began = time.perf_counter()
        more = await asking.run(replace(request, plan=plan))
        passes.take(plan, more, time.perf_counter() - began)
