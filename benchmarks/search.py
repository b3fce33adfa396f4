"""Search at recall and at quality: ours beside exact scans, plain FAISS and other systems.

One run, the same vectors, one query at a time and one thread (FAISS, BLAS and engines). Vectors
(a): `tiny-full`'s over 1e5 distinct pages, scenes and emoji; (b) synthetic ones at 1e6 whose
recall@C is fitted to (a). Two tables: queries/s at recall@10 against exact MaxSim of all vectors,
and Hit@1 and nDCG@10 against the right answers; bytes per document and build seconds as well.

    python benchmarks/search.py --folder DIR [--quick] [--peers qdrant lancedb ...] [--nested N]
"""

from __future__ import annotations

import os

# before anything starts its threads
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["LANCE_CPU_THREADS"] = "1"

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from arms.searching import (
    OwnCascade,
    OwnExact,
    OwnNarrowed,
    PlainFaiss,
    Point,
    SearchArm,
    Timed,
    fresh,
    in_turns,
    measure,
)
from meters.resident import OwnMemory, own_memory
from shapes.fitted_vectors import BLOCK, Shape
from shapes.fitting import CUTS, Fitted, fit
from shapes.pages_and_scenes import write_pages_and_scenes
from shapes.search_task import SearchTask, key_recalls, nested, pages_and_scenes

from rematch_ray.evaluation.report import plain_table
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.trials import NARROWING_FACTORS

PEERS = {
    "qdrant": ("peers.qdrant_search", "QdrantArm"),
    "lancedb": ("peers.lancedb_search", "LanceArm"),
    "muvera": ("peers.muvera_search", "MuveraArm"),
    "pylate": ("peers.pylate_search", "PylateArm"),
    "fast-plaid": ("peers.fast_plaid_search", "FastPlaidArm"),
}
RECALLS = (0.95, 0.99)
# cascades of which the fastest is found in turns, and the rounds of it
LIKELY, LIKELY_ROUNDS = 4, 5
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
EXACT, FIRST = OwnExact(), OwnExact("1x1")


@dataclass(frozen=True)
class Built:
    """An arm that is ready, and what it took."""

    arm: SearchArm
    seconds: float
    bytes_per_document: float


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see the module's text."""
    options = _parser().parse_args(argv)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    rows = min(options.rows, 5000) if options.quick else options.rows
    folder = options.folder / f"pages-and-scenes-{rows}"
    task = pages_and_scenes(write_pages_and_scenes(folder, rows), most=options.queries)
    result: dict[str, Any] = {"benchmark": "search"}
    built, points = _run(task, options, result)
    clock = CLOCKS[options.clock]
    cascade = _best_cascade(built, points, task, clock)
    result |= _ratios(built, points, task, cascade, clock)
    if options.nested and not options.quick:
        known = pages_and_scenes(folder, part="validation", most=options.queries)
        shape = _fitted(known, options).shape
        larger = nested(shape, options.folder / "nested", most=options.queries)
        fewer = replace(shape, num_documents=-(-rows // BLOCK) * BLOCK)
        few = nested(fewer, options.folder / "nested", most=options.queries)
        smaller = {"1e5": cascade, "1e5 of (b)": _best_own(few, clock)}

        def compare(grown: Sequence[Built], more: Sequence[Point]) -> None:
            steps = smaller | {"1e6": _best_cascade(grown, more, larger, clock)}
            result.update(_growth(steps, clock))

        _run(larger, options, {}, own_measured=compare)
    result["machine"] = f"{os.cpu_count()} cores {platform.machine()}, one thread"
    print(json.dumps(result))
    return 0


def _run(
    task: SearchTask,
    options: argparse.Namespace,
    result: dict[str, Any],
    *,
    own_measured: Callable[[Sequence[Built], Sequence[Point]], None] | None = None,
) -> tuple[list[Built], list[Point]]:
    """Builds, measures and prints all arms on one task.

    Args:
        task: documents and queries.
        options: of the command.
        result: what is measured is added to it.
        own_measured: called once our own arms are, before the others' documents lie in memory.
    """
    print(f"\n{task.name}: {task.documents.num_rows} documents, {len(task.queries)} queries")
    exact = task.exact()
    recalls = key_recalls(task, CUTS)
    table = [["recall@C of the 10 best", *map(str, CUTS)]]
    print(
        plain_table(table + [[k, *(f"{v:.3f}" for v in values)] for k, values in recalls.items()])
    )
    result["key_recalls"] = recalls
    clock = CLOCKS[options.clock]
    with own_memory() as before:
        built = _build_own(task)
    points = measure([one.arm for one in built], task.queries, exact, clock)
    # ours are measured before the others' documents lie in this process's memory
    print("\n" + plain_table(_memory_lines(built, points, before)))
    if own_measured is not None:
        own_measured(built, points)
    others, refused = _build_others(task, options)
    points += measure([one.arm for one in others], task.queries, exact, clock)
    built += others
    print("\nat recall@10 against exact MaxSim of all vectors")
    print(plain_table(_recall_lines(built, points)))
    print("\nagainst the right answers")
    print(plain_table(_quality_lines(task, points)))
    for name, reason in refused.items():
        print(f"{name} did not run: {reason}")
    result["refused"] = refused
    return built, points


def _build_own(task: SearchTask) -> list[Built]:
    folder = task.folder / f"index-{task.name}"
    exact = _built(EXACT, task, folder)
    # an index of 1e6 documents has lists of the fused and the first vector only
    there = SearchIndex.open(folder).coarse_choices
    choices = [None, *(key for key in ("first", "prefix", "fused+prefix") if key in there)]
    narrowed = map(OwnNarrowed, NARROWING_FACTORS)
    arms = (*map(OwnCascade, choices), *narrowed, FIRST)
    return [exact, *(_built(arm, task, folder) for arm in arms)]


def _build_others(
    task: SearchTask, options: argparse.Namespace
) -> tuple[list[Built], dict[str, str]]:
    built, refused = [], {}
    for key in ("fused", "first"):
        built.append(_built(PlainFaiss(key), task, fresh(options.folder / "plain-faiss")))
    for name in options.peers:
        module, kind = PEERS[name]
        try:
            arm = getattr(import_module(module), kind)()
        except ImportError as missing:
            refused[name] = str(missing)
            continue
        built.append(_built(arm, task, fresh(options.folder / f"peer-{name}")))
    return built, refused


def _built(arm: SearchArm, task: SearchTask, folder: Path) -> Built:
    started = time.perf_counter()
    arm.build(task.documents, folder)
    seconds = time.perf_counter() - started
    print(f"{arm.name}: ready after {seconds:.1f} s", file=sys.stderr)
    size = arm.held_bytes
    size += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    taken = seconds if arm.making is None else arm.making.seconds
    return Built(arm, taken, size / task.documents.num_rows)


def _recall_lines(built: Sequence[Built], points: Sequence[Point]) -> list[list[str]]:
    lines = [["arm", *(f"queries/s at {r}" for r in RECALLS), "best recall", "build s", "B/doc"]]
    for one in built:
        own = [point for point in points if point.arm == one.arm.name]
        cells = []
        for recall in RECALLS:
            ms = [point.ms for point in own if point.recall >= recall]
            cells.append(f"{1000 / min(ms):.1f}" if ms else "-")
        best = max(point.recall for point in own)
        size = f"{one.bytes_per_document:,.0f}"
        lines.append([one.arm.name, *cells, f"{best:.3f}", f"{one.seconds:.1f}", size])
    return lines


def _memory_lines(
    built: Sequence[Built], points: Sequence[Point], before: OwnMemory
) -> list[list[str]]:
    """Memory that is no page of a file, libraries included: ours is what is mapped beside it."""
    lines = [["the process's own memory at most, MiB", ""]]
    making = built[0].arm.making
    if making is not None:
        lines.append([f"building the index, {making.seconds:.0f} s", _mib(making.peak_bytes)])
    lines.append(["opening it", _mib(before.peak_bytes)])
    for one in built:
        peak = max(point.peak_bytes for point in points if point.arm == one.arm.name)
        lines.append([f"searching: {one.arm.name}", _mib(peak)])
    return lines


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f}"


def _quality_lines(task: SearchTask, points: Sequence[Point]) -> list[list[str]]:
    lines = [["arm", "width", "queries/s", "recall@10", "Hit@1", "nDCG@10"]]
    for point in points:
        pairs = list(zip(point.found, task.relevant, strict=True))
        hit = np.mean([bool(own) and own[0] in right for own, right in pairs])
        gain = np.mean([_ndcg(own, right) for own, right in pairs])
        rate = f"{1000 / point.ms:.1f}"
        quality = [f"{value:.3f}" for value in (point.recall, hit, gain)]
        lines.append([point.arm, str(point.width or "-"), rate, *quality])
    return lines


def _ndcg(found: Sequence[str], relevant: Any, k: int = 10) -> float:
    gains = [relevant.get(name, 0.0) / np.log2(2 + rank) for rank, name in enumerate(found[:k])]
    ideal = sorted(relevant.values(), reverse=True)[:k]
    return sum(gains) / sum(grade / np.log2(2 + rank) for rank, grade in enumerate(ideal))


def _ratios(
    built: Sequence[Built],
    points: Sequence[Point],
    task: SearchTask,
    cascade: Timed | None,
    clock: Callable[[], float],
) -> dict[str, float | None]:
    """What takes how many times as long as what, in turns; None where no arm has the recall."""
    arms = {one.arm.name: one.arm for one in built}
    steps = {
        "exact": Timed(EXACT, 0, task.queries),
        "first": Timed(FIRST, 0, task.queries),
        "faiss first": Timed(arms["FAISS flat on the first vector"], 0, task.queries),
    }
    others = [p for p in points if p.recall >= RECALLS[-1] and not _is_own(p) and p.width]
    if cascade is not None:
        steps["cascade"] = cascade
    if others:
        best = min(others, key=lambda point: point.ms)
        steps["peer"] = Timed(arms[best.arm], best.width, task.queries)
    taken = _taken(steps, clock)

    def ratio(above: str, below: str) -> float | None:
        if above not in taken or below not in taken:
            return None
        return statistics.median(a / b for a, b in zip(taken[above], taken[below], strict=True))

    return {
        "cascade_over_exact_1e5": ratio("exact", "cascade"),
        "qps_over_best_peer_r99": ratio("peer", "cascade"),
        "time_1x1_over_faiss": ratio("first", "faiss first"),
    }


def _growth(
    steps: Mapping[str, Timed | None], clock: Callable[[], float]
) -> dict[str, float | None]:
    """How many times as long a million take as (a), and as fewer of (b), which are as wide.

    None where a cascade misses the recall.
    """
    taken = _taken({name: timed for name, timed in steps.items() if timed is not None}, clock)

    def over(name: str) -> float | None:
        if name not in taken or "1e6" not in taken:
            return None
        return statistics.median(b / a for a, b in zip(taken[name], taken["1e6"], strict=True))

    return {"time_1e6_over_1e5": over("1e5"), "time_1e6_over_1e5_same_shape": over("1e5 of (b)")}


def _best_own(task: SearchTask, clock: Callable[[], float]) -> Timed | None:
    """Our fastest cascade of recall 0.99 on one more task."""
    built = _build_own(task)
    points = measure([one.arm for one in built], task.queries, task.exact(), clock)
    return _best_cascade(built, points, task, clock)


def _taken(steps: Mapping[str, Timed], clock: Callable[[], float]) -> dict[str, list[float]]:
    """Times some arms in turns and prints them."""
    taken = in_turns(steps, clock)
    print("\nin turns, medians of all queries, ms")
    for name, timed in steps.items():
        times = " ".join(f"{ms:.2f}" for ms in taken[name])
        print(f"{name}: {timed.arm.name}, {timed.width or '-'}: {times}", flush=True)
    return taken


def _best_cascade(
    built: Sequence[Built], points: Sequence[Point], task: SearchTask, clock: Callable[[], float]
) -> Timed | None:
    """Our fastest cascade of recall 0.99; None where none has it.

    Those that look fastest are timed once more, in turns: a table takes longer than the machine
    keeps its speed.
    """
    arms = {one.arm.name: one.arm for one in built}
    reached = [p for p in points if _is_cascade(p) and p.recall >= RECALLS[-1]]
    likely = sorted(reached, key=lambda point: point.ms)[:LIKELY]
    if not likely:
        return None
    steps = {
        f"{point.arm}, {point.width}": Timed(arms[point.arm], point.width, task.queries)
        for point in likely
    }
    taken = in_turns(steps, clock, LIKELY_ROUNDS)
    return steps[min(taken, key=lambda name: statistics.median(taken[name]))]


def _is_cascade(point: Point) -> bool:
    return _is_own(point) and " then full" in point.arm


def _is_own(point: Point) -> bool:
    return point.arm.startswith("ours")


def _fitted(task: SearchTask, options: argparse.Namespace) -> Fitted:
    """The shape of (b), fitted once: that takes minutes at 1e6."""
    kept = options.folder / f"nested-{options.nested}-fitted.json"
    if kept.exists():
        fitted = Fitted.from_json(json.loads(kept.read_text()))
    else:
        fitted = fit(Shape(options.nested), key_recalls(task, CUTS))
        kept.write_text(json.dumps(asdict(fitted)))
    print(f"\n(b) is fitted to {task.name}: {fitted.shape}")
    print(plain_table(fitted.lines()))
    return fitted


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5,000 documents, without (b)")
    parser.add_argument("--device", default="cpu", choices=["cpu"])
    parser.add_argument("--folder", type=Path, default=Path("search-vectors"))
    parser.add_argument("--rows", type=int, default=100_000, help="documents of (a)")
    parser.add_argument("--nested", type=int, default=1_000_000, help="documents of (b); 0: none")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="cpu where other work runs too"
    )
    # PyLate's graph over 6.4 million vectors takes hours to build: only by name
    usual = [name for name in PEERS if name != "pylate"]
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=usual)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
