"""What each training process does: restore, take the plan's next batch, step, save, export.

Feeds `Training` (middle floor), which holds the model and the maths. Before every step the
processes agree whether to go on, so that a request to stop or a refused row ends all of them at the
same step. Top floor.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.collective
import ray.train.torch
import torch
import torch.distributed as dist

from rematch_ray.collectives import rank, world_size
from rematch_ray.config import RunConfig
from rematch_ray.data.samples import TrainBatch
from rematch_ray.training.step import Training
from rematch_ray.workloads.run_directory import RunDirectory
from rematch_ray.workloads.stages import EncodeSamples
from rematch_ray.workloads.stream import RankStep, TrainingData, batches, rank_steps, split

REASONS_KEPT = 3
STATE, TRAINER = "state", "trainer.json"


def train_rank(config: dict[str, Any]) -> dict[str, Any]:
    """Train on one rank until the run's last step; Ray Train calls it in every process.

    Args:
        config: `run` (RunConfig) and `data` (TrainingData).

    Returns:
        `steps` done, `metrics` of the last one, `bad_rows`; `refused` with a reason when the data
        or the loss does not allow to go on, `stopped` when somebody asked for it.
    """
    run, data = config["run"], config["data"]
    directory = RunDirectory(run.directory)
    training = Training.build(
        run.model,
        run.objective,
        run.optimisation,
        seed=run.seed,
        total_steps=run.train.steps,
        device=ray.train.torch.get_device(),
        name=run.name,
    )
    start = done = _restore(training, data)
    _announce(directory, start)
    metrics: dict[str, float] = {}
    accepted = BadRows(run, data)
    for given in _stream(run, data, start):
        started = time.perf_counter()
        batch = None if given.table is None else training.collate(given.table, step=given.index)
        wish = _agree(directory, given, batch, training.device)
        refusal = wish.error or accepted.refuses(given, wish)
        if refusal:
            return {"refused": refusal, "steps": done}
        if wish.stop or batch is None:
            break
        try:
            metrics = training.step(batch)
        except FloatingPointError as error:  # the same on every rank: the loss is a mean over them
            return {"refused": str(error), "steps": done}
        done = given.index + 1
        if rank() == 0:
            directory.log(_record(run, given, wish, metrics, time.perf_counter() - started))
        if done % run.train.checkpoint_every == 0 or done == run.train.steps:
            _save(training, run, data, done, metrics)
    if done < run.train.steps:
        _save(training, run, data, done, metrics)
        return {"stopped": True, "steps": done}
    for name in ("last", "best"):  # without validation the last weights are the best
        training.export(run.directory / name)
    return {"steps": done, "metrics": metrics, "bad_rows": accepted.total}


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
    if start == run.train.steps:
        return iter(())
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
            readers=run.train.readers,
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


@dataclass(frozen=True)
class Wish:
    """What the ranks agreed on before a step.

    Args:
        stop: somebody asked the run to stop.
        error: a rank's stream could not go on, and why; "" otherwise.
        bad_rows: rows of this step, over all ranks, that could not be encoded.
        reasons: why, for the first of them.
    """

    stop: bool
    error: str
    bad_rows: int
    reasons: tuple[str, ...]


def _agree(
    directory: RunDirectory, given: RankStep, batch: TrainBatch | None, device: torch.device
) -> Wish:
    """Tell the other ranks what happened here and return what happened anywhere."""
    errors = batch.errors if batch is not None else ()
    stop = rank() == 0 and directory.stop_asked()
    mine = (given.error, errors[:REASONS_KEPT])
    if world_size() == 1:
        return Wish(stop, given.error, len(errors), mine[1])
    counts = torch.tensor([stop, bool(given.error), len(errors)], device=device)
    dist.all_reduce(counts)
    stops, failures, bad = counts.tolist()
    if not failures and not bad:
        return Wish(bool(stops), "", 0, ())
    everybody: list[tuple[str, tuple[str, ...]]] = [mine] * world_size()
    dist.all_gather_object(everybody, mine)
    error = next((error for error, _ in everybody if error), "")
    return Wish(bool(stops), error, bad, tuple(r for _, reasons in everybody for r in reasons))


class BadRows:
    """Counts rows that could not be encoded, and says when there are too many in an epoch."""

    def __init__(self, run: RunConfig, data: TrainingData) -> None:
        self._share = run.data.max_bad_share
        self._rows = data.plan.steps_per_epoch * run.data.order.global_batch
        self._epoch = -1
        self._in_epoch = 0
        self.total = 0

    def refuses(self, given: RankStep, wish: Wish) -> str:
        """Count a step's bad rows; return the reason to stop, "" to go on."""
        if given.epoch != self._epoch:
            self._epoch, self._in_epoch = given.epoch, 0
        self._in_epoch += wish.bad_rows
        self.total += wish.bad_rows
        if self._in_epoch <= self._share * self._rows:
            return ""
        return (
            f"{self._in_epoch} of the {self._rows} training rows of epoch {given.epoch} cannot be "
            f"encoded, more than data.max_bad_share {self._share:g} allows; mend or remove them: "
            + "; ".join(wish.reasons[:REASONS_KEPT])
        )


def _record(
    run: RunConfig, given: RankStep, wish: Wish, metrics: dict[str, float], step_s: float
) -> dict[str, Any]:
    record = {
        "event": "step",
        "step": given.index,
        "epoch": given.epoch,
        "pairs": run.data.order.global_batch,
        "seconds": round(step_s + given.waited_s, 4),
        "waited": round(given.waited_s, 4),
        "metrics": {name: round(value, 6) for name, value in metrics.items()},
    }
    return {**record, "bad_rows": list(wish.reasons)} if wish.bad_rows else record


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
