"""What a large contrastive batch costs with the gradient cache: memory and time per pair.

1,024 pairs in chunks as large as one uncached batch of 32, against those 32 uncached, on one
process, the whole joint objective with one hard negative. Memory is the peak above the idle, loaded
trainer, each in a process of its own (CUDA: allocated by torch; CPU: resident set), and is compared
with the uncached peak plus the bytes that the larger batch has to hold by formula: the vectors of
all rows, their gradients, and the scores of all budgets. Time is that of forward and backward
passes per pair, in turn in one process, CPU time on CPU.

    python benchmarks/gradient_cache.py [--quick] [--device cuda] [--threads 2]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from meters.own_process import run_apart
from meters.resident import RETURN_AT_ONCE, peak, start_peak
from shapes.random_rows import random_batch, write_base

from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.evaluation.report import plain_table
from rematch_ray.model.settings import ModelSettings
from rematch_ray.model.tiny import TinySettings
from rematch_ray.training.chunks import plan_chunks
from rematch_ray.training.gradient_cache import accumulate
from rematch_ray.training.settings import ObjectiveSettings, OptimisationSettings
from rematch_ray.training.step import Training

SMALL, LARGE = 32, 1024
QUERY_TOKENS, DOCUMENT_TOKENS = 24, 64
SIZES = TinySettings(
    hidden_dim=256,
    num_layers=4,
    num_heads=8,
    num_key_value_heads=2,
    mlp_dim=704,
    vision_dim=64,
    vision_layers=1,
)


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see the module's text."""
    options = _parser().parse_args(argv)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(options.base) if options.base else write_base(Path(folder) / "base", SIZES)
        if options.measure:
            print(json.dumps({"peak": _peak_bytes(base, options.measure, options)}))
            return 0
        large = 256 if options.quick else LARGE
        small_peak, large_peak = (_peak_apart(base, n, options) for n in (SMALL, large))
        per_pair = _seconds_per_pair(base, large, options)
        held = _held_bytes(base, large)
    limit = small_peak + held
    ratio = statistics.median(
        b / a for a, b in zip(per_pair["uncached"], per_pair["cached"], strict=True)
    )
    mib = 2**20
    print(
        plain_table(
            [
                ["", "pairs", "peak MiB", "ms/pair"],
                _line("uncached", SMALL, small_peak / mib, per_pair["uncached"]),
                _line("cached", large, large_peak / mib, per_pair["cached"]),
            ]
        )
    )
    print(f"\nheld by formula: {held / mib:.0f} MiB; allowed: 1.15 x {limit / mib:.0f} MiB")
    result = {
        "benchmark": "gradient_cache",
        "memory_32x_over_1x": round(large_peak / limit, 3),
        "time_per_pair_over_uncached": round(ratio, 3),
        "peak_over_peak": round(large_peak / small_peak, 3),
        "pairs": [SMALL, large],
        "threads": options.threads,
        "device": options.device,
        "machine": f"{os.cpu_count()} cores {platform.machine()}, torch {torch.__version__}",
    }
    print(json.dumps(result))
    return 0


def _line(name: str, pairs: int, mib: float, seconds: list[float]) -> list[str]:
    return [name, f"{pairs:,}", f"{mib:,.0f}", f"{1000 * statistics.median(seconds):.1f}"]


def _training(base: Path, device: str) -> Training:
    return Training.build(
        ModelSettings(base=str(base)),
        ObjectiveSettings(),
        OptimisationSettings(probe_every=0),
        seed=0,
        total_steps=1000,
        device=device,
    )


def _batch(training: Training, pairs: int) -> TrainBatch:
    return random_batch(
        training.joint.embedder,
        pairs,
        query_tokens=QUERY_TOKENS,
        document_tokens=DOCUMENT_TOKENS,
    ).to(training.device)


def _chunk_tokens(training: Training) -> int:
    """Tokens of the small batch: a chunk is what fits uncached."""
    layout = _batch(training, 1).layout
    query = QUERY_TOKENS + layout.num_query_meta
    return SMALL * (query + 2 * (DOCUMENT_TOKENS + layout.num_document_meta))


def _work(training: Training, pairs: int) -> Callable[[], Any]:
    """Forward and backward of a batch, cached when it is larger than a chunk."""
    batch = _batch(training, pairs)
    chunk = None if pairs <= SMALL else _chunk_tokens(training)
    if chunk is not None:
        assert len(plan_chunks(batch, chunk)) == pairs // SMALL

    def work() -> None:
        accumulate(
            training.joint,
            training.joint,
            batch,
            backward=lambda loss, last: loss.backward(),
            chunk_tokens=chunk,
        )

    return work


def _peak_bytes(base: Path, pairs: int, options: argparse.Namespace) -> int:
    """Peak of one step above a trainer that is loaded and has its gradients and averages."""
    training = _training(base, options.device)
    training.step(_batch(training, 2))
    work = _work(training, pairs)
    gc.collect()
    if options.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        idle = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - idle
    idle = start_peak()
    work()
    return peak() - idle


def _peak_apart(base: Path, pairs: int, options: argparse.Namespace) -> int:
    arguments = ["--measure", str(pairs), "--base", str(base)]
    arguments += ["--device", options.device, "--threads", str(options.threads)]
    what = f"{pairs} pairs"
    return int(run_apart(__file__, arguments, what=what, environment=RETURN_AT_ONCE)["peak"])


def _seconds_per_pair(
    base: Path, large: int, options: argparse.Namespace
) -> dict[str, list[float]]:
    """The two in turn; the small one until it has seen a quarter of the large one's pairs."""
    training = _training(base, options.device)
    on_cuda = options.device.startswith("cuda")
    clock = time.perf_counter if on_cuda else time.process_time
    arms = {"uncached": (SMALL, max(1, large // SMALL // 4)), "cached": (large, 1)}
    works = {name: _work(training, pairs) for name, (pairs, _) in arms.items()}
    works["uncached"]()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(1 if options.quick else options.repetitions):
        for name, (pairs, times) in arms.items():
            training.optimizer.zero_grad(set_to_none=False)
            began = clock()
            for _ in range(times):
                works[name]()
            if on_cuda:
                torch.cuda.synchronize()
            seconds[name].append((clock() - began) / (pairs * times))
    return seconds


def _held_bytes(base: Path, pairs: int) -> int:
    """Vectors of all rows, their gradients, and scores of all budgets, in float32."""
    embedder = _training(base, "cpu").joint.embedder
    fused = embedder.fused_dim or 0
    query = embedder.num_vectors("query") * embedder.embedding_dim + fused
    document = embedder.num_vectors("document") * embedder.embedding_dim + fused
    states = pairs * (query + 2 * document)
    scores = (len(embedder.ladder.rungs) + 1) * pairs * (pairs + 1)
    return 4 * (2 * states + scores)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="256 pairs, once")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--base", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
