"""A training step at the sizes of Qwen2.5-VL-3B on one GPU: speed, MFU and peak memory.

Random weights in bfloat16, LoRA of rank 16, layers recomputed, without Ray: InfoNCE on the fused
vector, the joint objective with `packed` and with `shared_kv`, in turn on the same rows (a picture
of 256 visual tokens and a text per document, one hard negative); then the joint objective with the
gradient cache on a large batch. `--sizes small` runs the same program on a machine without a GPU.

    python benchmarks/large_step.py --device cuda [--pairs 8] [--large 1024] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from shapes.qwen_3b import QWEN_3B, SMALL, Sizes, picture_batch, write_base
from transformers import AutoConfig

from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.evaluation.report import markdown_table, plain_table
from rematch_ray.model.settings import LoraSettings, ModelSettings
from rematch_ray.training.measures import WorkCounter, device_peak, throughput
from rematch_ray.training.settings import ObjectiveSettings, OptimisationSettings
from rematch_ray.training.step import Training

TEXT_WORDS = 240
ARMS: dict[str, dict[str, Any]] = {
    "InfoNCE(fused)": {"w_groups": 0.0, "w_orth": 0.0, "w_match": 0.0},
    "joint, packed": {"match_form": "packed"},
    "joint, shared_kv": {"match_form": "shared_kv"},
}
YARDSTICK, OURS = "InfoNCE(fused)", "joint, shared_kv"


@dataclass(frozen=True)
class Measured:
    """Seconds of each step and the most memory that one took."""

    pairs: int
    seconds: list[float]
    peak_bytes: int
    mfu: float | None


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see the module's text."""
    options = _parser().parse_args(argv)
    if options.quick:
        options.sizes, options.pairs, options.large, options.repetitions = "small", 2, 8, 1
    options.sizes = options.sizes or ("3b" if options.device.startswith("cuda") else "small")
    sizes = QWEN_3B if options.sizes == "3b" else SMALL
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        base = write_base(Path(folder) / "base", sizes, device=options.device)
        found = {
            name: _measure(base, sizes, objective, options.pairs, None, options)
            for name, objective in ARMS.items()
        }
        if options.large:
            name = f"{OURS}, gradient cache"
            found[name] = _measure(base, sizes, ARMS[OURS], options.large, options.pairs, options)
    table = _table(found)
    print(plain_table(table))
    result = _result(found, options)
    if options.out is not None:
        (options.out / "large_step.md").write_text(_markdown(table, result, options))
    print(json.dumps(result))
    return 0


def _training(base: Path, objective: dict[str, Any], chunk: int | None, device: str) -> Training:
    return Training.build(
        ModelSettings(
            base=str(base),
            dtype="bfloat16",
            lora=LoraSettings(rank=16),
            gradient_checkpointing=True,
        ),
        ObjectiveSettings(**objective),
        OptimisationSettings(probe_every=0, chunk_tokens=chunk),
        seed=0,
        total_steps=1000,
        device=device,
    )


def _measure(
    base: Path,
    sizes: Sizes,
    objective: dict[str, Any],
    pairs: int,
    chunk_pairs: int | None,
    options: argparse.Namespace,
) -> Measured:
    """Times steps of one arm; the model is gone from the device when it returns."""
    chunk = None
    if chunk_pairs is not None:
        plain = _training(base, objective, None, options.device)
        chunk = _padded_tokens(picture_batch(plain, chunk_pairs, sizes, texts=TEXT_WORDS))
        del plain
    training = _training(base, objective, chunk, options.device)
    batch = picture_batch(training, pairs, sizes, texts=TEXT_WORDS)
    on_cuda = options.device.startswith("cuda")
    seconds = []
    for repetition in range(options.repetitions + 1):
        if on_cuda and repetition == 1:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        training.step(batch)
        if on_cuda:
            torch.cuda.synchronize()
        if repetition:
            seconds.append(time.perf_counter() - began)
    work = WorkCounter(AutoConfig.from_pretrained(base), training.joint.embedder.settings)
    peak = device_peak(training.device, "bfloat16")
    speed = throughput(work.count(batch), seconds=statistics.median(seconds), waited=0.0, peak=peak)
    memory = torch.cuda.max_memory_allocated() if on_cuda else 0
    del training, batch
    if on_cuda:
        torch.cuda.empty_cache()
    return Measured(pairs, seconds, memory, speed["mfu"])


def _padded_tokens(batch: TrainBatch) -> int:
    """Tokens of a batch, padding and meta tokens included: what one chunk may hold."""
    layout = batch.layout
    query = max(len(row.input_ids) for row in batch.query_rows) + layout.num_query_meta
    document = max(len(row.input_ids) for row in batch.document_rows) + layout.num_document_meta
    return batch.num_queries * query + batch.num_documents * document


def _table(found: dict[str, Measured]) -> list[list[str]]:
    rows = [["arm", "pairs", "s/step", "pairs/s", "over InfoNCE", "MFU", "peak GiB"]]
    yardstick = _per_pair(found[YARDSTICK])
    for name, one in found.items():
        mfu = "" if one.mfu is None else f"{one.mfu:.1%}"
        each = _per_pair(one)
        rows.append(
            [
                name, str(one.pairs), f"{statistics.median(one.seconds):.3f}", f"{1 / each:.1f}",
                f"{each / yardstick:.3f}", mfu, f"{one.peak_bytes / 2**30:.1f}",
            ]
        )  # fmt: skip
    return rows


def _per_pair(one: Measured) -> float:
    return statistics.median(one.seconds) / one.pairs


def _result(found: dict[str, Measured], options: argparse.Namespace) -> dict[str, Any]:
    on_cuda = options.device.startswith("cuda")
    return {
        "benchmark": "large_step",
        "sizes": options.sizes,
        "time_joint_over_infonce": round(_per_pair(found[OURS]) / _per_pair(found[YARDSTICK]), 3),
        "pairs_per_s": {name: round(1 / _per_pair(one), 2) for name, one in found.items()},
        "mfu": {name: one.mfu and round(one.mfu, 4) for name, one in found.items()},
        "peak_bytes": {name: one.peak_bytes for name, one in found.items()},
        "device": torch.cuda.get_device_name() if on_cuda else options.device,
        "machine": f"{os.cpu_count()} cores {platform.machine()}, torch {torch.__version__}",
    }


def _markdown(table: list[list[str]], result: dict[str, Any], options: argparse.Namespace) -> str:
    command = f"python benchmarks/large_step.py --device {options.device} --pairs {options.pairs}"
    return (
        "# large_step: the step at the sizes of Qwen2.5-VL-3B\n\n"
        f"{date.today()}, {result['device']}, {result['machine']}: `{command} --large "
        f"{options.large} --sizes {options.sizes}`, medians of {options.repetitions} steps.\n\n"
        "Random weights in bfloat16, LoRA of rank 16, layers recomputed. MFU counts what the "
        "mathematics asks for, nothing that is computed again, nor the matching stage.\n\n"
        f"{markdown_table(table)}\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, one repetition")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", choices=["3b", "small"], help="3b on a GPU, small without one")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of an uncached step")
    parser.add_argument("--large", type=int, default=1024, help="pairs of the cached one; 0 = none")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="where the base's 7.5 GB go")
    parser.add_argument("--out", type=Path, help="folder for large_step.md")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
