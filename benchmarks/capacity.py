"""What the capacity planner predicts, beside what this machine does: bytes and time per budget.

Indexes of random nested vectors are built at 1e4, 1e5 and 1e6 documents (those that fit on the
disk), weighed part by part, searched at every budget one query at a time, and removed. Constants
are taken by the meter of `rematch-ray plan --measure` in the same run, at a size of none of these,
so what is tested is the sum. Medians of CPU times over queries, of a second pass: the
planner's times are of vectors that lie in memory. `--quick` leaves the largest out.

    python benchmarks/capacity.py [--quick] [--sizes 10000 100000] [--dim 128] [--folder DIR]
"""

from __future__ import annotations

import os

# before anything starts its threads
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
from shapes.fitted_vectors import LADDER, NestedShards, Shape, make_queries

from rematch_ray.evaluation.report import plain_table
from rematch_ray.index.build import build_index
from rematch_ray.index.capacity import RESCORED
from rematch_ray.index.cost_meter import measure_costs
from rematch_ray.index.costs import Costs, query_time
from rematch_ray.index.footprint import Corpus, components
from rematch_ray.index.planner import plan_search
from rematch_ray.index.search import SearchIndex
from rematch_ray.scoring.budget import Budget, Ladder

SIZES = (10_000, 100_000, 1_000_000)
NUM_QUERIES = 30
# of the disk, beside the index
SPARE_BYTES = 4 << 30


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see the module's text."""
    options = _parser().parse_args(argv)
    sizes = SIZES[: 2 if options.quick else 3] if options.sizes is None else options.sizes
    faiss.omp_set_num_threads(1)
    ladder = Ladder.parse(LADDER)
    costs = measure_costs(dim=options.dim, ladder=ladder)
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for size in sizes:
            corpus = _corpus(size, options.dim)
            need = sum(part.total(size) for part in components(corpus)) + SPARE_BYTES
            if shutil.disk_usage(folder).free < need:
                print(f"{size} documents left out: they need {need / 2**30:.0f} GiB of disk")
                continue
            measured.append(_measure(Path(folder) / str(size), corpus, costs))
    for path in options.index:
        measured.append(_measure(path, _corpus(len(SearchIndex.open(path)), options.dim), costs))
    _print(measured)
    worst = {
        f"{what}_{way.__name__}": round(way(way(_ratios(one, what)) for one in measured), 3)
        for what in ("bytes", "time")
        for way in (min, max)
    }
    result = {
        "benchmark": "capacity",
        **worst,
        "sizes": [one["documents"] for one in measured],
        "build_s": [one["build_s"] for one in measured],
        "dim": options.dim,
        "machine": f"{os.cpu_count()} cores {platform.machine()}, {costs.measured}",
    }
    print(json.dumps(result))
    return 0


def _corpus(size: int, dim: int) -> Corpus:
    payload = len('document-100000{"name": "document 100000"}')
    return Corpus(size, dim=dim, fused_dim=dim, payload_bytes=payload)


def _measure(folder: Path, corpus: Corpus, costs: Costs) -> dict[str, Any]:
    """Builds one index, weighs and searches it, and removes it; one that stands is left alone."""
    shape = Shape(corpus.num_documents, dim=corpus.dim)
    is_given = (folder / "CURRENT").exists()
    started = time.perf_counter()
    if not is_given:
        build_index(NestedShards.of(shape), folder)
    build_s = time.perf_counter() - started
    index = SearchIndex.open(folder)
    [segment] = folder.glob("segments/*")
    corpus = replace(corpus, coarse=index.info()["coarse"]["first"])
    size = corpus.num_documents
    parts = components(corpus)
    queries = make_queries(shape, NUM_QUERIES, seed=1)
    times = {rung: _times(index, queries, rung) for rung in (Budget.FUSED, *corpus.ladder.rungs)}
    result = {
        "documents": corpus.num_documents,
        "build_s": None if is_given else round(build_s, 1),
        "bytes": {part.name: (part.total(size), _bytes(segment, part.files)) for part in parts}
        | {"whole": (sum(part.total(size) for part in parts), _bytes(segment, ("*",)))},
        "time": {
            str(rung): (_predicted_ms(corpus, rung, costs), taken) for rung, taken in times.items()
        },
    }
    if not is_given:
        shutil.rmtree(folder)
    return result


def _bytes(segment: Path, names: tuple[str, ...]) -> int:
    return sum(file.stat().st_size for name in names for file in segment.glob(name))


def _times(index: SearchIndex, queries: Any, rung: Budget) -> float:
    """Median CPU milliseconds of a second pass: the first one reads and maps what queries touch."""
    taken: list[float] = []
    for _ in range(2):
        taken.clear()
        for number in range(len(queries.vectors)):
            query = queries[number : number + 1]
            started = time.process_time()
            index.search(query, budget=rung, top_k=10)
            taken.append((time.process_time() - started) * 1000)
    return statistics.median(taken)


def _predicted_ms(corpus: Corpus, rung: Budget, costs: Costs) -> float:
    count = corpus.num_documents
    plan = plan_search(rung, corpus.ladder, candidates="auto", num_allowed=count, top_k=10)
    return query_time(
        costs,
        plan,
        num_documents=count,
        dim=corpus.dim,
        fused_dim=corpus.fused_dim,
        coarse=corpus.coarse_list,
        rescored=RESCORED if corpus.originals else 0,
    ).latency


def _ratios(one: dict[str, Any], what: str) -> list[float]:
    pairs = one[what].values() if what == "time" else [one[what]["whole"]]
    return [real / predicted for predicted, real in pairs]


def _print(measured: list[dict[str, Any]]) -> None:
    for what, unit in (("bytes", 2**20), ("time", 1)):
        rows = [["documents", what, "predicted", "measured", "measured over predicted"]]
        for one in measured:
            for name, (predicted, real) in one[what].items():
                cells = [f"{real / unit:.2f}", f"{real / predicted:.2f}"]
                rows.append([f"{one['documents']:,}", name, f"{predicted / unit:.2f}", *cells])
        print(plain_table(rows), "\n")
    print("bytes in MiB, time in milliseconds per query")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="without 1e6 documents")
    parser.add_argument("--device", default="cpu", choices=["cpu"])
    parser.add_argument("--sizes", type=int, nargs="*")
    parser.add_argument(
        "--index",
        type=Path,
        nargs="*",
        default=[],
        help="of `fitted_vectors`, built already (as benchmarks/search.py keeps its own)",
    )
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--folder", type=Path, help="where indexes are built (the system's own)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
