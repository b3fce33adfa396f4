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
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms.fits import (
    LADDER,
    add_options,
    measure_fit,
    optimisation,
    paired,
    processes,
    report_lines,
    run_steps,
)

from rematch_ray.config import MineSettings
from rematch_ray.data.demo import write_demo
from rematch_ray.data.readers.parquet import read_table
from rematch_ray.data.schema import samples_from_table, samples_to_table, write_parquet
from rematch_ray.evaluation.report import plain_table
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.settings import ModelSettings
from rematch_ray.training.settings import ObjectiveSettings
from rematch_ray.training.step import Training
from rematch_ray.workloads.mine import mine
from rematch_ray.workloads.runtime import connect

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
        with processes(options.processes) as pool:
            first = pool.map(_fit, starts, chunksize=1)
            with connect([]):
                seconds = [job | _mine(job, limit) for job in starts for limit in LIMITS]
            again = [job | {"arm": AGAIN} for job in starts]
            second = pool.map(_fit, [*again, *seconds], chunksize=1)
    report = _report([*first, *second], options, time.time() - started)
    print(plain_table(report["table"]), file=sys.stderr)
    if not options.quick:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "mining_round.md").write_text(_markdown(report))
    print(json.dumps({key: value for key, value in report.items() if key != "table"}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--steps", type=int, default=100, help="steps of each round")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate of both rounds")
    parser.add_argument("--corpora", nargs="+", choices=list(PARTS), default=list(PARTS))
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


def _fit(job: dict[str, Any]) -> dict[str, Any]:
    """Trains one round and measures it; CPU-seconds are of the optimisation steps alone."""
    is_first = job["arm"] == "first"
    training = _build(job)
    if not is_first:
        start = Embedder.from_pretrained(job["export"], device="cpu")
        training.joint.embedder.load_state_dict(start.state_dict())
    table = read_table(job["train"], rows="samples")
    # another order in the second round, the same in all its arms
    spent = run_steps(
        training,
        job["corpus"],
        table,
        steps=job["steps"],
        batch=job["batch"],
        seed=2 * job["seed"] + (not is_first),
    )
    if is_first:
        training.joint.embedder.eval().save_pretrained(job["export"])
    kept = {key: job[key] for key in ("corpus", "rows", "seed", "arm", "steps")}
    part = PARTS[job["corpus"]]
    measured = measure_fit(training, job["data"], part, rungs=RUNGS, metrics=METRICS)
    return {**kept, "mining": job.get("mining"), "cpu": spent, "measured": measured}


def _build(job: Mapping[str, Any]) -> Training:
    return Training.build(
        ModelSettings(base=job["base"], embedding_dim=64, fused_dim=128, ladder=LADDER, fuse_k=4),
        ObjectiveSettings(preset="joint", hard_negatives="pooled"),
        optimisation(job["rate"], job["steps"]),
        seed=job["seed"],
        total_steps=job["steps"],
    )


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
    """Each metric at each rung."""
    result = {}
    for rung in RUNGS:
        for metric in ours[0]["measured"][rung]:
            one, other = (
                [run["measured"][rung][metric] for run in runs] for runs in (ours, theirs)
            )
            result[f"{rung}, {metric}"] = paired(one, other)
    return result


def _markdown(report: Mapping[str, Any]) -> str:
    about = [
        "Test splits, whole galleries; means over seeds. `swap`: share of its swaps that a query's",
        "right scene beats. Every second round starts from the same first model and is as long.",
    ]
    lines = report_lines(report, "mining_round", about)
    lines += ["## What was mined (each seed)", ""]
    for name, found in report["mining"].items():
        lines += [f"- {name}: " + "; ".join(json.dumps(one) for one in found)]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(main())
