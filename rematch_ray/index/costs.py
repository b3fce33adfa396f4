"""What a search costs in time: a table of measured constants, and the sum over a plan's stages.

Times are of one thread, per query, on vectors that lie in memory; what an SSD adds is counted by
the planner of capacity. Knows nothing of machines or bytes on disk. Middle floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from rematch_ray.errors import UserError, did_you_mean
from rematch_ray.index.coarse.sizes import default_nprobe, kind_by_size, lists_for
from rematch_ray.index.planner import Plan
from rematch_ray.scoring.budget import Budget

CoarseList = Literal[
    "scan", "scan4", "scan1", "flat", "sq8", "ivf", "ivf_sq8", "ivf_pq", "ivf_rabitq"
]
COARSE_LISTS: tuple[CoarseList, ...] = get_args(CoarseList)
# time per entry over that of our own 8-bit scan, and of 8-bit codes in lists: FAISS 1.15 on 300,000
# vectors, `scan4` and `scan1` on a million, with one of 128 proposed (one of 64, as now, on
# another machine: 0.20 to 0.24); float16 is assumed
_SCAN_FACTORS = {"scan": 1.0, "scan4": 0.55, "scan1": 0.25, "flat": 3.5, "sq8": 1.75}
_LIST_FACTORS = {"ivf": 1.0, "ivf_sq8": 1.0, "ivf_pq": 0.45, "ivf_rabitq": 1.15}
# a query meets long lists more often than short ones
PROBED_LIST_EXCESS = 1.5


@dataclass(frozen=True)
class Costs:
    """Constants of one machine, one thread. An entry is one number of a vector.

    Args:
        call_ms: a search call, whatever it scores: checks, plan, ids and payloads of the hits.
        stage_ms: each stage of a plan.
        scan_ns: per entry of an exact coarse scan, from memory, not from a cache.
        centroid_ns: per entry of the list centres that a query is compared with.
        list_ns: per entry of the 8-bit codes in the lists that are probed.
        document_ns: per document and plane that a candidate list picks out.
        entry_ns: per entry of such a document that is read.
        ordered_ns: the same where every document is read, one after another.
        product_ns: per entry of a dot product.
        exact_ns: per entry of a dot product with the float16 originals.
        ssd_read_us: a read that memory does not hold; a mapped file waits for one at a time.
        merge_ms: sending a query to several shards and merging what they found.
        measured: where and how the constants were taken.
    """

    call_ms: float
    stage_ms: float
    scan_ns: float
    centroid_ns: float
    list_ns: float
    document_ns: float
    entry_ns: float
    ordered_ns: float
    product_ns: float
    exact_ns: float
    ssd_read_us: float
    merge_ms: float
    measured: str

    def document(self, rung: Budget, dim: int, before: Budget | None = None) -> float:
        """Nanoseconds to take one candidate to a rung.

        Args:
            rung: the rung.
            dim: D, or F for the fused rung.
            before: the rung whose maxima are carried: only what is new is multiplied, and what was
                read is read again when new query vectors meet it.

        >>> round(EXPECTED.document(Budget(16, 64), 128) / 1000, 1)
        1.6
        """
        reads = max(1, rung.r_d)
        products = rung.dot_products
        if before is not None and not before.is_fused:
            products -= before.dot_products
            if rung.r_q == before.r_q:
                reads -= before.r_d
        return self.document_ns + dim * (reads * self.entry_ns + products * self.product_ns)

    def every_document(self, rung: Budget, dim: int) -> float:
        """Nanoseconds per document where all are scored: no list picks, and reading is in order.

        >>> EXPECTED.every_document(Budget(2, 4), 128) < EXPECTED.document(Budget(2, 4), 128)
        True
        """
        reads = max(1, rung.r_d) * self.ordered_ns
        return dim * (reads + rung.dot_products * self.product_ns)


# By `rematch-ray plan --measure` on an idle 2-core server with AVX-512 VNNI: means of two runs,
# which differ by a quarter, as its speed does. centroid_ns is FAISS's on 100,000 vectors; what no
# index of this machine shows is assumed.
EXPECTED = Costs(
    call_ms=0.23,
    stage_ms=0.077,
    scan_ns=0.097,
    centroid_ns=0.23,
    list_ns=0.39,
    document_ns=0,
    entry_ns=0.117,
    ordered_ns=0.0885,
    product_ns=0.0046,
    exact_ns=0.0865,
    ssd_read_us=100,
    merge_ms=1.0,
    measured=(
        "one thread of a 2-core server with AVX-512 VNNI, vectors of 128, memory not SSD; "
        "ssd_read_us and merge_ms are assumed"
    ),
)


def choose_list(num_documents: int, kind: str = "auto") -> CoarseList:
    """The coarse list for a corpus.

    Args:
        num_documents: of the whole corpus.
        kind: one of `COARSE_LISTS`, or `auto`: by size.

    Raises:
        UserError: another kind.

    >>> choose_list(10**4), choose_list(10**9), choose_list(10**9, "ivf_rabitq")
    ('scan', 'ivf_sq8', 'ivf_rabitq')
    """
    wanted = kind_by_size(num_documents) if kind == "auto" else kind
    for known in COARSE_LISTS:
        if wanted == known:
            return known
    allowed = did_you_mean(kind, ("auto", *COARSE_LISTS))
    raise UserError(f"coarse list {kind!r} does not exist; {allowed}")


def coarse_ms(costs: Costs, kind: CoarseList, num_documents: int, dim: int) -> float:
    """Milliseconds of the coarse stage over so many documents.

    >>> round(coarse_ms(EXPECTED, "scan", 10**6, 128), 1)
    12.4
    """
    if kind in _SCAN_FACTORS:
        return num_documents * dim * costs.scan_ns * _SCAN_FACTORS[kind] / 1e6
    lists = lists_for(num_documents)
    share = min(1.0, PROBED_LIST_EXCESS * default_nprobe(lists) / lists)
    per_entry = costs.list_ns * _LIST_FACTORS[kind]
    return dim * (lists * costs.centroid_ns + share * num_documents * per_entry) / 1e6


def stages_of(plan: Plan, num_documents: int) -> list[tuple[Budget, int]]:
    """Every rung of a plan, the final one last, with the documents that enter it.

    >>> stages_of(Plan(Budget(4, 8), 2000, ((Budget(2, 4), 500),)), 10**6)
    [(Budget(r_q=2, r_d=4), 2000), (Budget(r_q=4, r_d=8), 500)]
    """
    entering = num_documents if plan.coarse_candidates is None else plan.coarse_candidates
    stages = []
    for rung, keep in plan.narrowing:
        stages.append((rung, entering))
        entering = keep
    return [*stages, (plan.budget, entering)]


@dataclass(frozen=True)
class QueryTime:
    """What one query takes, in milliseconds.

    Args:
        latency: until the slowest of the shards has answered and the answers are merged.
        core: of all cores of all shards together.
    """

    latency: float
    core: float


def query_time(
    costs: Costs,
    plan: Plan,
    *,
    num_documents: int,
    dim: int,
    fused_dim: int | None,
    coarse: CoarseList,
    rescored: int = 0,
    shards: int = 1,
) -> QueryTime:
    """Sums the stages of a plan, candidates spread evenly over the shards.

    Args:
        costs: constants.
        plan: of the whole corpus: shards cut their candidates together.
        num_documents: live documents of all shards.
        dim: D.
        fused_dim: F, or None; the coarse stage reads the fused vector where there is one.
        coarse: coarse list of each shard.
        rescored: documents whose order the float16 originals decide.
        shards: how many.
    """
    own = math.ceil(num_documents / shards)
    fixed = costs.call_ms
    per_candidate = 0.0
    if plan.coarse_candidates is not None:
        fixed += costs.stage_ms + coarse_ms(costs, coarse, own, fused_dim or dim)
    before: Budget | None = None
    for rung, entering in stages_of(plan, num_documents):
        width = (fused_dim or dim) if rung.is_fused else dim
        fixed += costs.stage_ms
        if before is None and plan.coarse_candidates is None:
            per_document = costs.every_document(rung, width)
        else:
            per_document = costs.document(rung, width, before)
        per_candidate += entering * per_document / 1e6
        before = rung
    if not plan.budget.is_fused:
        exact_ns = costs.document_ns + plan.budget.dot_products * dim * costs.exact_ns
        per_candidate += min(rescored, num_documents) * exact_ns / 1e6
    merge = costs.merge_ms if shards > 1 else 0.0
    return QueryTime(
        latency=fixed + per_candidate / shards + merge,
        core=shards * fixed + per_candidate + merge,
    )
