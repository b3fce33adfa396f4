"""What each training process does: restore, take the plan's next batch, step, save, export.

Feeds `Training` (middle floor), which holds the model and the maths. Before every step the
processes agree whether to go on, so that a request to stop or a refused row ends all of them at the
same step. Top floor.
"""

import json
import os
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.train
import ray.train.collective
import ray.train.torch
import torch
import torch.distributed as dist

from rematch_ray.collectives import rank, world_size
from rematch_ray.config import RunConfig
from rematch_ray.data.collate import collate_train, encode_samples
from rematch_ray.data.rows import RowEncoder
from rematch_ray.data.schema import samples_from_table
from rematch_ray.model.checkpoint import build_row_encoder
from rematch_ray.model.settings import ModelSettings
from rematch_ray.training.step import Training
from rematch_ray.workloads.run_directory import RunDirectory
from rematch_ray.workloads.stream import RankStep, TrainingData, batches, rank_steps, split

GO_ON, STOP, REFUSE = 0, 1, 2
STATE, TRAINER = "state", "trainer.json"


class EncodeSamples:
    """The stream's encode stage: samples of a rank-step -> what `collate_train` reads.

    Args:
        settings: of the model; its processors are loaded once per process.
        max_negatives: hard negatives taken per row.
        seed: with the step's index it fixes which ones.
    """

    def __init__(self, settings: ModelSettings, *, max_negatives: int, seed: int) -> None:
        self._settings = settings.model_dump_json()
        self._max_negatives = max_negatives
        self._seed = seed

    def __call__(self, tables: list[pa.Table], index: int) -> pa.Table:
        """Encode the rows of all sub-batches, in order."""
        samples = [sample for table in tables for sample in samples_from_table(table)]
        return encode_samples(
            _row_encoder(self._settings),
            samples,
            max_negatives=self._max_negatives,
            seed=self._seed,
            step=index,
        )


@lru_cache(maxsize=1)
def _row_encoder(settings: str) -> RowEncoder:
    parsed = ModelSettings.model_validate_json(settings)
    return build_row_encoder(parsed.base, parsed)


def train_rank(config: dict[str, Any]) -> dict[str, Any]:
    """Train on one rank until the run's last step; Ray Train calls it in every process.

    Args:
        config: `run` (RunConfig) and `data` (TrainingData).

    Returns:
        From rank 0: steps done, last metrics and export, or `refused` with the reason.
    """
    run, data = config["run"], config["data"]
    torch.manual_seed(run.seed)
    directory = RunDirectory(run.directory)
    device = ray.train.torch.get_device()
    training = Training.build(
        run.model,
        run.objective,
        run.optimisation,
        device=device,
        total_steps=run.train.steps,
        seed=run.seed,
        name=run.name,
    )
    start = _restore(training, data)
    _announce(directory, start)
    metrics: dict[str, float] = {}
    done = start
    for batch in _stream(run, data, start) if start < run.train.steps else ():
        verdict, reason = _agree(directory, batch, device)
        if verdict == REFUSE:
            return {"refused": reason}
        if verdict == STOP:
            break
        started = time.perf_counter()
        metrics = training.step(collate_train(batch.table).to(device))
        done = batch.index + 1
        if rank() == 0:
            directory.log(_record(run, batch, metrics, time.perf_counter() - started))
        if done % run.train.checkpoint_every == 0 or done == run.train.steps:
            _save(training, run, data, done, metrics)
    if done < run.train.steps:
        _save(training, run, data, done, metrics)
        return {"stopped": True, "steps": done}
    return _export(training, run, done, metrics)


def _restore(training: Training, data: TrainingData) -> int:
    """Load the last checkpoint, if any, and return the step to go on with."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    folder = Path(checkpoint.path)
    saved = json.loads((folder / TRAINER).read_text())
    if saved["plan"] != data.plan.digest:
        raise RuntimeError(
            f"{folder} was made on other data or another order of it (plan {saved['plan'][:12]}, "
            f"now {data.plan.digest[:12]}); put the data back, or train under another name"
        )
    training.load(folder / STATE)
    return int(saved["index"])


def _announce(directory: RunDirectory, start: int) -> None:
    """Log which processes work, and forget the steps that are about to be done again."""
    mine = {"rank": rank(), "pid": os.getpid(), "node": ray.util.get_node_ip_address()}
    workers: list[dict[str, Any]] = [mine] * world_size()
    if world_size() > 1:
        dist.all_gather_object(workers, mine)
    if rank() == 0:
        directory.forget_steps_from(start)
        directory.log({"event": "start", "from_step": start, "workers": workers})


def _stream(run: RunConfig, data: TrainingData, start: int) -> Iterator[RankStep]:
    """Open the stream from `start`: rank 0 makes the dataset, every rank reads its split."""
    iterators = None
    if rank() == 0:
        encode = EncodeSamples(run.model, max_negatives=run.data.max_negatives, seed=run.seed)
        dataset = rank_steps(
            data,
            encode,
            start=start,
            stop=run.train.steps,
            world_size=world_size(),
            encoder_cpus=run.train.cpus_per_encoder,
        )
        iterators = split(dataset, world_size())
    iterators = ray.train.collective.broadcast_from_rank_zero(iterators)
    return batches(
        iterators[rank()],
        data.plan,
        start=start,
        stop=run.train.steps,
        rank=rank(),
        prefetch=run.train.prefetch_steps,
    )


def _agree(directory: RunDirectory, batch: RankStep, device: torch.device) -> tuple[int, str]:
    """Return what all ranks do next: the gravest wish of any of them, and its reason."""
    wish = REFUSE if batch.error else GO_ON
    if not wish and rank() == 0 and directory.stop_asked():
        wish = STOP
    if world_size() == 1:
        return wish, batch.error
    gravest = torch.tensor(wish, device=device)
    dist.all_reduce(gravest, op=dist.ReduceOp.MAX)
    verdict = int(gravest.item())
    if verdict != REFUSE:
        return verdict, ""
    reasons = [""] * world_size()
    dist.all_gather_object(reasons, batch.error)
    return REFUSE, next(reason for reason in reasons if reason)


def _record(
    run: RunConfig, batch: RankStep, metrics: dict[str, float], step_s: float
) -> dict[str, Any]:
    return {
        "event": "step",
        "step": batch.index,
        "epoch": batch.epoch,
        "pairs": run.data.order.global_batch,
        "seconds": round(step_s + batch.waited_s, 4),
        "waited": round(batch.waited_s, 4),
        "metrics": {name: round(float(value), 6) for name, value in metrics.items()},
    }


def _save(
    training: Training, run: RunConfig, data: TrainingData, done: int, metrics: dict[str, float]
) -> None:
    """Write a checkpoint where it stays (all ranks write their part) and report it."""
    name = f"checkpoint_{done:07d}"
    folder = run.directory / name
    training.save(folder / STATE)
    if rank() == 0:
        epoch, step = divmod(done, data.plan.steps_per_epoch)
        position = {
            "index": done,
            "epoch": epoch,
            "step": step,
            "plan": data.plan.digest,
            "seed": run.seed,
            "strategy": "ddp",
            "world_size": world_size(),
        }
        (folder / TRAINER).write_text(json.dumps(position, indent=1) + "\n")
    ray.train.report(
        {"step": done, **metrics},
        checkpoint=ray.train.Checkpoint(str(folder)),
        checkpoint_dir_name=name,
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
    )


def _export(
    training: Training, run: RunConfig, done: int, metrics: dict[str, float]
) -> dict[str, Any]:
    """Write `last/` and `best/` on rank 0; without validation the last weights are the best."""
    result = {"steps": done, "directory": str(run.directory), "metrics": metrics}
    for name in ("last", "best"):
        training.export(run.directory / name)
    return result
