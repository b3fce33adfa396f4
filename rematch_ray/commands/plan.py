"""Say what an index would need before anything is built: bytes, memory, SSD, machines, latency.

Times come from constants measured with one thread; --measure takes them on this machine through a
small index, which needs some seconds. Counts may be written 1e9, 10M or 2.5k.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rematch_ray.commands.parser import OneLineParser, positive_number
from rematch_ray.errors import UserError

if TYPE_CHECKING:
    from rematch_ray.index.capacity import Capacity
    from rematch_ray.index.costs import Costs
    from rematch_ray.index.footprint import Corpus
    from rematch_ray.scoring.budget import Ladder

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def add_arguments(parser: OneLineParser) -> None:
    """Add what ``rematch-ray plan`` takes."""
    corpus = parser.add_argument_group("what is indexed")
    corpus.add_argument("--docs", required=True, metavar="N", help="documents: 1e9, 10M, 250000")
    corpus.add_argument(
        "--dim", type=positive_number, default=128, metavar="D", help="numbers of a vector (128)"
    )
    corpus.add_argument(
        "--fused-dim", type=_number, default=512, metavar="F", help="512; 0 for a model without"
    )
    corpus.add_argument(
        "--vectors", type=positive_number, metavar="R", help="vectors of a document (64)"
    )
    corpus.add_argument("--ladder", nargs="+", metavar="RxR", help="rungs (1x1 2x4 4x8 8x16 16x64)")
    corpus.add_argument(
        "--originals",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep float16 vectors beside the 8-bit codes",
    )
    corpus.add_argument(
        "--payload-bytes",
        type=positive_number,
        default=200,
        metavar="N",
        help="id and payload (200)",
    )
    corpus.add_argument(
        "--coarse",
        default="auto",
        metavar="KIND",
        help="auto (by size), scan, scan4, scan1, flat, sq8, ivf, ivf_sq8, ivf_pq, ivf_rabitq",
    )
    machine = parser.add_argument_group("one machine, and the load")
    for flag, usual, unit, what in (
        ("--ram-gib", 256.0, "GIB", "main memory of one"),
        ("--ssd-gib", 4000.0, "GIB", "SSDs of one"),
        ("--gpu-gib", 80.0, "GIB", "memory of one GPU, where GPUs are counted"),
        ("--queries-per-second", 100.0, "N", "to be borne by all together"),
    ):
        machine.add_argument(
            flag, type=float, default=usual, metavar=unit, help=f"{what} ({usual:g})"
        )
    machine.add_argument(
        "--cores", type=positive_number, default=32, metavar="N", help="cores of one (32)"
    )
    machine.add_argument(
        "--ssd-wait-ms",
        type=float,
        default=30.0,
        metavar="MS",
        help="what reads from the SSD may add to a query (30); 0 keeps everything in memory",
    )
    parser.add_argument("--measure", action="store_true", help="time the constants here, first")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Plan; returns what the tables say, and the constants behind the times."""
    from rematch_ray.index.capacity import Machine, plan_capacity
    from rematch_ray.index.costs import EXPECTED
    from rematch_ray.index.footprint import Corpus, parse_count

    corpus = Corpus(
        parse_count(options.docs),
        dim=options.dim,
        fused_dim=options.fused_dim or None,
        ladder=_ladder(options.ladder, options.vectors),
        originals=options.originals,
        payload_bytes=options.payload_bytes,
        coarse=options.coarse,
    )
    machine = Machine(options.ram_gib, options.ssd_gib, options.cores, options.gpu_gib)
    costs = _measure(corpus) if options.measure else EXPECTED
    capacity = plan_capacity(
        corpus,
        machine,
        queries_per_second=options.queries_per_second,
        ssd_wait_ms=options.ssd_wait_ms,
        costs=costs,
    )
    print(describe(corpus, capacity, options.queries_per_second, costs), file=sys.stderr)
    return _as_json(corpus, capacity, costs)


def describe(corpus: Corpus, capacity: Capacity, per_second: float, costs: Costs) -> str:
    """The plan as text: bytes of each part, then a line for each budget."""
    from rematch_ray.evaluation.report import plain_table

    top = corpus.ladder.top
    fused = f"a fused vector of {corpus.fused_dim}" if corpus.fused_dim else "no fused vector"
    return "\n".join(
        [
            f"{corpus.num_documents:,} documents of {top.r_d} vectors of {corpus.dim}, {fused}",
            "",
            plain_table(_part_lines(corpus, capacity)),
            "",
            plain_table(_budget_lines(capacity, per_second)),
            "",
            "memory: what a query reads of many documents; the planes under 'SSD' are read of few.",
            "ms: one query on idle machines, one thread to a shard. exact on GPUs: all documents,",
            "arithmetic from their bandwidth. Not counted: the model, copies for safety, waiting.",
            f"Constants: {costs.measured}.",
        ]
    )


def _part_lines(corpus: Corpus, capacity: Capacity) -> list[list[str]]:
    lines = [["part", "bytes/document", "in all"]]
    for part in capacity.parts:
        total = part.total(corpus.num_documents)
        lines.append([part.name, f"{part.per_document:,.0f}", show_bytes(total)])
    each = capacity.disk_bytes / corpus.num_documents
    return [*lines, ["on disk", f"{each:,.0f}", show_bytes(capacity.disk_bytes)]]


def _budget_lines(capacity: Capacity, per_second: float) -> list[list[str]]:
    load = f"machines for {per_second:g}/s"
    header = ["budget", "candidates", "memory", "SSD", "ms", "core ms", "shards", load]
    lines = [[*header, "all in memory", "exact on GPUs"]]
    for need in capacity.budgets:
        planes = ", ".join(name.removeprefix("plane ") for name in need.ssd_planes)
        lines.append(
            [
                str(need.budget),
                f"{need.candidates:,}",
                show_bytes(need.memory_bytes),
                planes or "-",
                f"{need.latency_ms:.1f}",
                f"{need.core_ms:.1f}",
                str(need.shards),
                f"{need.machines} ({need.shards} x {need.replicas})",
                f"{show_bytes(need.whole_memory_bytes)}, {need.whole_shards}",
                f"{need.gpu.cards} x {need.gpu.replicas}, {need.gpu.ms:.1f} ms",
            ]
        )
    return lines


def show_bytes(count: float) -> str:
    """Bytes in the largest unit that leaves at least 1.

    >>> show_bytes(8 * 2**30), show_bytes(1023)
    ('8.0 GiB', '1023.0 B')
    """
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.1f} {_UNITS[unit]}"


def _ladder(rungs: Sequence[str] | None, vectors: int | None) -> Ladder:
    """The ladder named, or the default one up to a number of vectors."""
    from rematch_ray.scoring.budget import DEFAULT_LADDER, Budget, Ladder

    if rungs is None:
        if vectors is None:
            return DEFAULT_LADDER
        below = [rung for rung in DEFAULT_LADDER.rungs if rung.r_d <= vectors]
        if below[-1].r_d < vectors:
            below.append(Budget(min(vectors, DEFAULT_LADDER.num_query_vectors), vectors))
        return Ladder(tuple(below))
    ladder = Ladder.parse(rungs)
    if vectors not in (None, ladder.num_document_vectors):
        raise UserError(
            f"--vectors {vectors} and --ladder {' '.join(rungs)} disagree: the ladder stores "
            f"{ladder.num_document_vectors}; give one of them"
        )
    return ladder


def _number(text: str) -> int:
    return 0 if text == "0" else positive_number(text)


def _measure(corpus: Corpus) -> Costs:
    from rematch_ray.index.cost_meter import measure_costs

    print("measuring on this machine ...", file=sys.stderr, flush=True)
    return measure_costs(dim=corpus.dim, ladder=corpus.ladder)


def _as_json(corpus: Corpus, capacity: Capacity, costs: Costs) -> dict[str, Any]:
    parts = [{**asdict(part), "bytes": part.total(corpus.num_documents)} for part in capacity.parts]
    budgets = [
        {**asdict(need), "budget": str(need.budget), "machines": need.machines}
        for need in capacity.budgets
    ]
    return {
        "documents": corpus.num_documents,
        "dim": corpus.dim,
        "fused_dim": corpus.fused_dim,
        "ladder": corpus.ladder.texts(),
        "coarse": corpus.coarse_list,
        "parts": parts,
        "disk_bytes": capacity.disk_bytes,
        "budgets": budgets,
        "costs": asdict(costs),
    }
