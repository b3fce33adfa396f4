"""What a second round of training gains from negatives that the first round's model mined.

A first model is trained; `rematch-ray mine` searches its own documents for hard negatives; then the
second round goes on from the same weights with the mined rows (with and without the limit on the
score), beside one of equal length with the rows as they were. On rows without negatives (`bare`:
can mining stand in for labels?) and with those of the corpus (`labelled`: does it add to them?).
Differences are paired over the test queries of all seeds. Published whichever arm wins.

    python benchmarks/mining_round.py [--quick] [--processes 2] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from rematch_ray.config import MineSettings
from rematch_ray.data.demo import write_demo
from rematch_ray.data.order import OrderSettings, Plan, SourceRows
from rematch_ray.data.readers.parquet import read_table
from rematch_ray.data.samples import SampleEncoder
from rematch_ray.data.schema import (
    items_from_table,
    samples_from_table,
    samples_to_table,
    write_parquet,
)
from rematch_ray.evaluation.bootstrap import paired_bootstrap
from rematch_ray.evaluation.report import markdown_table, plain_table
from rematch_ray.evaluation.tasks import RetrievalTask, measure_queries
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.settings import ModelSettings
from rematch_ray.training.settings import ObjectiveSettings, OptimisationSettings
from rematch_ray.training.step import Training
from rematch_ray.workloads.mine import mine
from rematch_ray.workloads.runtime import connect

BASE = Path(__file__).parents[1] / "rematch_ray" / "assets" / "tiny-base"
LADDER = ("1x1", "2x4", "4x8")
RUNGS = ("fused", LADDER[-1])
PARTS = {"scenes": "test", "emoji": "composed-test"}
METRICS = ("recall@1", "recall@10", "family_accuracy", "swap")
ROWS = ("bare", "labelled")
# the share of the positive's score above which a candidate is dropped
LIMITS: Mapping[str, float | None] = {"mined": 0.95, "mined, no limit": None}
AGAIN = "again"


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see the module's text."""
    options = _parser().parse_args(argv)
    if options.quick:
        options.steps, options.seeds, options.batch, options.corpora = 8, 1, 8, ["scenes"]
    started = time.time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_demo(folder / "data", sources=options.corpora, quick=options.quick)
        starts = [
            _job(folder, options, corpus=corpus, rows=rows, seed=seed, arm="first")
            for corpus in options.corpora
            for rows in ROWS
            for seed in range(options.seeds)
        ]
        for job in starts:
            _write_rows(job)
        context = multiprocessing.get_context("spawn")
        with context.Pool(options.processes, initializer=_one_thread) as pool:
            first = pool.map(_fit, starts, chunksize=1)
            with connect([]):
                seconds = [job | _mine(job, limit) for job in starts for limit in LIMITS]
            again = [job | {"arm": AGAIN} for job in starts]
            second = pool.map(_fit, [*again, *seconds], chunksize=1)
            pool.close()  # and wait: a terminated worker leaves its semaphores behind
            pool.join()
    report = _report([*first, *second], options, time.time() - started)
    print(plain_table(report["table"]), file=sys.stderr)
    if not options.quick:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "mining_round.md").write_text(_markdown(report))
    print(json.dumps({key: value for key, value in report.items() if key != "table"}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps, one seed: does it run?")
    parser.add_argument("--steps", type=int, default=100, help="steps of each round")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate of both rounds")
    parser.add_argument("--batch", type=int, default=32, help="pairs per step")
    parser.add_argument("--corpora", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--base", type=Path, default=BASE, help="folder of the base model")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser


def _job(
    folder: Path, options: argparse.Namespace, *, corpus: str, rows: str, seed: int, arm: str
) -> dict[str, Any]:
    return {
        "corpus": corpus,
        "rows": rows,
        "seed": seed,
        "arm": arm,
        "data": folder / "data" / corpus,
        "train": folder / f"{corpus}-{rows}",
        "export": folder / f"first-{corpus}-{rows}-{seed}",
        "steps": options.steps,
        "rate": options.rate,
        "batch": options.batch,
        "base": str(options.base),
    }


def _write_rows(job: Mapping[str, Any]) -> None:
    """Writes the training rows, with the negatives of the corpus or without."""
    if job["train"].exists():
        return
    samples = samples_from_table(read_table(job["data"] / "train", rows="samples"))
    if job["rows"] == "bare":
        samples = [replace(sample, negatives=()) for sample in samples]
    write_parquet(samples_to_table(samples), job["train"] / "rows.parquet")


def _mine(job: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """Mines for one first model; what changes in its job for the second round."""
    out = job["export"].with_name(f"{job['export'].name}-{arm.replace(', ', '-')}")
    settings = MineSettings(budget=LADDER[-1], max_share=LIMITS[arm], seed=job["seed"])
    result = mine(model=job["export"], data=job["train"], out=out, settings=settings)
    kept = {key: result[key] for key in ("rows", "rows_without", "mined", "dropped")}
    return {"arm": arm, "train": out, "mining": kept}


def _one_thread() -> None:
    torch.set_num_threads(1)


def _fit(job: dict[str, Any]) -> dict[str, Any]:
    """Trains one round and measures it; CPU-seconds are of the optimisation steps alone."""
    is_first = job["arm"] == "first"
    training = _build(job)
    if not is_first:
        start = Embedder.from_pretrained(job["export"], device="cpu")
        training.joint.embedder.load_state_dict(start.state_dict())
    table = read_table(job["train"], rows="samples")
    order = OrderSettings(global_batch=job["batch"], sub_batch=job["batch"])
    # another order in the second round, the same in all its arms
    seed = 2 * job["seed"] + (not is_first)
    plan = Plan((SourceRows(job["corpus"], (table.num_rows,)),), seed, order)
    encode = SampleEncoder(training.joint.embedder.row_encoder, max_negatives=2, seed=seed)
    spent = 0.0
    for step in plan.steps(0, job["steps"]):
        rows = encode([table.take(step.sub_batches[0].rows)], step.index)
        batch = training.collate(rows, step=step.index)
        began = time.process_time()
        training.step(batch)
        spent += time.process_time() - began
    if is_first:
        training.joint.embedder.eval().save_pretrained(job["export"])
    kept = {key: job[key] for key in ("corpus", "rows", "seed", "arm", "steps")}
    measured = _measure(training, job["data"], PARTS[job["corpus"]])
    return {**kept, "mining": job.get("mining"), "cpu": spent, "measured": measured}


def _build(job: Mapping[str, Any]) -> Training:
    return Training.build(
        ModelSettings(base=job["base"], embedding_dim=64, fused_dim=128, ladder=LADDER, fuse_k=4),
        ObjectiveSettings(preset="joint", hard_negatives="pooled"),
        OptimisationSettings(
            learning_rate=job["rate"],
            new_learning_rate=2 * job["rate"],
            betas=(0.9, 0.98),
            warmup_steps=max(1, job["steps"] // 10),
        ),
        seed=job["seed"],
        total_steps=job["steps"],
    )


def _measure(training: Training, folder: Path, part: str) -> dict[str, dict[str, np.ndarray]]:
    """Rung -> metric -> value per query, over the whole held-out gallery."""
    model = training.joint.embedder.eval()
    documents = items_from_table(read_table(folder / "corpus", rows="items"))
    queries = items_from_table(read_table(folder / f"queries-{part}.parquet", rows="items"))
    swaps = folder / f"swaps-{part}.parquet"
    task = RetrievalTask.from_tables(
        part,
        [query.id for query in queries],
        [document.id for document in documents],
        pq.read_table(folder / f"qrels-{part}.parquet"),
        families=pq.read_table(folder / "families.parquet"),
        swaps=pq.read_table(swaps) if swaps.exists() else None,
    )
    query, document = model.encode_query(queries), model.encode_document(documents)
    found = {
        rung: measure_queries(task, model.similarity(query, document, rung).numpy())
        for rung in RUNGS
    }
    return {
        rung: {name: values[name] for name in METRICS if name in values}
        for rung, values in found.items()
    }


def _report(
    runs: Sequence[Mapping[str, Any]], options: argparse.Namespace, seconds: float
) -> dict[str, Any]:
    table = [["corpus", "rows", "round", "vector", "CPU s", *METRICS]]
    differences, mining = {}, {}
    for corpus in options.corpora:
        for rows in ROWS:
            arms = {
                arm: [r for r in runs if (r["corpus"], r["rows"], r["arm"]) == (corpus, rows, arm)]
                for arm in ("first", AGAIN, *LIMITS)
            }
            table += [line for arm, own in arms.items() for line in _lines(corpus, rows, arm, own)]
            for arm in LIMITS:
                name = f"{corpus}, {rows}: {arm} - {AGAIN}"
                differences[name] = _differences(arms[arm], arms[AGAIN])
                mining[f"{corpus}, {rows}: {arm}"] = [run["mining"] for run in arms[arm]]
    return {
        "table": table,
        "differences": differences,
        "mining": mining,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}",
        "command": "python benchmarks/mining_round.py " + " ".join(sys.argv[1:]),
        "seconds": round(seconds),
    }


def _lines(corpus: str, rows: str, arm: str, own: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    lines = []
    for rung in RUNGS:
        means = [
            f"{np.nanmean([run['measured'][rung][metric] for run in own]):.3f}"
            if metric in own[0]["measured"][rung]
            else "-"
            for metric in METRICS
        ]
        cpu = f"{np.mean([run['cpu'] for run in own]):.0f}"
        lines.append([corpus, rows, arm, rung, cpu, *means])
    return lines


def _differences(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Each metric at each rung, paired over the test queries.

    Each query's number is the mean over seeds first: seeds are not independent queries.
    """
    result = {}
    for rung in RUNGS:
        for metric in ours[0]["measured"][rung]:
            one, other = (
                np.mean([run["measured"][rung][metric] for run in runs], axis=0)
                for runs in (ours, theirs)
            )
            known = ~(np.isnan(one) | np.isnan(other))
            interval = paired_bootstrap(one[known], other[known])
            result[f"{rung}, {metric}"] = interval.to_json()
    return result


def _markdown(report: Mapping[str, Any]) -> str:
    lines = [
        "# mining_round",
        "",
        f"{date.today()}, {report['machine']}, {report['seconds']} s: `{report['command']}`",
        "",
        "Test splits, whole galleries; means over seeds. `swap`: share of its swaps that a query's",
        "right scene beats. Every second round starts from the same first model and is as long.",
        "",
        markdown_table(report["table"]),
        "",
        "## Paired differences (95 % bootstrap over queries, each the mean of its seeds)",
        "",
    ]
    for name, metrics in report["differences"].items():
        lines += [f"### {name}", ""]
        lines += [
            f"- {metric}: {value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
            for metric, value in metrics.items()
        ]
        lines.append("")
    lines += ["## What was mined (each seed)", ""]
    for name, found in report["mining"].items():
        lines += [f"- {name}: " + "; ".join(json.dumps(one) for one in found)]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(main())
