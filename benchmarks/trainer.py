"""A training step beside sentence-transformers 6: pairs per second and peak memory.

Equal work: both train one gradient-cached MaxSim InfoNCE over the vectors of our banks, ours with
`Training`, theirs with our embedder as a module of theirs and their cached loss. Same weights,
rows, rows per forward pass, optimiser and threads; the losses must agree. Rows are decoded and
tokenised before, for both; padding and unpacking of pixels is part of the step on both sides, as
each does it.

Unequal work, each in its own best form: ours the whole joint objective with one hard negative,
theirs its stock model of the same base, one vector per token, on the same samples. Here decoding
and tokenising count on both sides.

Pairs are images of the demo corpus and what is said of them, the base is the shipped one. Arms run
in turn in one process (wall times, medians; a ratio is the median of each repetition's ratio). Peak
memory is that of one step above the idle, loaded trainer, each in a process of its own (CUDA:
allocated by torch; CPU: resident set).

    python benchmarks/trainer.py [--quick] [--device cuda] [--threads 2]
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import sentence_transformers
import torch
import transformers
from meters.own_process import run_apart
from meters.resident import RETURN_AT_ONCE, peak, start_peak
from peers.st_training import (
    BankModule,
    Features,
    bank_features,
    cached_step,
    on_device,
    stock_encoder,
)
from PIL import Image
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.data_collator import MultiVectorEncoderDataCollator

from rematch_ray.data.demo import write_demo
from rematch_ray.data.demo_corpus import DemoSizes
from rematch_ray.data.item import Item
from rematch_ray.data.readers.parquet import read_table
from rematch_ray.data.samples import SampleEncoder
from rematch_ray.data.schema import samples_from_table
from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.evaluation.report import plain_table
from rematch_ray.model.settings import ModelSettings
from rematch_ray.training.chunks import plan_chunks, plan_sides
from rematch_ray.training.settings import ObjectiveSettings, OptimisationSettings
from rematch_ray.training.step import Training

BASE = Path(__file__).parents[1] / "rematch_ray" / "assets" / "tiny-base"
PAIRS, MINI_BATCH = 256, 16
RATE, CLIP = 1e-4, 1.0
EQUAL, BEST = ("ours", "theirs"), ("ours, joint", "theirs, stock")
Step = Callable[[], float]


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see the module's text."""
    options = _parser().parse_args(argv)
    if options.quick:
        options.pairs, options.repetitions = 64, 3
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        if options.measure:
            print(json.dumps({"peak": _peak_bytes(options.measure, Path(folder), options)}))
            return 0
        options.data = options.data or Path(folder) / "data"
        write_demo(options.data, sources=("emoji",), sizes=_sizes(options.pairs))
        seconds, losses = _in_turn(Path(folder), options)
        peaks: dict[str, list[float]] = {name: [] for name in ARMS}
        for _ in range(1 if options.quick else 3):
            for name in ARMS:
                peaks[name].append(_peak_apart(name, options))
    print(plain_table(_table(seconds, peaks, options.pairs)))
    print(f"\nlosses of the first two steps: ours {losses[EQUAL[0]]}, theirs {losses[EQUAL[1]]}")
    result = {
        "benchmark": "trainer",
        "pairs_per_s_over_st": _over(seconds, EQUAL, faster=True),
        "peak_memory_over_st": _over(peaks, EQUAL),
        "best_form_pairs_per_s_over_st": _over(seconds, BEST, faster=True),
        "best_form_peak_memory_over_st": _over(peaks, BEST),
        "pairs": options.pairs,
        "mini_batch": options.mini_batch,
        "threads": options.threads,
        "device": options.device,
        "sentence_transformers": sentence_transformers.__version__,
        "machine": f"{os.cpu_count()} cores {platform.machine()}, torch {torch.__version__}",
    }
    print(json.dumps(result))
    return 0


def _sizes(pairs: int) -> DemoSizes:
    return DemoSizes(emoji_train=2 * pairs, emoji_held_out=1, emoji_negatives=1)


def _in_turn(
    folder: Path, options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds per step and first losses of every arm: A B A B ..., after a turn to warm up."""
    steps = {name: build(folder, options.pairs, options) for name, build in ARMS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(1 + options.repetitions):
        for name, step in steps.items():
            began = time.perf_counter()
            losses[name].append(round(step(), 5))
            if options.device.startswith("cuda"):
                torch.cuda.synchronize()
            if repetition:
                seconds[name].append(time.perf_counter() - began)
    ours, theirs = (losses[name][:2] for name in EQUAL)
    if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(ours, theirs, strict=True)):
        raise RuntimeError(f"the work is not equal: our losses are {ours}, theirs {theirs}")
    return seconds, {name: values[:2] for name, values in losses.items()}


def _samples(options: argparse.Namespace, pairs: int) -> pa.Table:
    """Rows of distinct positives, so that no candidate is masked on one side only."""
    table = read_table(options.data / "emoji" / "train", rows="samples")
    first: dict[str, int] = {}
    for place, sample in enumerate(samples_from_table(table)):
        first.setdefault(_picture(sample.positives[0].item), place)
    if len(first) < pairs:
        raise RuntimeError(f"{len(first)} distinct pictures were drawn, {pairs} are needed")
    return table.take(list(first.values())[:pairs])


def _picture(item: Item) -> bytes:
    assert item.parts[0].image is not None
    return item.parts[0].image


def _training(
    objective: ObjectiveSettings, chunk: int | None, device: str, **model: Any
) -> Training:
    return Training.build(
        ModelSettings(base=str(BASE), **model),
        objective,
        OptimisationSettings(
            learning_rate=RATE, warmup_steps=0, schedule="constant", clip=CLIP,
            chunk_tokens=chunk, probe_every=0,
        ),
        seed=0,
        total_steps=1000,
        device=device,
    )  # fmt: skip


def _equal_training(chunk: int | None, device: str) -> Training:
    return _training(ObjectiveSettings(preset="metaembed"), chunk, device, ladder=("16x64",))


def _encode(
    training: Training, options: argparse.Namespace, table: pa.Table, negatives: int
) -> TrainBatch:
    """Sub-batches of a mini-batch, so that a chunk of ours holds the rows of one of theirs."""
    encode = SampleEncoder(training.joint.embedder.row_encoder, max_negatives=negatives, seed=0)
    size = options.mini_batch
    parts = [table.slice(start, size) for start in range(0, table.num_rows, size)]
    return training.collate(encode(parts, 0), step=0)


def _chunk_tokens(batch: TrainBatch, options: argparse.Namespace) -> int:
    """Tokens of a mini-batch and its documents."""
    query = max(len(row.input_ids) for row in batch.query_rows) + batch.layout.num_query_meta
    document = max(len(row.input_ids) for row in batch.document_rows)
    documents = math.ceil(batch.num_documents / batch.num_queries)
    document += batch.layout.num_document_meta
    tokens = options.mini_batch * (query + documents * document)
    assert len(plan_chunks(batch, tokens)) == math.ceil(batch.num_queries / options.mini_batch)
    return tokens


def _side_tokens(batch: TrainBatch, options: argparse.Namespace) -> int:
    """Tokens of a mini-batch's documents: without matching, our chunks hold one side, as theirs."""
    document = max(len(row.input_ids) for row in batch.document_rows)
    tokens = options.mini_batch * (document + batch.layout.num_document_meta)
    of_documents = [chunk for chunk in plan_sides(batch, tokens) if chunk.documents]
    assert len(of_documents) <= math.ceil(batch.num_documents / options.mini_batch)
    assert all(len(chunk.documents) >= options.mini_batch for chunk in of_documents[:-1])
    return tokens


def _ours(folder: Path, pairs: int, options: argparse.Namespace) -> Step:
    plain = _equal_training(None, "cpu")
    batch = _encode(plain, options, _samples(options, pairs), 0)
    training = _equal_training(_side_tokens(batch, options), options.device)
    return lambda: training.step(batch)["loss"]


def _theirs(folder: Path, pairs: int, options: argparse.Namespace) -> Step:
    training = _equal_training(None, options.device)
    batch = _encode(training, options, _samples(options, pairs), 0)
    assert batch.positive_slot.tolist() == list(range(pairs))

    def columns() -> list[Features]:
        sides = (batch.queries, batch.documents)
        return [on_device(bank_features(side), options.device) for side in sides]

    return cached_step(
        MultiVectorEncoder(modules=[BankModule(training.joint.embedder)], device=options.device),
        training.optimizer,
        columns,
        mini_batch=options.mini_batch,
        scale=1 / training.joint.settings.temperature_maxsim,
        clip=CLIP,
    )


def _ours_joint(folder: Path, pairs: int, options: argparse.Namespace) -> Step:
    table = _samples(options, pairs)
    plain = _training(ObjectiveSettings(), None, "cpu")
    chunk = _chunk_tokens(_encode(plain, options, table, 1), options)
    training = _training(ObjectiveSettings(), chunk, options.device)
    return lambda: training.step(_encode(training, options, table, 1))["loss"]


def _theirs_stock(folder: Path, pairs: int, options: argparse.Namespace) -> Step:
    table = _samples(options, pairs)
    model = stock_encoder(BASE, folder / "stock", options.device)
    collate = MultiVectorEncoderDataCollator(model.preprocess)
    names = ("query", "positive", "negative")

    def columns() -> list[Features]:
        rows = [
            {
                "query": sample.query.parts[0].text,
                "positive": _opened(sample.positives[0].item),
                "negative": _opened(sample.negatives[0].item),
            }
            for sample in samples_from_table(table)
        ]
        found = collate(rows)
        return [on_device(_column(found, name), options.device) for name in names]

    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, foreach=True)
    return cached_step(
        model, optimizer, columns, mini_batch=options.mini_batch, scale=1.0, clip=CLIP
    )


def _opened(item: Item) -> Image.Image:
    return Image.open(io.BytesIO(_picture(item))).convert("RGB")


def _column(batch: Mapping[str, Any], name: str) -> Features:
    prefix = name + "_"
    return {key[len(prefix) :]: value for key, value in batch.items() if key.startswith(prefix)}


ARMS: Mapping[str, Callable[[Path, int, argparse.Namespace], Step]] = {
    EQUAL[0]: _ours,
    EQUAL[1]: _theirs,
    BEST[0]: _ours_joint,
    BEST[1]: _theirs_stock,
}


def _peak_bytes(name: str, folder: Path, options: argparse.Namespace) -> int:
    """Peak of a step above what the loaded trainer holds after a first one."""
    step = ARMS[name](folder, options.pairs, options)
    step()
    gc.collect()
    if options.device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        idle = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - idle
    idle = start_peak()
    step()
    return peak() - idle


def _peak_apart(name: str, options: argparse.Namespace) -> float:
    arguments = ["--measure", name, "--data", str(options.data)]
    for key in ("device", "threads", "pairs", "mini_batch"):
        arguments += [f"--{key.replace('_', '-')}", str(getattr(options, key))]
    found = run_apart(__file__, arguments, what=name, environment=RETURN_AT_ONCE)
    return float(found["peak"])


def _over(
    values: Mapping[str, list[float]], pair: tuple[str, str], *, faster: bool = False
) -> float:
    """Ours over theirs, the median over repetitions; of speeds where `faster`."""
    ours, theirs = (values[name] for name in pair)
    ratios = [b / a if faster else a / b for a, b in zip(ours, theirs, strict=True)]
    return round(statistics.median(ratios), 3)


def _table(
    seconds: Mapping[str, list[float]], peaks: Mapping[str, list[float]], pairs: int
) -> list[list[str]]:
    rows = [["work", "arm", "pairs/s", "peak MiB"]]
    for work, names in (("equal", EQUAL), ("unequal", BEST)):
        for name in names:
            rate = pairs / statistics.median(seconds[name])
            mib = statistics.median(peaks[name]) / 2**20
            rows.append([work, name, f"{rate:.1f}", f"{mib:,.0f}"])
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="64 pairs, fewer repetitions")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs per step")
    parser.add_argument("--mini-batch", type=int, default=MINI_BATCH, help="rows per forward pass")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--measure", choices=[*EQUAL, *BEST], help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
