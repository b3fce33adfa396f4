"""Other services beside ours: the same vectors, the same load, the same threads."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from load.bodies import vector_bodies
from load.driver import Load, LoadGenerator
from meters.cpu import CpuMeter
from peers.vector_service import make_engine
from shapes.served_corpus import Served

from arms.overhead import PER_THREAD
from arms.service import ROOT, Service

PROGRAM = ROOT / "benchmarks" / "peers" / "vector_service.py"
WIDTHS = {"faiss": 0, "qdrant": 500, "lancedb": 300}
NAMES = {
    "faiss": "FastAPI + FAISS flat, fused vector",
    "qdrant": "FastAPI + Qdrant engine, fused then MaxSim",
    "lancedb": "FastAPI + LanceDB, IVF-PQ on all vectors",
}
OURS = {"ours, 1x1": {"budget": "1x1"}, "ours, fused": {"budget": "fused"}}
OURS |= {"ours, 8x16": {"budget": "8x16"}, "ours, 16x64": {"budget": "16x64"}}


@dataclass(frozen=True)
class Beside:
    """One service under the same load, medians over the rounds.

    Attributes:
        name: for the table.
        ms: of one request at a time.
        p99: under full load.
        per_s: results a second under full load.
        cpu_ms: CPU of the service for each request under full load.
        recall: recall@10 against exact MaxSim.
    """

    name: str
    ms: float
    p99: float
    per_s: float
    cpu_ms: float
    recall: float


def measure_ours(
    service: Service,
    generator: LoadGenerator,
    served: Served,
    folder: Path,
    *,
    threads: int,
    rounds: int,
    seconds: float,
) -> list[Beside]:
    """Our service at several budgets; it is up."""
    results = []
    for name, asked in OURS.items():
        bodies = vector_bodies(folder / "ours.jsonl", served.queries, **asked)
        results.append(
            _measured(name, service, generator, served, bodies, threads, rounds, seconds)
        )
    return results


def measure_peer(
    engine: str,
    served: Served,
    folder: Path,
    *,
    port: int,
    threads: int,
    rounds: int,
    seconds: float,
) -> Beside:
    """Starts a service of an engine, which builds its index first.

    Raises:
        ImportError: the engine is not installed.
    """
    make_engine(engine)
    bodies = vector_bodies(folder / "peer.jsonl", served.queries)
    command = [str(PROGRAM), str(port), engine, str(served.task.documents.path)]
    command += [str(folder / f"peer-{engine}"), str(WIDTHS[engine]), str(threads)]
    print(f"{NAMES[engine]}: building", file=sys.stderr)
    service = Service(command, port, patience_s=1200.0)
    with service, LoadGenerator(port) as generator:
        return _measured(
            NAMES[engine], service, generator, served, bodies, threads, rounds, seconds
        )


def _measured(
    name: str,
    service: Service,
    generator: LoadGenerator,
    served: Served,
    bodies: Path,
    threads: int,
    rounds: int,
    seconds: float,
) -> Beside:
    meter, ones, fulls, cpu = CpuMeter(service.pid), [], [], []
    generator.closed(bodies, concurrency=PER_THREAD * threads, seconds=1.0)
    for _ in range(rounds):
        ones.append(generator.closed(bodies, concurrency=1, seconds=seconds))
        before = meter.read()
        fulls.append(generator.closed(bodies, concurrency=PER_THREAD * threads, seconds=seconds))
        cpu.append(1000 * (meter.read() - before) / max(1, len(fulls[-1].good)))
    return Beside(
        name=name,
        ms=statistics.median(load.ms() for load in ones),
        p99=statistics.median(load.ms(99) for load in fulls),
        per_s=statistics.median(load.per_s for load in fulls),
        cpu_ms=statistics.median(cpu),
        recall=_recall(ones[0], served),
    )


def _recall(load: Load, served: Served) -> float:
    best = served.task.exact().ids
    shares = [len(set(best[r.row][:10].tolist()) & set(r.ids[:10])) / 10 for r in load.good]
    return statistics.fmean(shares) if shares else 0.0


def peer_table(results: Sequence[Beside]) -> list[list[str]]:
    """Rows for people."""
    rows = [["service", "p50 ms alone", "per s", "p99 ms", "CPU-ms", "recall@10"]]
    for one in results:
        cells = [f"{one.ms:.2f}", f"{one.per_s:.1f}", f"{one.p99:.1f}", f"{one.cpu_ms:.2f}"]
        rows.append([one.name, *cells, f"{one.recall:.3f}"])
    return rows
