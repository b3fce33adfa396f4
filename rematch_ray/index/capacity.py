"""What serving an index of a given size needs: memory, SSD, machines or GPUs, time per budget.

Pure functions of counts and of measured constants; nothing is read or built. Not counted: the
embedding model, copies for safety, and queries that wait for each other. Middle floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rematch_ray.index.coarse.sizes import BITS, SCAN
from rematch_ray.index.costs import EXPECTED, Costs, QueryTime, query_time, stages_of
from rematch_ray.index.footprint import (
    Component,
    Corpus,
    coarse_component,
    components,
    plane_bytes,
    refuse_below,
)
from rematch_ray.index.planner import Plan, plan_search
from rematch_ray.scoring.budget import Budget

GIB = float(1 << 30)
TOP_K = 10
# what the system, the process and queries under way leave of a machine's memory
USABLE_MEMORY = 0.8
# of the cores' time, so that queries seldom wait for each other
USABLE_CORES = 0.6
# documents per query whose order the originals decide, where they are kept
RESCORED = 32
# a merge writes a second copy before the first is removed
DISK_COPIES = 2
# the tie-breaking key, the live mark and two masks of a query
ROW_BYTES = 8 + 3
# Arithmetic, not measured: an H100's bandwidth, of which a scan reaches 1 / 1.3, and the queries
# that share a pass over the documents at nearly no cost.
GPU_BYTES_PER_MS = 3.35e9 / 1.3
GPU_LAUNCH_MS = 0.1
GPU_USABLE = 0.9
GPU_QUERIES_PER_PASS = 18


@dataclass(frozen=True)
class Machine:
    """What one machine has.

    Raises:
        UserError: less than 1 of anything.
    """

    ram_gib: float = 256.0
    ssd_gib: float = 4000.0
    cores: int = 32
    gpu_gib: float = 80.0

    def __post_init__(self) -> None:
        refuse_below(1, ram_gib=self.ram_gib, ssd_gib=self.ssd_gib, gpu_gib=self.gpu_gib)
        refuse_below(1, cores=self.cores)


@dataclass(frozen=True)
class GpuPlan:
    """Exact scans of all documents on GPUs: arithmetic from their bandwidth, not measured.

    Args:
        cards: that hold the planes of a budget.
        ms: one scan.
        replicas: copies of the cards that the load needs.
    """

    cards: int
    ms: float
    replicas: int


@dataclass(frozen=True)
class BudgetPlan:
    """What serving one budget needs.

    Args:
        budget: the rung.
        candidates: documents that the coarse stage keeps, or all where the plan has none.
        memory_bytes: what must be in memory, all shards together.
        whole_memory_bytes: memory that holds everything a query reads.
        ssd_planes: what it reads, now and then, from the SSD.
        ssd_ms: what those reads add to a query.
        latency_ms: one query on an idle system, one thread to a shard, SSD included.
        core_ms: time of all cores that one query takes.
        shards: parts of the index, one to a machine.
        replicas: copies of every part, for the load.
        whole_shards: machines that hold `whole_memory_bytes` once.
        gpu: the same budget on GPUs.
    """

    budget: Budget
    candidates: int
    memory_bytes: int
    whole_memory_bytes: int
    ssd_planes: tuple[str, ...]
    ssd_ms: float
    latency_ms: float
    core_ms: float
    shards: int
    replicas: int
    whole_shards: int
    gpu: GpuPlan

    @property
    def machines(self) -> int:
        """All machines."""
        return self.shards * self.replicas


@dataclass(frozen=True)
class Capacity:
    """What an index needs.

    Args:
        parts: of the index on disk.
        disk_bytes: all parts.
        budgets: what serving each rung needs, the fused one first where there is one.
    """

    parts: tuple[Component, ...]
    disk_bytes: int
    budgets: tuple[BudgetPlan, ...]


def plan_capacity(
    corpus: Corpus,
    machine: Machine,
    *,
    queries_per_second: float = 100.0,
    ssd_wait_ms: float = 30.0,
    costs: Costs = EXPECTED,
) -> Capacity:
    """Says what an index needs, budget by budget.

    Args:
        corpus: what is to be indexed.
        machine: what one machine has.
        queries_per_second: load, all of it at the one budget.
        ssd_wait_ms: what reads from the SSD may add to a query; the planes that fewest candidates
            reach lie there.
        costs: constants.

    Raises:
        UserError: a load or a wait below zero.

    >>> plan = plan_capacity(Corpus(10**9), Machine()).budgets[-1]
    >>> str(plan.budget), plan.candidates
    ('16x64', 2000)
    """
    refuse_below(0, queries_per_second=queries_per_second, ssd_wait_ms=ssd_wait_ms)
    parts = components(corpus)
    disk_bytes = sum(part.total(corpus.num_documents) for part in parts)
    rungs = ((Budget.FUSED,) if corpus.fused_dim else ()) + corpus.ladder.rungs
    load = _Load(machine, queries_per_second, ssd_wait_ms, costs, disk_bytes)
    return Capacity(tuple(parts), disk_bytes, tuple(_plan(corpus, rung, load) for rung in rungs))


@dataclass(frozen=True)
class _Load:
    """What all budgets share."""

    machine: Machine
    queries_per_second: float
    ssd_wait_ms: float
    costs: Costs
    disk_bytes: int


@dataclass(frozen=True)
class _Read:
    """Vectors that a plan reads: bytes of a document's, and how many documents they are read of."""

    name: str
    document_bytes: int
    documents: int

    def wait_ms(self, costs: Costs) -> float:
        return self.documents * costs.ssd_read_us / 1000


def _plan(corpus: Corpus, rung: Budget, load: _Load) -> BudgetPlan:
    plan = plan_search(
        rung, corpus.ladder, candidates="auto", num_allowed=corpus.num_documents, top_k=TOP_K
    )
    reads = _reads(corpus, plan)
    on_ssd = [] if plan.coarse_candidates is None else _on_ssd(reads, load)
    memory = _memory(corpus, plan, [read for read in reads if read not in on_ssd])
    whole = _memory(corpus, plan, reads)
    shards, replicas = _spread(corpus, plan, _fewest_machines(memory, load), load)
    time = _time(corpus, plan, shards, load)
    ssd_ms = sum(read.wait_ms(load.costs) for read in on_ssd) / shards
    return BudgetPlan(
        budget=rung,
        candidates=plan.coarse_candidates or corpus.num_documents,
        memory_bytes=memory,
        whole_memory_bytes=whole,
        ssd_planes=tuple(read.name for read in on_ssd),
        ssd_ms=ssd_ms,
        latency_ms=time.latency + ssd_ms,
        core_ms=time.core,
        shards=shards,
        replicas=replicas,
        whole_shards=_fewest_machines(whole, load),
        gpu=_on_gpus(corpus, rung, load),
    )


def _reads(corpus: Corpus, plan: Plan) -> list[_Read]:
    """Planes in the order in which the stages open them, then the originals."""
    reads: list[_Read] = []
    reached = 0
    for rung, entering in stages_of(plan, corpus.num_documents):
        if rung.is_fused:
            reads.append(_Read("fused", plane_bytes(1, corpus.coarse_dim), entering))
        for start, stop in corpus.ladder.planes():
            if reached <= start < rung.r_d:
                size = corpus.plane(start, stop)
                reads.append(_Read(f"plane {start}:{stop}", size, entering))
        reached = max(reached, rung.r_d)
    if corpus.originals and not plan.budget.is_fused:
        size = 2 * plan.budget.r_d * corpus.dim
        reads.append(_Read("originals", size, min(RESCORED, corpus.num_documents)))
    return reads


def _on_ssd(reads: list[_Read], load: _Load) -> list[_Read]:
    """What lies on the SSD: that which is read of the fewest documents, while the wait allows."""
    chosen: list[_Read] = []
    left = load.ssd_wait_ms
    for read in sorted(reads, key=lambda read: (read.documents, -read.document_bytes)):
        left -= read.wait_ms(load.costs)
        if left < 0:
            break
        chosen.append(read)
    return chosen


def _memory(corpus: Corpus, plan: Plan, held: list[_Read]) -> int:
    """Bytes in memory: the coarse list, what every document costs a query, and the planes held."""
    per_document = float(ROW_BYTES + sum(read.document_bytes for read in held))
    fixed = 0
    if plan.coarse_candidates is not None:
        name = "fused" if corpus.fused_dim else "first"
        coarse = coarse_component(corpus, name, corpus.coarse_dim)
        fixed = coarse.fixed
        per_document += coarse.per_document
        # what one bit a number proposes is scored from codes that lie anywhere
        if corpus.coarse_list in (SCAN, BITS):
            per_document += plane_bytes(1, corpus.coarse_dim)
    return math.ceil(per_document * corpus.num_documents) + fixed


def _fewest_machines(memory_bytes: int, load: _Load) -> int:
    """Machines whose memory and SSDs hold one copy of the index."""
    by_memory = memory_bytes / (load.machine.ram_gib * GIB * USABLE_MEMORY)
    by_disk = load.disk_bytes * DISK_COPIES / (load.machine.ssd_gib * GIB)
    return max(1, math.ceil(by_memory), math.ceil(by_disk))


def _spread(corpus: Corpus, plan: Plan, fewest: int, load: _Load) -> tuple[int, int]:
    """Shards and replicas: the fewest machines in all, then the fewest shards."""
    per_machine = load.machine.cores * USABLE_CORES * 1000
    best: tuple[int, int] | None = None
    shards = fewest
    while best is None or shards < best[0] * best[1]:
        core_ms = _time(corpus, plan, shards, load).core
        replicas = max(1, math.ceil(load.queries_per_second * core_ms / (shards * per_machine)))
        if best is None or shards * replicas < best[0] * best[1]:
            best = shards, replicas
        # of many one more or less says nothing
        shards += max(1, shards // 100)
    return best


def _time(corpus: Corpus, plan: Plan, shards: int, load: _Load) -> QueryTime:
    return query_time(
        load.costs,
        plan,
        num_documents=corpus.num_documents,
        dim=corpus.dim,
        fused_dim=corpus.fused_dim,
        coarse=corpus.coarse_list,
        rescored=RESCORED if corpus.originals else 0,
        shards=shards,
    )


def _on_gpus(corpus: Corpus, rung: Budget, load: _Load) -> GpuPlan:
    width, count = (corpus.coarse_dim, 1) if rung.is_fused else (corpus.dim, rung.r_d)
    size = corpus.num_documents * plane_bytes(count, width)
    cards = math.ceil(size / (load.machine.gpu_gib * GIB * GPU_USABLE))
    ms = GPU_LAUNCH_MS + size / cards / GPU_BYTES_PER_MS
    per_second = GPU_QUERIES_PER_PASS * 1000 / ms
    return GpuPlan(cards, ms, max(1, math.ceil(load.queries_per_second / per_second)))
