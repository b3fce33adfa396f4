"""Quality of four objectives from the same base, at equal rows and at equal CPU-seconds.

Arms: one end token with InfoNCE; the same banks with InfoNCE on the fused vector; `metaembed`;
`joint`. The learning rate of each arm is chosen on validation; seeds are repeated; differences are
paired over the test queries of all seeds. Published whichever arm wins.

    python benchmarks/joint_vs_infonce.py [--quick] [--processes 2] [--out FOLDER]
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
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from rematch_ray.data.demo import write_demo
from rematch_ray.data.order import OrderSettings, Plan, SourceRows
from rematch_ray.data.readers.parquet import read_table
from rematch_ray.data.samples import SampleEncoder
from rematch_ray.data.schema import items_from_table
from rematch_ray.evaluation.bootstrap import paired_bootstrap
from rematch_ray.evaluation.report import markdown_table, plain_table
from rematch_ray.evaluation.tasks import RetrievalTask, measure_queries
from rematch_ray.model.settings import ModelSettings
from rematch_ray.training.settings import ObjectiveSettings, OptimisationSettings
from rematch_ray.training.step import Training

BASE = Path(__file__).parents[1] / "rematch_ray" / "assets" / "tiny-base"
LADDER = ("1x1", "2x4", "4x8")
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
        context = multiprocessing.get_context("spawn")
        with context.Pool(options.processes, initializer=_one_thread) as pool:
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
            pool.close()  # and wait: a terminated worker leaves its semaphores behind
            pool.join()
    report = _report(runs, tried, chosen, options, time.time() - started)
    print(plain_table(report["table"]), file=sys.stderr)
    if not options.quick:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "joint_vs_infonce.md").write_text(_markdown(report))
    print(json.dumps({key: value for key, value in report.items() if key != "table"}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps, one seed: does it run?")
    parser.add_argument("--steps", type=int, default=300, help="steps of the equal-rows runs")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3])
    parser.add_argument("--batch", type=int, default=32, help="pairs per step")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--base", type=Path, default=BASE, help="folder of the base model")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
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


def _one_thread() -> None:
    torch.set_num_threads(1)


def _fit(job: dict[str, Any]) -> dict[str, Any]:
    """Trains one arm and measures it; CPU-seconds are of the optimisation steps alone."""
    model, objective = ARMS[job["arm"]]
    training = Training.build(
        ModelSettings(base=job["base"], embedding_dim=64, fused_dim=128, **model),
        ObjectiveSettings(hard_negatives="pooled", **objective),
        OptimisationSettings(
            learning_rate=job["rate"],
            new_learning_rate=2 * job["rate"],
            betas=(0.9, 0.98),
            warmup_steps=max(1, job["steps"] // 10),
        ),
        seed=job["seed"],
        total_steps=job["steps"],
    )
    table = read_table(job["data"] / "scenes" / "train", rows="samples")
    order = OrderSettings(global_batch=job["batch"], sub_batch=job["batch"])
    plan = Plan((SourceRows("scenes", (table.num_rows,)),), job["seed"], order)
    encode = SampleEncoder(training.joint.embedder.row_encoder, max_negatives=2, seed=job["seed"])
    spent = 0.0
    for step in plan.steps(0, job["steps"]):
        rows = encode([table.take(step.sub_batches[0].rows)], step.index)
        batch = training.collate(rows, step=step.index)
        began = time.process_time()
        training.step(batch)
        spent += time.process_time() - began
    measured = _measure(training, job["data"] / "scenes", job["part"])
    best = max(float(np.nanmean(values["ndcg@10"])) for values in measured.values())
    return {**job, "data": "", "cpu": spent, "cpu_per_step": spent / job["steps"], "best": best,
            "measured": measured}  # fmt: skip


def _measure(training: Training, folder: Path, part: str) -> dict[str, dict[str, np.ndarray]]:
    """Rung -> metric -> value per query, over the whole held-out gallery."""
    model = training.joint.embedder.eval()
    documents = items_from_table(read_table(folder / "corpus", rows="items"))
    queries = items_from_table(read_table(folder / f"queries-{part}.parquet", rows="items"))
    task = RetrievalTask.from_tables(
        part,
        [query.id for query in queries],
        [document.id for document in documents],
        pq.read_table(folder / f"qrels-{part}.parquet"),
        families=pq.read_table(folder / "families.parquet"),
    )
    query, document = model.encode_query(queries), model.encode_document(documents)
    rungs = ["fused"] if training.joint.settings.w_fused else []
    rungs += model.ladder.texts() if training.joint.settings.w_groups else []
    scores = {rung: model.similarity(query, document, rung).numpy() for rung in rungs}
    return {
        rung: {name: measure_queries(task, matrix)[name] for name in METRICS}
        for rung, matrix in scores.items()
    }


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
    """Joint's fused vector and top budget minus the arm's largest, paired over the test queries.

    Each query's number is the mean over seeds first: seeds are not independent queries.
    """
    rung = list(own[0]["measured"])[-1]
    result = {}
    for mine in ("fused", LADDER[-1]):
        for metric in METRICS:
            ours = np.mean([reference[r["seed"]]["measured"][mine][metric] for r in own], axis=0)
            theirs = np.mean([r["measured"][rung][metric] for r in own], axis=0)
            known = ~(np.isnan(ours) | np.isnan(theirs))
            interval = paired_bootstrap(ours[known], theirs[known])
            result[f"{mine} against {rung}, {metric}"] = interval.to_json()
    return result


def _markdown(report: Mapping[str, Any]) -> str:
    lines = [
        "# joint_vs_infonce",
        "",
        f"{date.today()}, {report['machine']}, {report['seconds']} s: `{report['command']}`",
        "",
        "Scenes, test split, gallery of 936 with every swap; means over seeds. The learning rate",
        "of each arm was chosen on validation with a third of the steps.",
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
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
