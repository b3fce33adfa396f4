"""Whether the stream keeps up with a fast step, and what it costs beside a plain loop.

(a) A stand-in for a GPU: two ranks take the demo's batches with steps that wait 0.6 s and hold no
core; the share of the time that they wait for data instead, from the second step on.

(b) CPU-seconds per pair of a training run, over those of one plain process that reads, decodes,
tokenises and steps over the same plan, one thread each, in turn (plain, ours, plain, ours, ...;
medians). A plain process alone has the caches and the memory of all cores for itself, which two
training processes have not: where there are two, as many plain ones run at once as well. Ours are
the CPU times of all processes below this one between two logged steps (driver, Ray's daemons, data
tasks, training processes), read from /proc twice a second, so that what a process used before it
ended counts too; start-up, checkpoints and export do not. Twice: with a model of hidden size 512
and 8 layers, still small for a model that is worth a cluster, on two training processes; and with
the demo's, of hidden size 128, on one.

    python benchmarks/loader.py [--quick] [--shapes committed tiny] [--config RUN.yaml]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch

from meters.cpu import SAMPLE_S, CpuMeter, Process
from meters.own_process import run_side_by_side
from shapes.random_rows import COMMITTED, write_base

from rematch_ray.config import RunConfig, read_run
from rematch_ray.evaluation.report import plain_table
from rematch_ray.model.tiny import TinySettings

STEP_S = 0.6
RANKS = 2
LARGEST = 12  # processes listed
AT_ONCE = "plain, as many at once"
CONFIG = Path(__file__).resolve().parents[1] / "jobs" / "configs" / "demo.yaml"


@dataclass(frozen=True)
class Shape:
    """What (b) trains.

    Attributes:
        sizes: of the base that is made for it; None = the configuration's own.
        workers: training processes.
        window: steps between which CPU-seconds count.
        quick: the same with --quick.
    """

    sizes: TinySettings | None
    workers: int
    window: tuple[int, int]
    quick: tuple[int, int]


SHAPES = {
    "committed": Shape(COMMITTED, 2, (2, 10), (1, 3)),
    "tiny": Shape(None, 1, (10, 60), (4, 16)),
}


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see the module's text."""
    options = _parser().parse_args(argv)
    if options.plain:
        print(json.dumps(_plain(_settings(options, options.plain), *options.window)))
        return 0
    with tempfile.TemporaryDirectory(prefix="loader-") as folder:
        options.folder = options.folder or folder
        run = _settings(options, "tiny")
        _write_data(run)
        waits = _stand_in(run, 25 if options.quick else 200)
        rounds = 1 if options.quick else options.rounds
        costs: dict[str, dict[str, list[float]]] = {}
        for shape in options.shapes:
            if SHAPES[shape].sizes is not None:
                write_base(_base(options), SHAPES[shape].sizes)
            workers = SHAPES[shape].workers
            costs[shape] = {"plain": [], "ours": []}
            if workers > 1:
                costs[shape][AT_ONCE] = []
            for number in range(rounds):
                costs[shape]["plain"].append(_plain_apart(options, shape, 1))
                if workers > 1:
                    costs[shape][AT_ONCE].append(_plain_apart(options, shape, workers))
                costs[shape]["ours"].append(_ours(options, shape, f"{shape}-{number}"))
    medians = {
        shape: {name: statistics.median(taken) for name, taken in arms.items()}
        for shape, arms in costs.items()
    }
    ratios = {shape: _over(arms) for shape, arms in costs.items()}
    _print(waits, medians, ratios)
    result = {
        "benchmark": "loader",
        "wait_share_with_stand_in": round(waits["share"], 4),
        "cpu_s_per_pair_over_plain": round(ratios[options.shapes[0]]["plain"], 3),
        "shapes": {
            shape: {
                "over": {name: round(ratio, 3) for name, ratio in ratios[shape].items()},
                "workers": SHAPES[shape].workers,
                "cpu_s_per_pair": {
                    name: [round(x, 5) for x in taken] for name, taken in costs[shape].items()
                },
            }
            for shape in options.shapes
        },
        "longest_wait_s": round(waits["longest_s"], 3),
        "first_batch_s": round(waits["first_s"], 2),
        "pairs_per_step": run.data.order.global_batch,
        "ranks": RANKS,
        "machine": f"{os.cpu_count()} cores {platform.machine()}",
    }
    print(json.dumps(result))
    return 0


def _over(arms: dict[str, list[float]]) -> dict[str, float]:
    """Ours over each of the others, the median over rounds."""
    return {
        name: statistics.median(a / b for a, b in zip(arms["ours"], taken, strict=True))
        for name, taken in arms.items()
        if name != "ours"
    }


def _print(
    waits: dict[str, float],
    medians: dict[str, dict[str, float]],
    ratios: dict[str, dict[str, float]],
) -> None:
    lines = [
        ["what", "value"],
        ["waits for data, share of the time", f"{waits['share']:.4f}"],
        ["longest wait, s", f"{waits['longest_s']:.3f}"],
        ["first batch after, s", f"{waits['first_s']:.1f}"],
    ]
    for shape, arms in medians.items():
        for name, seconds in arms.items():
            lines.append([f"{shape}: CPU-s per pair, {name}", f"{seconds:.4f}"])
        for name, ratio in ratios[shape].items():
            lines.append([f"{shape}: ours over {name}", f"{ratio:.3f}"])
    print(plain_table(lines))


def _base(options: argparse.Namespace) -> Path:
    return Path(options.folder) / "base"


def _window(options: argparse.Namespace, shape: str) -> tuple[int, int]:
    return SHAPES[shape].quick if options.quick else SHAPES[shape].window


def _settings(options: argparse.Namespace, shape: str) -> RunConfig:
    """The demo's run, its data and storage in a folder of ours, without checkpoints on the way."""
    folder = Path(options.folder)
    base = [] if SHAPES[shape].sizes is None else [f"model.base={_base(options)}"]
    run = read_run(
        options.config,
        [
            f"storage={folder / 'runs'}",
            "train.steps=100000",
            "train.checkpoint_every=100000",
            "train.progress_seconds=30",
            f"train.num_workers={SHAPES[shape].workers}",
            *base,
        ],
    )
    sources = tuple(
        source.model_copy(update={"path": folder / "data" / source.name / "train"})
        for source in run.data.sources
    )
    demo = run.data.demo
    if demo is not None:
        demo = demo.model_copy(update={"out": folder / "data", "quick": options.quick})
    data = run.data.model_copy(update={"sources": sources, "demo": demo})
    return run.model_copy(update={"data": data})


def _write_data(run: RunConfig) -> None:
    from rematch_ray.data.demo import write_demo

    assert run.data.demo is not None, "give a configuration on the demo's data"
    write_demo(run.data.demo.out, sources=run.data.demo.corpora, quick=run.data.demo.quick)


def _stand_in(run: RunConfig, steps: int) -> dict[str, float]:
    """Takes `steps` batches on two ranks whose steps only wait; how long they wait for data."""
    import ray

    from rematch_ray.workloads import stream
    from rematch_ray.workloads.runtime import Bundle, connect
    from rematch_ray.workloads.stages import EncodeSamples

    @ray.remote(num_cpus=0)
    def take(iterator: Any, plan: Any, rank: int) -> list[float]:
        waits = []
        for given in stream.batches(
            iterator, plan, start=0, stop=steps, rank=rank, world_size=RANKS, prefetch=2
        ):
            waits.append(given.waited_s)
            time.sleep(STEP_S)
        return waits

    data = stream.open_data(run.data, run.seed)
    encode = EncodeSamples(run.model, max_negatives=run.data.max_negatives, seed=run.seed)
    with connect([Bundle("data task", run.train.cpus_per_encoder)]):
        dataset = stream.rank_steps(
            data,
            encode,
            start=0,
            stop=steps,
            world_size=RANKS,
            encoder_cpus=run.train.cpus_per_encoder,
            readers=run.train.readers,
            ahead=run.train.encode_ahead,
        )
        iterators = stream.split(dataset, RANKS)
        taken = ray.get([take.remote(it, data.plan, rank) for rank, it in enumerate(iterators)])
    later = [waited for waits in taken for waited in waits[1:]]
    return {
        "share": sum(later) / (sum(later) + STEP_S * len(later)),
        "longest_s": max(later),
        "first_s": max(waits[0] for waits in taken),
    }


def _plain(run: RunConfig, begin: int, end: int) -> float:
    """CPU-seconds per pair of one process that does everything in turn, steps `begin` to `end`."""
    import torch

    from rematch_ray.training.step import Training
    from rematch_ray.workloads import stream
    from rematch_ray.workloads.stages import EncodeSamples

    torch.set_num_threads(1)
    data = stream.open_data(run.data, run.seed)
    encode = EncodeSamples(run.model, max_negatives=run.data.max_negatives, seed=run.seed)
    training = Training.build(
        run.model, run.objective, run.optimisation, seed=run.seed, total_steps=run.train.steps
    )
    rows = stream.RowGroups(data)
    began = 0.0
    for step in data.plan.steps(0, end):
        if step.index == begin:
            began = time.process_time()
        tables = [rows.rows(batch)[0] for batch in step.sub_batches]
        training.step(training.collate(encode(tables, step.index, 0), step=step.index))
    return (time.process_time() - began) / ((end - begin) * run.data.order.global_batch)


def _plain_apart(options: argparse.Namespace, shape: str, count: int) -> float:
    """The same in processes of their own that have not started Ray, so many at once; the mean."""
    arguments = ["--plain", shape, "--folder", str(options.folder)]
    arguments += ["--config", str(options.config)]
    arguments += ["--window", *map(str, _window(options, shape))]
    arguments += ["--quick"] if options.quick else []
    found = run_side_by_side(__file__, arguments, what="plain processes", count=count)
    return statistics.mean(map(float, found))


def _ours(options: argparse.Namespace, shape: str, name: str) -> float:
    """CPU-seconds per pair of a training run, all processes, steps `begin` to `end`."""
    from rematch_ray.workloads.run_directory import RunDirectory
    from rematch_ray.workloads.train import train

    run = _settings(options, shape).model_copy(update={"name": name})
    window = _window(options, shape)
    directory = RunDirectory(run.directory)
    found: dict[int, float] = {}
    meter = CpuMeter()

    def watch() -> None:
        tail = directory.tail()
        while len(found) < len(window):
            used = meter.by_process()
            done = [r["step"] + 1 for r in tail.read().records if r["event"] == "step"]
            for mark in window:
                if mark not in found and done and done[-1] >= mark:
                    found[mark], steps[mark] = sum(used.values()), done[-1]
                    spent[mark] = used
            time.sleep(SAMPLE_S)
        directory.ask_to_stop()

    steps: dict[int, int] = {}
    spent: dict[int, dict[Process, float]] = {}
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    train(run)
    watcher.join()
    begin, end = window
    pairs = (steps[end] - steps[begin]) * run.data.order.global_batch
    between = {p: s - spent[begin].get(p, 0.0) for p, s in spent[end].items()}
    shown = [[name, f"{s / pairs:.5f}"] for name, s in meter.by_name(between).items()]
    print(plain_table([["process", "CPU-s per pair"], *shown[:LARGEST]]))
    return (found[end] - found[begin]) / pairs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps on fewer rows")
    parser.add_argument("--device", default="cpu", choices=["cpu"], help="CPU alone is measured")
    parser.add_argument("--rounds", type=int, default=2, help="plain and ours in turn, so often")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="of (b)")
    parser.add_argument("--config", type=Path, default=CONFIG, help="a run on the demo's data")
    parser.add_argument("--folder", type=Path, help="keep data and runs there")
    parser.add_argument("--plain", choices=SHAPES, help=argparse.SUPPRESS)
    parser.add_argument("--window", type=int, nargs=2, default=(0, 1), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
