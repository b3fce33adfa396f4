"""An embedding job beside a bare loop, one plain process and sentence-transformers' `encode`.

All arms embed the same files (shapes/mixed_corpus.py: texts and pictures of mixed sizes) with the
same weights, 32 rows at a time: a model of hidden size 512 and 8 layers, still small for one that
is worth a cluster, and (alone with --quick) the shipped base of hidden size 128. What it costs to
start Ray and to load a model is left out on every side: marks are set when a number of rows has
been embedded.

(a) Stand-in: a forward pass that waits a fixed time and holds no core; rows per second from the
first wait to the last, over those of a loop that only waits.
(b) CPU-seconds per row of all processes, Ray's daemons included, over one plain process that reads,
decodes, tokenises and embeds the same rows in turn, one thread; with one model process, as the
plain one is, and with one on each core, which share caches and memory, as two plain processes at
once do, which stand beside them. On CUDA also: rows per
second over the forward pass alone, its batches ready in memory.
(c) Rows per second over sentence-transformers' `encode`; both may use every core, and the job's
start counts against it (few large windows end unevenly, so no part of a run stands for it): with
our model as its module (equal work), and with the model that it builds itself on the same base.
(d) Peaks at four times the rows over those at one: private memory (USS) of the driver and of each
kind of worker, bytes in the object store.
(e) The share of tokens that is padding, in the order given and grouped by length inside windows,
and what that gains in tokens per second.

    python benchmarks/embedding.py [--quick] [--device cuda] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch

import torch
from arms import job, loops
from arms.setting import BASES, BATCH_ROWS, WINDOW_ROWS, Setting
from meters.own_process import run_apart, run_side_by_side
from shapes.mixed_corpus import write_corpus

ARMS = {
    "stand_in": job.stand_in,
    "plain": loops.plain,
    "ours": job.ours,
    "one_process": job.one_process,
    "st": loops.st,
    "st_stock": loops.st_stock,
    "bare": loops.bare,
    "padding": loops.padding,
}
IN_TURN = ("plain", "plain_at_once", "one_process", "ours", "st", "st_stock")
NOT_QUICK = ("plain_at_once", "st_stock")  # what stands beside the targets
SMALLEST = "tiny"  # the model of the arms that do not depend on it


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see the module's text."""
    options = _parser().parse_args(argv)
    if options.arm:
        print(json.dumps(_arm(options)))
        return 0
    with tempfile.TemporaryDirectory(prefix="embedding-") as folder:
        options.folder = Path(folder)
        result = _measure(options)
    markdown = _markdown(result, options)
    print(markdown)
    if options.markdown:
        Path(options.markdown).write_text(markdown)
    print(json.dumps(result))
    return 0


def _arm(options: argparse.Namespace) -> dict[str, Any]:
    setting = _setting(options)
    if options.arm == "memory":
        return job.memory(setting, options.scale)
    return ARMS[options.arm](setting)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    setting = _setting(options)
    size, shapes = setting.size, list(setting.size.marks)
    for shape in shapes:
        dataclasses.replace(setting, shape=shape).write()
    write_corpus(setting.data("stand-in"), size.stand_in)
    for scale in (1, 4):
        write_corpus(setting.data(f"memory-{scale}"), scale * size.memory)
    stand_in = _apart("stand_in", options)
    arms = [arm for arm in IN_TURN if not (options.quick and arm in NOT_QUICK)]
    arms += ["bare"] if options.device == "cuda" else []
    rounds: dict[str, dict[str, list[dict[str, float]]]] = {
        shape: {arm: [] for arm in arms} for shape in shapes
    }
    for _ in range(1 if options.quick else options.rounds):
        for shape in shapes:
            for arm in arms:
                rounds[shape][arm].append(_run_arm(arm, options, shape))
    padding = _apart("padding", options)
    memory = [_apart("memory", options, scale=scale) for scale in (1, 4)]
    over = {shape: _ratios(found, options) for shape, found in rounds.items()}
    return {
        "benchmark": "embedding",
        "over_stand_in": round(stand_in["share"], 3),
        **over[shapes[0]],
        "memory_4x_over_1x": round(max(_grown(memory).values()), 3),
        "shapes": over,
        "memory_mib": memory,
        "memory_grown": _grown(memory),
        "padding": padding,
        "stand_in": stand_in,
        "rounds": rounds,
        "rows": {shape: list(rows) for shape, rows in size.job.items()},
        "batch_rows": BATCH_ROWS,
        "device": options.device,
        "machine": f"{os.cpu_count()} cores {platform.machine()}, torch {torch.__version__}",
    }


def _ratios(
    rounds: dict[str, list[dict[str, float]]], options: argparse.Namespace
) -> dict[str, float]:
    """Ours over the others with one model, the median over rounds."""
    found = {
        "cpu_s_per_row_over_plain": _ratio(rounds, "one_process", "plain", "cpu_s_per_row"),
        "over_st": _ratio(rounds, "ours", "st", "rows_per_s"),
    }
    if "st_stock" in rounds:
        found["over_st_stock"] = _ratio(rounds, "ours", "st_stock", "rows_per_s")
    if options.device == "cuda":
        found["over_bare_forward"] = _ratio(rounds, "ours", "bare", "rows_per_s")
    else:
        for plain in [arm for arm in ("plain", "plain_at_once") if arm in rounds]:
            found[f"cpu_s_per_row_all_cores_over_{plain}"] = _ratio(
                rounds, "ours", plain, "cpu_s_per_row"
            )
    return found


def _ratio(rounds: dict[str, list[dict[str, float]]], ours: str, theirs: str, key: str) -> float:
    pairs = zip(rounds[ours], rounds[theirs], strict=True)
    return round(statistics.median(a[key] / b[key] for a, b in pairs), 3)


def _grown(memory: list[dict[str, Any]]) -> dict[str, float]:
    """Each peak at 4x over that at 1x."""
    once, four = memory
    grown = {name: four[name] / once[name] for name in ("driver", "worker", "object_store")}
    return {name: round(value, 3) for name, value in grown.items()}


def _apart(
    arm: str, options: argparse.Namespace, *, shape: str = SMALLEST, scale: int = 1
) -> dict[str, Any]:
    """Runs an arm in a process of its own; says how it went."""
    found: dict[str, Any] = run_apart(__file__, _arguments(arm, options, shape, scale), what=arm)
    print(f"{shape} {arm}: {found}", file=sys.stderr, flush=True)
    return found


def _run_arm(arm: str, options: argparse.Namespace, shape: str) -> dict[str, Any]:
    if arm != "plain_at_once":
        return _apart(arm, options, shape=shape)
    found = run_side_by_side(
        __file__,
        _arguments("plain", options, shape),
        what="plain processes",
        count=os.cpu_count() or 1,
    )
    both = {key: statistics.mean(one[key] for one in found) for key in found[0]}
    both["rows_per_s"] *= len(found)
    print(f"{shape} {arm}: {both}", file=sys.stderr, flush=True)
    return both


def _arguments(arm: str, options: argparse.Namespace, shape: str, scale: int = 1) -> list[str]:
    arguments = ["--arm", arm, "--folder", str(options.folder), "--scale", str(scale)]
    arguments += ["--device", options.device, "--shape", shape]
    return arguments + (["--quick"] if options.quick else [])


def _setting(options: argparse.Namespace) -> Setting:
    return Setting(options.folder, options.shape, options.device, options.quick)


def _markdown(result: dict[str, Any], options: argparse.Namespace) -> str:
    """The file benchmarks/results/embedding.md."""
    stand_in, padding, memory = result["stand_in"], result["padding"], result["memory_mib"]
    size = _setting(options).size
    speed = [["model", "arm", "rows/s", "CPU-s per row", "CPU-s over plain", "rows/s, ours over"]]
    for shape, rounds in result["rounds"].items():
        for arm, found in rounds.items():
            median = {key: statistics.median(r[key] for r in found) for key in found[0]}
            cost = median.get("cpu_s_per_row")
            dearer = _ratio(rounds, arm, "plain", "cpu_s_per_row") if cost else None
            faster = _ratio(rounds, "ours", arm, "rows_per_s")
            speed.append(
                [
                    shape,
                    arm,
                    f"{median['rows_per_s']:.1f}",
                    f"{cost:.5f}" if cost else "-",
                    f"{dearer:.3f}" if dearer else "-",
                    f"{faster:.3f}",
                ]
            )
    held = [["private MiB, peak", *(f"{m['rows']} rows" for m in memory), "grown"]]
    for name in ("driver", "worker", "object_store"):
        grown = f"{result['memory_grown'][name]:.3f}"
        held.append([f"**{name}**", *(str(m[name]) for m in memory), grown])
    kinds = sorted(set(memory[0]["workers"]) | set(memory[1]["workers"]))
    held += [[kind, *(str(m["workers"].get(kind, "-")) for m in memory), ""] for kind in kinds]
    flags = " --quick" if options.quick else ""
    names = ("ray", "transformers", "sentence-transformers", "pyarrow")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    repeated = 1 if options.quick else options.rounds
    rows = ", ".join(f"{shape} {few} to {many}" for shape, (few, many) in size.job.items())
    lines = [
        "# embedding: beside a bare loop, a plain process and sentence-transformers",
        "",
        f"{time.strftime('%Y-%m-%d')}, {result['machine']}, {versions}:",
        f"`python benchmarks/embedding.py{flags}` ({repeated} rounds in turn, medians of the "
        f"rounds' ratios; rows of a mixed corpus: {rows}; batches of {BATCH_ROWS}, windows of "
        f"{WINDOW_ROWS})",
        "",
        "| what | value | target |",
        "|---|--:|--:|",
        f"| stand-in ({job.WAIT_S} s a batch, no core): {stand_in['rows_per_s']:.1f} of "
        f"{stand_in['bare_rows_per_s']:.1f} rows/s | {result['over_stand_in']:.3f} | >= 0.92 |",
        *_targets(result),
        f"| padding before and after length grouping | {padding['before']:.1%}, "
        f"{padding['after']:.1%} | |",
        f"| real tokens per second, grouped over as they came | "
        f"{padding['tokens_per_s_gain']:.2f} | |",
        f"| peaks at 4x the rows over those at 1x | {result['memory_4x_over_1x']:.3f} | <= 1.10 |",
        "",
        *_table(speed),
        "",
        *_table(held),
        "",
        "`ours` is what a run over all rows takes above one over the first ones: every process, "
        "Ray's daemons and the finishing of the shards too, but for starting and loading.",
    ]
    return "\n".join(lines) + "\n"


def _targets(result: dict[str, Any]) -> list[str]:
    lines = []
    for shape, over in result["shapes"].items():
        cost, speed = over["cpu_s_per_row_over_plain"], over["over_st"]
        lines.append(f"| {shape}: CPU-seconds per row over one plain process | {cost} | <= 1.10 |")
        for name, plain in (("plain", "it"), ("plain_at_once", "as many plain ones at once")):
            if ratio := over.get(f"cpu_s_per_row_all_cores_over_{name}"):
                lines.append(f"| {shape}: a model process on each core, over {plain} | {ratio} | |")
        lines.append(f"| {shape}: rows/s over sentence-transformers, equal work | {speed} | > 1 |")
        if "over_bare_forward" in over:
            bare = over["over_bare_forward"]
            lines.append(f"| {shape}: rows/s over the forward pass alone | {bare} | >= 0.92 |")
    return lines


def _table(rows: list[list[str]]) -> list[str]:
    head, *rest = ["| " + " | ".join(row) + " |" for row in rows]
    return [head, "|---" + "|--:" * (len(rows[0]) - 1) + "|", *rest]


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rows, one round")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=2, help="the arms in turn, so often")
    parser.add_argument("--markdown", help="also write the results to this file")
    parser.add_argument("--arm", choices=(*ARMS, "memory"), help=argparse.SUPPRESS)
    parser.add_argument("--shape", default=SMALLEST, choices=BASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scale", type=int, default=1, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
