"""What is asked of a split index, checked and planned as `SearchIndex.search` does over one.

Knows no shards and no Ray.
"""

from __future__ import annotations

from rematch_ray.index.cascade import stage
from rematch_ray.index.choice import Choice
from rematch_ray.index.filters import check_filter
from rematch_ray.index.grouping import field_of
from rematch_ray.index.lexical.hybrid import Hybrid
from rematch_ray.index.queries import Queries
from rematch_ray.index.sharding.scatter import ShardedRequest
from rematch_ray.serve.facts import IndexFacts
from rematch_ray.serve.wire import Asked


def check_queries(asked: Asked, facts: IndexFacts) -> Queries:
    """The query's vectors; UserError where they, or the field of groups, do not fit the index."""
    group_by = asked.how.get("group_by")
    if group_by is not None:
        check_filter({field_of(group_by): ""}, facts.fields)
    return Queries.check(
        asked.query,
        num_vectors=facts.rungs.num_query_vectors,
        dim=facts.dim,
        fused_dim=facts.fused_dim,
    )


def read_hybrid(asked: Asked) -> Hybrid | None:
    """The words of a hybrid search, or None; UserError where they do not fit."""
    how = {"text": None, "fusion": None, "lexical_weight": 0.5, **asked.how}
    return Hybrid.check(how["text"], how["fusion"], how["lexical_weight"], 1)


def read_request(
    asked: Asked, facts: IndexFacts, num_allowed: int, top_k: int, state: str
) -> tuple[Choice, ShardedRequest]:
    """The plan, and what shards are asked by it.

    Args:
        asked: the request.
        facts: of the index.
        num_allowed: documents that pass the filter.
        top_k: hits, those that are dropped later included.
        state: name of the state of the index.

    Raises:
        UserError: something that does not exist here, or that no calibration allows.
    """
    how = {"text": None, **asked.how}
    is_hybrid = how["text"] is not None
    filter, group_by = how.pop("filter", None), how.pop("group_by", None)
    for name in ("text", "fusion", "lexical_weight"):  # of the fusion, which no plan knows
        how.pop(name, None)
    choice = facts.choose(
        top_k=top_k,
        filter=filter,
        group_by=group_by,
        num_allowed=num_allowed,
        is_hybrid=is_hybrid,
        **how,
    )
    request = ShardedRequest(
        plan=choice.plan,
        coarse=choice.plan.coarse or facts.default_coarse,
        filter=filter or None,
        nprobe=None,
        top_k=top_k,
        group_by=group_by,
        filter_stage=stage("filter", facts.live, num_allowed, 0.0),
        live=facts.live,
        is_float=choice.plan.budget.is_fused or facts.has_originals,
        generation=state,
    )
    return choice, request
