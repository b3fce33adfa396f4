"""Text queries through the service beside encoding and searching in one process, same batches."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from load.bodies import text_bodies
from load.driver import LoadGenerator
from shapes.served_corpus import Served

from arms.in_process import encoded_searches
from rematch_ray.model.embedder import Embedder

BATCHES = (1, 8, 16)
BUDGET = "16x64"
# as many requests again wait while a batch is computed: the next one is full when it begins
AHEAD = 2
WARM_S = 0.5


@dataclass(frozen=True)
class Texts:
    """Queries a second at one batch size, medians over the rounds.

    Attributes:
        batch: texts encoded together, at most.
        own_per_s: of the in-process loop, one thread.
        own_threads_per_s: of the same loop with torch on all cores.
        per_s: of the service, twice as many requests under way as a batch holds.
        ms: median of a request then.
    """

    batch: int
    own_per_s: float
    own_threads_per_s: float
    per_s: float
    ms: float

    @property
    def share(self) -> float:
        """Throughput over that of the better in-process loop."""
        return self.per_s / max(self.own_per_s, self.own_threads_per_s)


def measure_texts(
    generator: LoadGenerator,
    served: Served,
    folder: Path,
    *,
    threads: int,
    rounds: int,
    seconds: float,
    batches: Sequence[int] = BATCHES,
) -> list[Texts]:
    """Measures every batch size; the service is up and takes batches of the largest."""
    index = served.open()
    model = Embedder.from_pretrained(served.model, device="cpu").eval()
    bodies = text_bodies(folder / "texts.jsonl", served.texts, budget=BUDGET)
    results = []
    for batch in batches:
        generator.closed(bodies, concurrency=AHEAD * batch, seconds=WARM_S)
        turns: dict[str, list[float]] = {"one": [], "all": [], "service": [], "ms": []}
        for _ in range(rounds):
            for name, used in (("one", 1), ("all", threads)):
                torch.set_num_threads(used)
                loop = encoded_searches(
                    model, index, served.texts, batch=batch, seconds=seconds, budget=BUDGET
                )
                turns[name].append(loop.per_s)
            load = generator.closed(bodies, concurrency=AHEAD * batch, seconds=seconds)
            if load.failed or load.refused:
                raise RuntimeError(f"{load.failed + load.refused} text queries had no result")
            turns["service"].append(load.per_s)
            turns["ms"].append(load.ms())
        middle = {name: statistics.median(values) for name, values in turns.items()}
        results.append(Texts(batch, middle["one"], middle["all"], middle["service"], middle["ms"]))
    return results


def text_table(results: Sequence[Texts]) -> list[list[str]]:
    """Rows for people."""
    head = ["batch", "in-process/s, 1 thread", "all threads", "service/s", "share", "p50 ms"]
    rows = [head]
    for one in results:
        rates = [one.own_per_s, one.own_threads_per_s, one.per_s]
        cells = [f"{rate:.1f}" for rate in rates]
        rows.append([str(one.batch), *cells, f"{one.share:.2f}", f"{one.ms:.1f}"])
    return rows
