"""An embedding job beside a bare loop, one plain process and sentence-transformers' `encode`.

All arms embed the same files (shapes/mixed_corpus.py: texts and pictures of mixed sizes) with the
same weights (the shipped base), 32 rows at a time. What it costs to start Ray and to load a model
is left out on every side: marks are set when a number of rows has been embedded.

(a) Stand-in: a forward pass that waits a fixed time and holds no core; rows per second from the
first wait to the last, over those of a loop that only waits.
(b) CPU-seconds per row of all processes, Ray's daemons included, over one plain process that reads,
decodes, tokenises and embeds the same rows in turn, one thread. On CUDA also: rows per second over
the forward pass alone, its batches ready in memory.
(c) Rows per second over sentence-transformers' `encode`, which may use every core: with our model
as its module (equal work), and with the model that it builds itself on the same base.
(d) Peaks at four times the rows over those at one: private memory (USS) of the driver and of each
kind of worker, bytes in the object store.
(e) The share of tokens that is padding, in the order given and grouped by length inside windows,
and what that gains in tokens per second.

    python benchmarks/embedding.py [--quick] [--device cuda] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch

import torch
from loader import CpuMeter
from shapes.job_memory import watched
from shapes.mixed_corpus import write_corpus

from rematch_ray.config import EmbedSettings
from rematch_ray.data.batching import BatchLimits, cut_batches, padding_share
from rematch_ray.data.readers.formats import list_data, read_data
from rematch_ray.data.rows import EncodedRow
from rematch_ray.data.schema import items_from_table
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.embeddings import Embeddings
from rematch_ray.model.settings import ModelSettings
from rematch_ray.workloads import embed as job
from rematch_ray.workloads.embed_actor import ActorSettings, EmbedActor
from rematch_ray.workloads.runtime import connect
from rematch_ray.workloads.staging import Staging

BASE = Path(__file__).resolve().parents[1] / "rematch_ray" / "assets" / "tiny-base"
BATCH_ROWS, WINDOW_ROWS = 32, 256
WAIT_S = 0.5
SAMPLE_S = 0.5
LARGEST = 8  # processes listed
READING = threading.Lock()
LIMITS = BatchLimits(BATCH_ROWS, 10**9, 10**9)
SETTINGS = EmbedSettings(
    batch_rows=BATCH_ROWS,
    batch_tokens=LIMITS.tokens,
    batch_pixels=10**12,
    window_rows=WINDOW_ROWS,
    rows_per_write=512,
    progress_seconds=30,
)


@dataclass(frozen=True)
class Size:
    """How much is embedded.

    Attributes:
        stand_in: rows of the stand-in's run.
        marks: rows of the short run and of the long one.
        memory: rows at 1x.
        buffer: bytes that may wait between stages while memory is measured.
        padding: rows whose lengths are looked at.
        rounds: times that the arms run in turn.
    """

    stand_in: int
    marks: tuple[int, int]
    memory: int
    buffer: int
    padding: int
    rounds: int


QUICK = Size(1024, (768, 2304), 1024, 4 * 2**20, 512, 1)
FULL = Size(16384, (2048, 12288), 8192, 16 * 2**20, 4096, 3)


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see the module's text."""
    options = _parser().parse_args(argv)
    if options.arm:
        print(json.dumps(ARMS[options.arm](options)))
        return 0
    with tempfile.TemporaryDirectory(prefix="embedding-") as folder:
        options.folder = folder
        result = _measure(options)
    markdown = _markdown(result, options)
    print(markdown)
    if options.markdown:
        Path(options.markdown).write_text(markdown)
    print(json.dumps(result))
    return 0


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    size = _size(options)
    embedder = Embedder.build(ModelSettings(base=str(options.base)), name="benchmark").eval()
    embedder.save_pretrained(_export(options))
    write_corpus(_data(options, "stand-in"), size.stand_in)
    for rows in size.marks:
        write_corpus(_data(options, f"rows-{rows}"), rows)
    for scale in (1, 4):
        write_corpus(_data(options, f"memory-{scale}"), scale * size.memory)
    found: dict[str, Any] = {"stand_in": _apart("stand_in", options)}
    arms = ["plain", "ours", "st", "st_stock", *(["bare"] if options.device == "cuda" else [])]
    rounds: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for _ in range(size.rounds):
        for arm in arms:
            rounds[arm].append(_apart(arm, options))
    found["padding"] = _apart("padding", options)
    memory = [_apart("memory", options, scale=scale) for scale in (1, 4)]
    result = {
        "benchmark": "embedding",
        "over_stand_in": round(found["stand_in"]["share"], 3),
        "cpu_s_per_row_over_plain": _ratio(rounds, "ours", "plain", "cpu_s_per_row"),
        "over_st": _ratio(rounds, "ours", "st", "rows_per_s"),
        "over_st_stock": _ratio(rounds, "ours", "st_stock", "rows_per_s"),
        "memory_4x_over_1x": round(max(_grown(memory).values()), 3),
    }
    if options.device == "cuda":
        result["over_bare_forward"] = _ratio(rounds, "ours", "bare", "rows_per_s")
    return result | {
        "memory_mib": memory,
        "memory_grown": _grown(memory),
        "padding": found["padding"],
        "stand_in": found["stand_in"],
        "rounds": rounds,
        "rows": list(size.marks),
        "batch_rows": BATCH_ROWS,
        "device": options.device,
        "machine": f"{os.cpu_count()} cores {platform.machine()}, torch {torch.__version__}",
    }


def _ratio(rounds: dict[str, list[dict[str, float]]], ours: str, theirs: str, key: str) -> float:
    pairs = zip(rounds[ours], rounds[theirs], strict=True)
    return round(statistics.median(a[key] / b[key] for a, b in pairs), 3)


def _grown(memory: list[dict[str, Any]]) -> dict[str, float]:
    """Each peak at 4x over that at 1x."""
    once, four = memory
    grown = {name: four[name] / once[name] for name in ("driver", "worker", "object_store")}
    return {name: round(value, 3) for name, value in grown.items()}


def _stand_in(options: argparse.Namespace) -> dict[str, float]:
    """Share of the time, from the first wait to the last, that the stand-in waits."""
    job.EmbedActor = StandInActor  # type: ignore[misc]
    out = Path(options.folder) / "stand-in"
    with _quiet_cluster():
        _embed(options, "stand-in", out)
    first, last, batches = json.loads((_actors(out) / SPAN).read_text())
    return {
        "share": batches * WAIT_S / (last - first),
        "batches": batches,
        "rows_per_s": batches * BATCH_ROWS / (last - first),
        "bare_rows_per_s": BATCH_ROWS / WAIT_S,
    }


SPAN = "span.txt"


class StandInActor(EmbedActor):
    """The model's stage with a forward pass that waits and computes nothing."""

    def __init__(self, settings: ActorSettings) -> None:
        super().__init__(settings)
        self._span: list[float] = []
        self._batches = 0
        model = self._model
        path = Path(settings.progress) / SPAN

        def wait(batch: Any, side: Any) -> Embeddings:
            self._span = self._span or [time.time()]
            time.sleep(WAIT_S)
            self._batches += 1
            path.write_text(json.dumps([self._span[0], time.time(), self._batches]))
            vectors = torch.ones(len(batch), model.num_vectors(side), model.embedding_dim)
            return Embeddings(vectors, torch.ones(len(batch), model.fused_dim or 1))

        model.embed = wait  # type: ignore[method-assign]


def _plain(options: argparse.Namespace) -> dict[str, float]:
    """One process that does everything in turn; the first rows warm up."""
    torch.set_num_threads(1)
    model = Embedder.from_pretrained(_export(options), device=options.device)
    begin, end = _size(options).marks
    done, began, began_wall = 0, 0.0, 0.0
    for rows in _windows(model, _rows(options)):
        for chosen in cut_batches(*_sizes(rows, model), LIMITS):
            made = model.embed(model.batch([rows[i] for i in chosen], "document"), "document")
            made.cpu().vectors.half().numpy()
        done += len(rows)
        if done == begin:
            began, began_wall = time.process_time(), time.monotonic()
        if done == end:
            break
    return {
        "cpu_s_per_row": (time.process_time() - began) / (end - begin),
        "rows_per_s": (end - begin) / (time.monotonic() - began_wall),
    }


def _ours(options: argparse.Namespace) -> dict[str, float]:
    """The job, all processes: what a long run takes above a short one, for each row of it."""
    few, many = _size(options).marks
    used, walls, named = [], [], []
    with _quiet_cluster():
        meter = CpuMeter()
        stop = _sampling(meter)
        for rows in (few, few, many):  # the first one warms up
            before, names, began = *_spent(meter), time.monotonic()
            out = Path(options.folder) / f"ours-{time.time_ns()}"
            result = _embed(options, f"rows-{rows}", out)
            walls.append(time.monotonic() - began)
            after, later = _spent(meter)
            used.append(after - before)
            named.append({n: s - names.get(n, 0.0) for n, s in later.items()})
        stop.set()
    more = {name: (s - named[1].get(name, 0.0)) / (many - few) for name, s in named[2].items()}
    for name, seconds in sorted(more.items(), key=lambda entry: -entry[1])[:LARGEST]:
        print(f"  {name}: {seconds:.5f} CPU-s per row", file=sys.stderr)
    return {
        "cpu_s_per_row": (used[2] - used[1]) / (many - few),
        "rows_per_s": (many - few) / (walls[2] - walls[1]),
        "actor_utilisation": result["actor_utilisation"],
        "whole_job_s": walls[2],
    }


def _spent(meter: CpuMeter) -> tuple[float, dict[str, float]]:
    """CPU-seconds so far, of all processes and by their names."""
    with READING:
        return meter.read(), meter.by_name(meter.by_process())


def _sampling(meter: CpuMeter) -> threading.Event:
    """Keep an eye on processes that end between two reads; set the event to stop."""
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_S):
            with READING:
                meter.read()

    threading.Thread(target=sample, daemon=True).start()
    return stop


def _st(options: argparse.Namespace) -> dict[str, float]:
    from peers.st_embedding import bank_encoder, encode_items

    model = Embedder.from_pretrained(_export(options), device=options.device)
    peer = bank_encoder(model, options.device)
    return _timed(options, lambda data: encode_items(peer, data, BATCH_ROWS))


def _st_stock(options: argparse.Namespace) -> dict[str, float]:
    from peers.st_embedding import encode_stock
    from peers.st_training import stock_encoder

    copy = Path(options.folder) / f"stock-{time.time_ns()}"
    peer = stock_encoder(Path(options.base), copy, options.device)
    return _timed(options, lambda data: encode_stock(peer, data, BATCH_ROWS))


def _timed(options: argparse.Namespace, encode: Callable[[Path], Any]) -> dict[str, float]:
    """Rows per second over all files, every core allowed, after a warm-up on the stand-in's."""
    torch.set_num_threads(os.cpu_count() or 1)
    first = sorted(_data(options, "stand-in").glob("*.parquet"))[0]
    encode(first)
    began = time.monotonic()
    made = encode(_rows(options))
    return {"rows_per_s": len(made) / (time.monotonic() - began)}


def _bare(options: argparse.Namespace) -> dict[str, float]:
    """The forward pass alone, batches ready in memory."""
    model = Embedder.from_pretrained(_export(options), device=options.device)
    batches = [
        model.batch([rows[i] for i in chosen], "document")
        for rows in _windows(model, _rows(options))
        for chosen in cut_batches(*_sizes(rows, model), LIMITS)
    ]
    model.embed(batches[0], "document").cpu()
    began = time.monotonic()
    for batch in batches:
        model.embed(batch, "document").cpu()
    return {"rows_per_s": sum(map(len, batches)) / (time.monotonic() - began)}


def _memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peaks of a job whose stages may hold little."""
    settings = SETTINGS.model_copy(update={"buffer_bytes": _size(options).buffer})
    name = f"memory-{options.scale}"
    with _quiet_cluster(), watched() as memory:
        _embed(options, name, Path(options.folder) / f"out-{name}", settings)
    return {
        "rows": options.scale * _size(options).memory,
        "driver": round(memory.driver, 1),
        "worker": round(memory.worker, 1),
        "object_store": round(memory.object_store, 1),
        "workers": {name: round(held, 1) for name, held in sorted(memory.workers.items())},
    }


def _padding(options: argparse.Namespace) -> dict[str, float]:
    """Padding in the order given and grouped by length, and real tokens per CPU-second of each."""
    torch.set_num_threads(1)
    model = Embedder.from_pretrained(_export(options), device=options.device)
    spent, tokens, padded = [0.0, 0.0], 0, [0.0, 0.0]
    done = 0
    for rows in _windows(model, _rows(options)):
        lengths, patches = _sizes(rows, model)
        given = [
            list(range(start, min(start + BATCH_ROWS, len(rows))))
            for start in range(0, len(rows), BATCH_ROWS)
        ]
        for which, batches in enumerate((given, cut_batches(lengths, patches, LIMITS))):
            padded[which] += sum(lengths) / (1 - padding_share(lengths, batches))
            began = time.process_time()
            for chosen in batches:
                model.embed(model.batch([rows[i] for i in chosen], "document"), "document")
            spent[which] += time.process_time() - began
        tokens += sum(lengths)
        done += len(rows)
        if done >= _size(options).padding:
            break
    return {
        "before": round(1 - tokens / padded[0], 4),
        "after": round(1 - tokens / padded[1], 4),
        "tokens_per_s_gain": round(spent[0] / spent[1], 3),
        "rows": done,
    }


ARMS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "stand_in": _stand_in,
    "plain": _plain,
    "ours": _ours,
    "st": _st,
    "st_stock": _st_stock,
    "bare": _bare,
    "memory": _memory,
    "padding": _padding,
}


def _apart(arm: str, options: argparse.Namespace, *, scale: int = 1) -> dict[str, Any]:
    """Runs an arm in a process of its own; says how it went."""
    command = [sys.executable, __file__, "--arm", arm, "--folder", str(options.folder)]
    command += ["--scale", str(scale), "--device", options.device, "--base", str(options.base)]
    command += ["--quick"] if options.quick else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"the arm {arm} failed with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{arm}: {found}", file=sys.stderr, flush=True)
    return found


def _embed(
    options: argparse.Namespace, data: str, out: Path, settings: EmbedSettings = SETTINGS
) -> dict[str, Any]:
    gpus = {"gpus_per_actor": 1.0} if options.device == "cuda" else {}
    return job.embed(
        model=_export(options),
        data=_data(options, data),
        out=out,
        settings=settings.model_copy(update=gpus),
    )


def _quiet_cluster() -> Any:
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    return connect([])


def _windows(model: Embedder, data: Path) -> Iterator[list[EncodedRow]]:
    """Read, decode and tokenise, a window at a time."""
    held: list[EncodedRow] = []
    for unit in list_data(data, rows="items"):
        for batch in read_data(unit):
            for item in items_from_table(batch):
                held.append(model.row_encoder.encode(item, "document"))
                if len(held) == WINDOW_ROWS:
                    yield held
                    held = []
    if held:
        yield held


def _sizes(rows: list[EncodedRow], model: Embedder) -> tuple[list[int], list[int]]:
    meta = model.num_vectors("document")
    return [len(row.input_ids) + meta for row in rows], [len(row.pixels) for row in rows]


def _size(options: argparse.Namespace) -> Size:
    return QUICK if options.quick else FULL


def _data(options: argparse.Namespace, name: str) -> Path:
    return Path(options.folder) / "data" / name


def _rows(options: argparse.Namespace) -> Path:
    return _data(options, f"rows-{_size(options).marks[1]}")


def _export(options: argparse.Namespace) -> Path:
    return Path(options.folder) / "export"


def _actors(out: Path) -> Path:
    return Staging.of(out).actors


def _markdown(result: dict[str, Any], options: argparse.Namespace) -> str:
    """The file benchmarks/results/embedding.md."""
    rounds, size = result["rounds"], _size(options)
    median = {
        arm: {key: statistics.median(r[key] for r in found) for key in found[0]}
        for arm, found in rounds.items()
    }
    stand_in, padding, memory = result["stand_in"], result["padding"], result["memory_mib"]
    speed = [["arm", "rows/s", "CPU-s per row"]]
    for arm, found in median.items():
        cost = found.get("cpu_s_per_row")
        speed.append([arm, f"{found['rows_per_s']:.1f}", f"{cost:.5f}" if cost else "-"])
    held = [["private MiB, peak", *(f"{m['rows']} rows" for m in memory)]]
    held += [[name, *(str(m[name]) for m in memory)] for name in ("driver", "object_store")]
    kinds = sorted(set(memory[0]["workers"]) | set(memory[1]["workers"]))
    held += [[kind, *(str(m["workers"].get(kind, "-")) for m in memory)] for kind in kinds]
    flags = " --quick" if options.quick else ""
    names = ("ray", "transformers", "sentence-transformers", "pyarrow")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    lines = [
        "# embedding: beside a bare loop, a plain process and sentence-transformers",
        "",
        f"{time.strftime('%Y-%m-%d')}, {result['machine']}, {versions}:",
        f"`python benchmarks/embedding.py{flags}` ({size.rounds} rounds in turn, medians of the "
        f"rounds' ratios; {size.marks[1]} rows of a mixed corpus, batches of "
        f"{BATCH_ROWS}, windows of {WINDOW_ROWS})",
        "",
        f"- **Stand-in** ({WAIT_S} s a batch, no core): {stand_in['rows_per_s']:.1f} of "
        f"{stand_in['bare_rows_per_s']:.1f} rows/s, **{result['over_stand_in']:.3f}** "
        "(target: at least 0.92).",
        f"- **CPU-seconds per row** over one plain process: **"
        f"{result['cpu_s_per_row_over_plain']:.3f}** (target: at most 1.10).",
        f"- **Rows per second over sentence-transformers' encode**: **{result['over_st']:.3f}** "
        f"on equal work, {result['over_st_stock']:.3f} over its own model of the same base, which "
        "has no meta tokens (target: above 1).",
        f"- **Peaks at 4x the rows over those at 1x**: **{result['memory_4x_over_1x']:.3f}** "
        f"({result['memory_grown']}; target: at most 1.10); {size.buffer // 2**20} MiB may wait "
        "between stages.",
        f"- **Length grouping**: padding {padding['before']:.1%} before, {padding['after']:.1%} "
        f"after; real tokens per second x{padding['tokens_per_s_gain']:.2f}.",
        *(
            [f"- **Over the bare forward**: {result['over_bare_forward']:.3f} (target: 0.92)."]
            if "over_bare_forward" in result
            else []
        ),
        "",
        *_table(speed),
        "",
        *_table(held),
        "",
        "`ours` is what a run over all rows takes above one over the first ones: every process, "
        "Ray's daemons and the finishing of the shards too, but for starting and loading.",
    ]
    return "\n".join(lines) + "\n"


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
    parser.add_argument("--base", default=str(BASE), help="base model of random heads")
    parser.add_argument("--markdown", help="also write the results to this file")
    for hidden in ("--arm", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--scale", type=int, default=1, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
