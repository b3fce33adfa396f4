"""Short trainings on a corpus of `rematch-ray demo-data`, and how two of them are compared.

An arm is trained step by step in one process of one thread, on the rows that the plan gives, and
measured over the whole held-out gallery. Comparisons are paired over the test queries.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rematch_ray.data.order import OrderSettings, Plan, SourceRows
from rematch_ray.data.readers.parquet import read_table
from rematch_ray.data.samples import SampleEncoder
from rematch_ray.data.schema import items_from_table
from rematch_ray.evaluation.bootstrap import paired_bootstrap
from rematch_ray.evaluation.report import markdown_table
from rematch_ray.evaluation.tasks import RetrievalTask, measure_queries
from rematch_ray.training.settings import OptimisationSettings
from rematch_ray.training.step import Training

BASE = Path(__file__).parents[2] / "rematch_ray" / "assets" / "tiny-base"
LADDER = ("1x1", "2x4", "4x8")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every program of fits takes."""
    parser.add_argument("--quick", action="store_true", help="a few steps, one seed: does it run?")
    parser.add_argument("--batch", type=int, default=32, help="pairs per step")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--base", type=Path, default=BASE, help="folder of the base model")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")


@contextmanager
def processes(count: int) -> Iterator[Pool]:
    """Processes of one thread each, which have ended in order when the block has."""
    with multiprocessing.get_context("spawn").Pool(count, initializer=_one_thread) as pool:
        yield pool
        pool.close()  # and wait: a terminated worker leaves its semaphores behind
        pool.join()


def _one_thread() -> None:
    torch.set_num_threads(1)


def optimisation(rate: float, steps: int) -> OptimisationSettings:
    """Settings of one fit; what is new learns twice as fast."""
    return OptimisationSettings(
        learning_rate=rate,
        new_learning_rate=2 * rate,
        betas=(0.9, 0.98),
        warmup_steps=max(1, steps // 10),
    )


def run_steps(
    training: Training, source: str, table: pa.Table, *, steps: int, batch: int, seed: int
) -> float:
    """Trains on a source's rows of samples in the order of a seed; CPU-seconds of steps alone."""
    order = OrderSettings(global_batch=batch, sub_batch=batch)
    plan = Plan((SourceRows(source, (table.num_rows,)),), seed, order)
    encode = SampleEncoder(training.joint.embedder.row_encoder, max_negatives=2, seed=seed)
    spent = 0.0
    for step in plan.steps(0, steps):
        rows = encode([table.take(step.sub_batches[0].rows)], step.index)
        collated = training.collate(rows, step=step.index)
        began = time.process_time()
        training.step(collated)
        spent += time.process_time() - began
    return spent


def measure_fit(
    training: Training, folder: Path, part: str, *, rungs: Sequence[str], metrics: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Rung -> metric -> value per query, over the whole held-out gallery.

    Args:
        training: done.
        folder: of the corpus.
        part: whose queries.
        rungs: of the ladder, or `fused`.
        metrics: those that the corpus has answers for are measured.
    """
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
        for rung in rungs
    }
    return {
        rung: {name: values[name] for name in metrics if name in values}
        for rung, values in found.items()
    }


def paired(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> dict[str, float]:
    """Ours minus theirs with its 95 % interval, paired over queries; one array (Q,) a seed.

    Each query's number is the mean over seeds first: seeds are not independent queries.
    """
    one, other = np.mean(ours, axis=0), np.mean(theirs, axis=0)
    known = ~(np.isnan(one) | np.isnan(other))
    return paired_bootstrap(one[known], other[known]).to_json()


def report_lines(report: Mapping[str, Any], name: str, about: Sequence[str]) -> list[str]:
    """A page of results: what was run, its table, and the paired differences."""
    lines = [
        f"# {name}",
        "",
        f"{date.today()}, {report['machine']}, {report['seconds']} s: `{report['command']}`",
        "",
        *about,
        "",
        markdown_table(report["table"]),
        "",
        "## Paired differences (95 % bootstrap over queries, each the mean of its seeds)",
        "",
    ]
    for title, metrics in report["differences"].items():
        lines += [f"### {title}", ""]
        lines += [
            f"- {metric}: {value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
            for metric, value in metrics.items()
        ]
        lines.append("")
    return lines
