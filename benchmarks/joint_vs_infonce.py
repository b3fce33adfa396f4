"""Quality of four objectives from the same base, at equal rows and at equal CPU-seconds.

Arms: one end token with InfoNCE; the same banks with InfoNCE on the fused vector; `metaembed`;
`joint`. The learning rate of each arm is chosen on validation; seeds are repeated; differences are
paired over the test queries of all seeds. Published whichever arm wins.

    python benchmarks/joint_vs_infonce.py [--quick] [--processes 2] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
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

from rematch_ray.data.demo import write_demo
from rematch_ray.data.readers.parquet import read_table
from rematch_ray.evaluation.report import plain_table
from rematch_ray.model.settings import ModelSettings
from rematch_ray.training.settings import ObjectiveSettings
from rematch_ray.training.step import Training

METRICS = ("recall@1", "ndcg@10", "family_accuracy")
ARMS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "end token": (
        {"ladder": ("1x1",), "fuse_k": 1},
        {"w_groups": 0.0, "w_orth": 0.0, "w_match": 0.0},
    ),
    "fused": (
        {"ladder": LADDER, "fuse_k": 4},
        {"w_groups": 0.0, "w_orth": 0.0, "w_match": 0.0},
    ),
    "metaembed": ({"ladder": LADDER, "fuse_k": 4}, {"preset": "metaembed"}),
    "joint": ({"ladder": LADDER, "fuse_k": 4}, {"preset": "joint"}),
}


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see the module's text."""
    options = _parser().parse_args(argv)
    started = time.time()
    steps, seeds, rates = options.steps, 3, options.rates
    if options.quick:
        steps, seeds, rates = 12, 1, [1e-3]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write_demo(data, sources=("scenes",), quick=options.quick)
        with processes(options.processes) as pool:
            tries = [
                _job(data, arm, rate, 1000, max(1, steps // 3), "validation", options)
                for arm in ARMS
                for rate in rates
            ]
            tried = pool.map(_fit, tries, chunksize=1)
            chosen = {
                arm: max((t for t in tried if t["arm"] == arm), key=lambda t: t["best"])
                for arm in ARMS
            }
            seconds = chosen["joint"]["cpu_per_step"] * steps
            jobs = []
            for seed in range(seeds):
                for arm in ARMS:
                    rate = chosen[arm]["rate"]
                    jobs.append(_job(data, arm, rate, seed, steps, "test", options))
                    if arm != "joint":
                        fit = max(1, round(seconds / chosen[arm]["cpu_per_step"]))
                        jobs.append(_job(data, arm, rate, seed, fit, "test", options, equal="cpu"))
            runs = pool.map(_fit, jobs, chunksize=1)
    report = _report(runs, tried, chosen, options, time.time() - started)
    print(plain_table(report["table"]), file=sys.stderr)
    if not options.quick:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "joint_vs_infonce.md").write_text(_markdown(report))
    print(json.dumps({key: value for key, value in report.items() if key != "table"}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--steps", type=int, default=300, help="steps of the equal-rows runs")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3])
    return parser


def _job(
    data: Path, arm: str, rate: float, seed: int, steps: int, part: str,
    options: argparse.Namespace, *, equal: str = "rows",
) -> dict[str, Any]:  # fmt: skip
    batch = 8 if options.quick else options.batch
    return {
        "data": data, "arm": arm, "rate": rate, "seed": seed, "steps": steps, "part": part,
        "equal": equal, "batch": batch, "base": str(options.base),
    }  # fmt: skip


def _fit(job: dict[str, Any]) -> dict[str, Any]:
    """Trains one arm and measures it; CPU-seconds are of the optimisation steps alone."""
    model, objective = ARMS[job["arm"]]
    training = Training.build(
        ModelSettings(base=job["base"], embedding_dim=64, fused_dim=128, **model),
        ObjectiveSettings(hard_negatives="pooled", **objective),
        optimisation(job["rate"], job["steps"]),
        seed=job["seed"],
        total_steps=job["steps"],
    )
    table = read_table(job["data"] / "scenes" / "train", rows="samples")
    spent = run_steps(
        training, "scenes", table, steps=job["steps"], batch=job["batch"], seed=job["seed"]
    )
    rungs = ["fused"] if training.joint.settings.w_fused else []
    rungs += training.joint.embedder.ladder.texts() if training.joint.settings.w_groups else []
    folder = job["data"] / "scenes"
    measured = measure_fit(training, folder, job["part"], rungs=rungs, metrics=METRICS)
    best = max(float(np.nanmean(values["ndcg@10"])) for values in measured.values())
    return {**job, "data": "", "cpu": spent, "cpu_per_step": spent / job["steps"], "best": best,
            "measured": measured}  # fmt: skip


def _report(
    runs: list[dict[str, Any]],
    tried: list[dict[str, Any]],
    chosen: Mapping[str, dict[str, Any]],
    options: argparse.Namespace,
    seconds: float,
) -> dict[str, Any]:
    header = ["equal", "arm", "vector", "learning rate", "steps", "CPU s", *METRICS]
    table, differences = [header], {}
    reference = {run["seed"]: run for run in runs if run["arm"] == "joint"}
    for equal in ("rows", "cpu"):
        for arm in ARMS:
            own = [r for r in runs if r["arm"] == arm and (r["equal"] == equal or arm == "joint")]
            for rung in own[0]["measured"]:
                values = {m: np.concatenate([r["measured"][rung][m] for r in own]) for m in METRICS}
                table.append(
                    [equal, arm, rung, f"{own[0]['rate']:g}", str(own[0]["steps"]),
                     f"{np.mean([r['cpu'] for r in own]):.0f}",
                     *[f"{np.nanmean(values[m]):.3f}" for m in METRICS]]
                )  # fmt: skip
            if arm != "joint":
                differences[f"joint - {arm} (equal {equal})"] = _difference(own, reference)
    return {
        "table": table,
        "differences": differences,
        "learning_rates": {arm: run["rate"] for arm, run in chosen.items()},
        "tried": [{k: t[k] for k in ("arm", "rate", "best", "cpu_per_step")} for t in tried],
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}",
        "command": "python benchmarks/joint_vs_infonce.py " + " ".join(sys.argv[1:]),
        "seconds": round(seconds),
    }


def _difference(
    own: list[dict[str, Any]], reference: Mapping[int, dict[str, Any]]
) -> dict[str, Any]:
    """Joint's fused vector and top budget minus the arm's largest."""
    rung = list(own[0]["measured"])[-1]
    result = {}
    for mine in ("fused", LADDER[-1]):
        for metric in METRICS:
            ours = [reference[run["seed"]]["measured"][mine][metric] for run in own]
            theirs = [run["measured"][rung][metric] for run in own]
            result[f"{mine} against {rung}, {metric}"] = paired(ours, theirs)
    return result


def _markdown(report: Mapping[str, Any]) -> str:
    about = [
        "Scenes, test split, gallery of 936 with every swap; means over seeds. The learning rate",
        "of each arm was chosen on validation with a third of the steps.",
    ]
    return "\n".join(report_lines(report, "joint_vs_infonce", about))


if __name__ == "__main__":
    raise SystemExit(main())
