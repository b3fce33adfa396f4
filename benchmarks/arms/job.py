"""Arms that run the embedding job: with a stand-in for the model, its costs, and its memory."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from meters.cpu import CpuMeter
from meters.job_memory import watched

from arms.setting import BATCH_ROWS, SETTINGS, SMALL, WARM_ROWS, Setting
from rematch_ray.config import EmbedSettings
from rematch_ray.model.embeddings import Embeddings
from rematch_ray.workloads import embed as job
from rematch_ray.workloads.embed_actor import ActorSettings, EmbedActor
from rematch_ray.workloads.runtime import connect
from rematch_ray.workloads.staging import Staging

WAIT_S = 0.5
SPAN = "span.txt"
LARGEST = 12  # processes listed


def stand_in(setting: Setting) -> dict[str, float]:
    """Share of the time, from the first wait to the last, that the stand-in waits."""
    job.EmbedActor = StandInActor  # type: ignore[misc]
    out = setting.folder / "stand-in"
    with _quiet_cluster():
        _embed(setting, "stand-in", out, SETTINGS)
    first, last, batches = json.loads((Staging.latest(out).actors / SPAN).read_text())
    return {
        "share": batches * WAIT_S / (last - first),
        "batches": batches,
        "rows_per_s": batches * BATCH_ROWS / (last - first),
        "bare_rows_per_s": BATCH_ROWS / WAIT_S,
    }


class StandInActor(EmbedActor):
    """The model's stage with a forward pass that waits and computes nothing."""

    def __init__(self, settings: ActorSettings) -> None:
        super().__init__(settings)
        self._span: list[float] = []
        self._batches = 0
        model = self._model
        path = settings.staging.actors / SPAN

        def wait(batch: Any, side: Any) -> Embeddings:
            self._span = self._span or [time.time()]
            time.sleep(WAIT_S)
            self._batches += 1
            path.write_text(json.dumps([self._span[0], time.time(), self._batches]))
            vectors = torch.ones(len(batch), model.num_vectors(side), model.embedding_dim)
            return Embeddings(vectors, torch.ones(len(batch), model.fused_dim or 1))

        model.embed = wait  # type: ignore[method-assign]


def ours(setting: Setting) -> dict[str, float]:
    """The job as a user with all these cores runs it: a model process on each, of one thread."""
    processes = (os.cpu_count() or 1) if setting.device == "cpu" else 1
    return _job(setting, SETTINGS.model_copy(update={"num_actors": processes}))


def one_process(setting: Setting) -> dict[str, float]:
    """The job with one model process, as the plain process is one."""
    return _job(setting, SETTINGS)


def _job(setting: Setting, settings: EmbedSettings) -> dict[str, float]:
    """All processes: what a long run takes above a short one, for each row of it."""
    few, many = setting.job
    walls: list[float] = []
    used: list[float] = []
    named: list[Mapping[str, float]] = []
    meter = CpuMeter()
    with _quiet_cluster(), meter.sampling():
        # small windows to warm up: every process that will encode has then loaded its processors
        warm = settings.model_copy(update={"window_rows": WARM_ROWS // 8})
        for rows, told in ((WARM_ROWS, warm), (few, settings), (many, settings)):
            before, began = meter.by_process(), time.monotonic()
            result = _embed(setting, f"rows-{rows}", _new(setting), told)
            walls.append(time.monotonic() - began)
            between = {p: s - before.get(p, 0.0) for p, s in meter.by_process().items()}
            used.append(sum(between.values()))
            named.append(meter.by_name(between))
    more = {name: (s - named[1].get(name, 0.0)) / (many - few) for name, s in named[2].items()}
    for name, seconds in sorted(more.items(), key=lambda entry: -entry[1])[:LARGEST]:
        print(f"  {name}: {seconds:.5f} CPU-s per row", file=sys.stderr)
    return {
        "cpu_s_per_row": (used[2] - used[1]) / (many - few),
        "rows_per_s": many / walls[2],
        "actor_utilisation": result["actor_utilisation"],
        "whole_job_s": walls[2],
    }


def memory(setting: Setting, scale: int) -> dict[str, Any]:
    """Peaks of a job whose stages may hold little, at so many times the rows."""
    settings = SMALL.model_copy(update={"buffer_bytes": setting.size.buffer})
    with _quiet_cluster(), watched() as held:
        _embed(setting, f"memory-{scale}", _new(setting), settings)
    return {
        "rows": scale * setting.size.memory,
        "driver": round(held.driver, 1),
        "worker": round(held.worker, 1),
        "object_store": round(held.object_store, 1),
        "workers": {name: round(peak, 1) for name, peak in sorted(held.workers.items())},
    }


def _embed(setting: Setting, data: str, out: Path, settings: EmbedSettings) -> dict[str, Any]:
    gpus = {"gpus_per_actor": 1.0} if setting.device == "cuda" else {}
    return job.embed(
        model=setting.export,
        data=setting.data(data),
        out=out,
        settings=settings.model_copy(update=gpus),
    )


def _new(setting: Setting) -> Path:
    return setting.folder / f"out-{time.time_ns()}"


def _quiet_cluster() -> Any:
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    return connect([])
