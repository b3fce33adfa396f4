"""Our service under steady load with writes going on: what its processes hold, and how it answers.

Searches by vectors and by text (its index has no words) arrive at a rate, documents are written and
replaced beside them, which makes segments and merges. Memory without a file of every process of the
service is read once a round.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from load.bodies import text_bodies, vector_bodies
from load.driver import Load, LoadGenerator
from meters.job_memory import heap_by_title
from shapes.served_corpus import Served

from arms.service import Service

ROUND_S = 30.0
WRITES_PER_S = 1.0
WRITTEN_NAMES = 2000  # one write replaces another after so many
WARM_SHARE = 1 / 3  # of the rounds: caches fill, the first merges come


@dataclass(frozen=True)
class Round:
    """So many seconds of it.

    Attributes:
        minutes: since the start.
        searches: of these seconds.
        writes: of these seconds.
        memory: process -> MiB, without files.
    """

    minutes: float
    searches: Load
    writes: Load
    memory: Mapping[str, float]


def soaked_index(served: Served, folder: Path) -> Path:
    """A copy that may be written to."""
    path = folder / "soaked-index"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(served.index, path)
    return path


def run_soak(
    service: Service, served: Served, folder: Path, *, rate: float, minutes: float
) -> list[Round]:
    """Loads a service that is up.

    Args:
        service: over `soaked_index`.
        served: queries and texts.
        folder: for bodies.
        rate: searches a second.
        minutes: how long.
    """
    asked, written = _searches(served, folder), _writes(served, folder)
    rounds: list[Round] = []
    began = time.monotonic()
    with (
        LoadGenerator(service.port) as searcher,
        LoadGenerator(service.port) as writer,
        ThreadPoolExecutor(1) as pool,
    ):
        while (passed := time.monotonic() - began) < 60 * minutes:
            number = len(rounds)
            writing = pool.submit(
                writer.open,
                written,
                rate=WRITES_PER_S,
                seconds=ROUND_S,
                seed=number,
                skip=int(number * ROUND_S * WRITES_PER_S),
                path="/v1/documents",
            )
            searches = searcher.open(
                asked,
                rate=rate,
                seconds=ROUND_S,
                seed=number,
                skip=int(number * ROUND_S * rate),
            )
            memory = heap_by_title(service.pid)
            rounds.append(Round(passed / 60, searches, writing.result(), memory))
    return rounds


def soak_table(rounds: Sequence[Round]) -> list[list[str]]:
    """Rows for people: memory of each process, and its trend once warm."""
    warm = [one for one in rounds if one.minutes >= WARM_SHARE * rounds[-1].minutes]
    minutes = np.array([one.minutes for one in warm])
    names = sorted(rounds[-1].memory, key=lambda name: -rounds[-1].memory[name])
    table = [["process", "MiB at first", f"at {warm[0].minutes:.0f} min", "at last", "MiB/hour"]]
    for name in names:
        held = np.array([one.memory.get(name, 0.0) for one in warm])
        slope = 60 * np.polyfit(minutes, held, 1)[0] if len(warm) > 1 else float("nan")
        cells = [rounds[0].memory.get(name, 0.0), held[0], held[-1]]
        table.append([name, *(f"{mib:.0f}" for mib in cells), f"{slope:+.0f}"])
    return table


def answer_table(rounds: Sequence[Round]) -> list[list[str]]:
    """Rows for people: how each third of the time was answered."""
    table = [["minutes", "searches", "failed", "refused", "p50 ms", "p99 ms", "writes", "failed"]]
    for part in np.array_split(np.arange(len(rounds)), min(3, len(rounds))):
        some = [rounds[number] for number in part]
        searches = joined([one.searches for one in some])
        writes = joined([one.writes for one in some])
        lost = writes.failed + writes.refused
        cells = [len(searches.replies), searches.failed, searches.refused]
        table.append(
            [
                f"{some[0].minutes:.0f} to {some[-1].minutes + ROUND_S / 60:.0f}",
                *map(str, cells),
                f"{searches.ms():.0f}",
                f"{searches.ms(99):.0f}",
                str(len(writes.replies)),
                str(lost),
            ]
        )
    return table


def joined(loads: Sequence[Load]) -> Load:
    """Several as one."""
    replies = [reply for load in loads for reply in load.replies]
    return Load(replies, sum(one.seconds for one in loads), sum(one.cpu_s for one in loads))


def _searches(served: Served, folder: Path) -> Path:
    """By vectors and by text in turn, at several budgets."""
    files = [
        vector_bodies(folder / "soak-auto.jsonl", served.queries, budget="auto"),
        vector_bodies(folder / "soak-small.jsonl", served.queries, budget="2x4"),
        text_bodies(folder / "soak-text.jsonl", served.texts, budget="auto"),
    ]
    lines = [file.read_text().splitlines() for file in files]
    mixed = [line for several in zip(*lines, strict=False) for line in several]
    out = folder / "soak-searches.jsonl"
    out.write_text("\n".join(mixed) + "\n")
    return out


def _writes(served: Served, folder: Path) -> Path:
    out = folder / "soak-writes.jsonl"
    texts = served.texts
    out.write_text(
        "".join(
            json.dumps({"documents": [{"id": f"soak-{n}", "text": texts[n % len(texts)]}]}) + "\n"
            for n in range(WRITTEN_NAMES)
        )
    )
    return out
