"""An index of several shards built on a Ray cluster with one worker and with two.

The same embeddings (random vectors, 64 of 128 entries and one fused of 512 per document, stored as
the embedding job stores them) become an index in one process, and sets of shards on a cluster of
one CPU and of two, each worker with one thread; arms in turn, medians. What starting Ray and its
workers costs is left out: each arm builds a small set first. Embedding files are copied in the
order of shards first.

    python benchmarks/build_index.py [--quick] [--documents 40000] [--rounds 3] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch

from meters.own_process import run_apart
from shapes.stored_vectors import write_stored_vectors

from rematch_ray.evaluation.report import markdown_table, plain_table

SHARDS = (2, 4, 8)
WARM_ROWS = 64


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    if options.arm:
        print(json.dumps(_build(*options.arm)))
        return 0
    documents = 8192 if options.quick else options.documents
    rounds = 1 if options.quick else options.rounds
    with tempfile.TemporaryDirectory(prefix="build-index-") as name:
        folder = Path(name)
        write_stored_vectors(folder / "warm", WARM_ROWS)
        write_stored_vectors(folder / "embeddings", documents)
        arms = [(0, 0), *((workers, shards) for shards in SHARDS for workers in (1, 2))]
        seconds: dict[tuple[int, int], list[float]] = {arm: [] for arm in arms}
        for _ in range(rounds):
            for arm in arms:
                seconds[arm].append(_apart(folder, *arm))
                print(f"{arm}: {seconds[arm][-1]:.1f} s", file=sys.stderr, flush=True)
    medians = {arm: statistics.median(took) for arm, took in seconds.items()}
    table = _table(medians, documents)
    print(plain_table(table))
    if options.markdown:
        options.markdown.write_text(_markdown(table, documents, rounds))
    print(json.dumps({f"time_1_over_2_workers_{n}": medians[1, n] / medians[2, n] for n in SHARDS}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--documents", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--device", choices=["cpu"], default="cpu", help="it uses no other")
    parser.add_argument("--arm", nargs=3, help=argparse.SUPPRESS)
    return parser


def _apart(folder: Path, workers: int, shards: int) -> float:
    arguments = ["--arm", str(folder), str(workers), str(shards)]
    found: float = run_apart(__file__, arguments, what=f"{shards} shards, {workers} workers")
    return found


def _build(folder: str, workers: str, shards: str) -> float:
    """Build in this process, or on a cluster that this process starts; returns the seconds."""
    from rematch_ray.workloads.build_index import build_index

    root, number = Path(folder), int(shards) or None
    with tempfile.TemporaryDirectory(dir=root, prefix="out-") as out:
        if number is None:
            return _seconds(build_index, embeddings=root / "embeddings", out=Path(out) / "one")
        import ray

        ray.init("local", num_cpus=int(workers), log_to_driver=False, logging_level="ERROR")
        build_index(embeddings=root / "warm", out=Path(out) / "warm", shards=int(workers))
        return _seconds(
            build_index, embeddings=root / "embeddings", out=Path(out) / "set", shards=number
        )


def _seconds(build: Any, **arguments: Any) -> float:
    started = time.perf_counter()
    build(**arguments)
    return time.perf_counter() - started


def _table(medians: dict[tuple[int, int], float], documents: int) -> list[list[str]]:
    rows = [["shards", "workers", "seconds", "us per document", "1 over 2 workers"]]
    for (workers, shards), took in medians.items():
        ratio = f"{medians[1, shards] / took:.2f}" if workers == 2 else ""
        where = str(workers or "this process")
        each = f"{took / documents * 1e6:.0f}"
        rows.append([str(shards or "not split"), where, f"{took:.1f}", each, ratio])
    return rows


def _markdown(table: list[list[str]], documents: int, rounds: int) -> str:
    machine = f"{os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}"
    command = f"python benchmarks/build_index.py --documents {documents} --rounds {rounds}"
    head = f"# build_index\n\n{date.today()}, {machine}: `{command}`"
    return f"{head}\n\n{markdown_table(table)}\n"


if __name__ == "__main__":
    raise SystemExit(main())
