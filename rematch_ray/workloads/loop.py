"""What each training process does: restore, take the plan's next batch, step, save, export.

Feeds `Training` (middle floor), which holds the model and the maths. Before every step the
processes agree whether to go on, so that a request to stop or a refused row ends all of them at the
same step. Top floor.
"""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import Any

import ray
import ray.train
import ray.train.collective
import ray.train.torch
import torch
import torch.distributed as dist

from rematch_ray.collectives import rank, world_size
from rematch_ray.config import RunConfig
from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.errors import UserError
from rematch_ray.model.heap import keep_freed_memory
from rematch_ray.training.measures import Meter, Work, WorkCounter
from rematch_ray.training.step import Training
from rematch_ray.training.strategies import precision_of
from rematch_ray.workloads.bad_rows import BadRows
from rematch_ray.workloads.checkpoints import Checkpoints
from rematch_ray.workloads.preemption import Preemption
from rematch_ray.workloads.resuming import restore
from rematch_ray.workloads.run_directory import RunDirectory
from rematch_ray.workloads.stages import EncodeSamples
from rematch_ray.workloads.stream import RankStep, TrainingData, batches, rank_steps, split

REASONS_KEPT = 3
MARK_BITS = 2**40 - 1
NO_WORK = Work()
HOW_ON = (
    "with another learning rate the same command goes on from the last checkpoint; for other rows "
    "or temperatures train on under another `name` with train.start_from (docs/training.md)"
)


def train_rank(config: dict[str, Any]) -> dict[str, Any]:
    """Train on one rank until the run's last step; Ray Train calls it in every process.

    Args:
        config: `run` (RunConfig) and `data` (TrainingData).

    Returns:
        `steps` done, `metrics` of the last one, `bad_rows`; `refused` with a reason when the data
        or the loss does not allow to go on, `stopped` when somebody asked for it, `unsaved` with a
        reason when checkpoints cannot be written, and the steps that are `saved`.
    """
    if ray.train.torch.get_device().type == "cpu":
        keep_freed_memory()
    run, data = config["run"], config["data"]
    directory = RunDirectory(run.directory)
    accepted, preemption = BadRows(run.data, data.plan), Preemption()
    try:
        training = _build(run)
        start = done = restore(training, run, data, accepted)
    except UserError as error:  # the same on every rank: a strategy, a base, a checkpoint
        return {"refused": str(error), "steps": 0}
    _announce(directory, start)
    metrics: dict[str, float] = {}
    meter = _meter(training, run)
    checkpoints = Checkpoints(training, run, data.plan, directory, accepted, start=start)
    for given in _stream(run, data, start):
        started = time.perf_counter()
        batch = None if given.table is None else training.collate(given.table, step=given.index)
        mine = Mine.of(given, batch, directory, checkpoints, preemption, meter.work(batch))
        wish = _agree(mine, training.device)
        if wish.landed:
            checkpoints.close()
        if wish.ask and (news := preemption.news()):
            _save_before(news, checkpoints, directory, done, metrics)
        if wish.error:
            return _leave(checkpoints, {"refused": wish.error, "steps": done})
        if wish.stop or checkpoints.given_up or batch is None:
            break  # before the step's bad rows are counted: a run that goes on meets them again
        if refusal := accepted.refuses(given.epoch, wish.bad_rows, wish.reasons):
            return _leave(checkpoints, {"refused": refusal, "steps": done})
        try:
            metrics = training.step(batch)
        except FloatingPointError as error:  # the same on every rank: the loss is a mean over them
            return _leave(checkpoints, {"refused": f"{error}; {HOW_ON}", "steps": done})
        done = given.index + 1
        meter.look()
        if rank() == 0:
            seconds = time.perf_counter() - started + given.waited_s
            speed = meter.speed(wish.work, seconds=seconds, waited=given.waited_s)
            directory.log(_record(run, given, wish, metrics, seconds, speed))
        if done % run.train.checkpoint_every == 0 or done == run.train.steps:
            checkpoints.begin(done, metrics)
    if checkpoints.given_up or not checkpoints.save_now(done, metrics):
        return {"unsaved": checkpoints.failure, "saved": checkpoints.last_good, "steps": done}
    if done < run.train.steps:
        return {"stopped": True, "steps": done}
    training.export(run.directory / "last")
    return {"steps": done, "metrics": metrics, "bad_rows": accepted.total}


def _meter(training: Training, run: RunConfig) -> Meter:
    """Return what measures the speed of this run's steps."""
    config = training.joint.embedder.backbone.model.config
    precision = precision_of(run.strategy, run.model)
    return Meter(WorkCounter(config, run.model), training.device, precision)


def _leave(checkpoints: Checkpoints, result: dict[str, Any]) -> dict[str, Any]:
    """Return a result once the checkpoint that is being written is whole."""
    checkpoints.close()
    return result


def _save_before(
    news: str,
    checkpoints: Checkpoints,
    directory: RunDirectory,
    done: int,
    metrics: dict[str, float],
) -> None:
    """Write a checkpoint while the nodes that are about to go are still here; then go on."""
    saved = checkpoints.save_now(done, metrics)
    if rank() == 0 and saved:
        text = f"node {news} is about to be taken away: saved after step {done}"
        directory.note(text, at=done)


def _build(run: RunConfig) -> Training:
    return Training.build(
        run.model,
        run.objective,
        run.optimisation,
        seed=run.seed,
        total_steps=run.train.steps,
        strategy=run.strategy,
        device=ray.train.torch.get_device(),
        name=run.name,
    )


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
            ahead=run.train.encode_ahead,
        )
        iterators = split(dataset, world_size())
    iterators = ray.train.collective.broadcast_from_rank_zero(iterators)
    return batches(
        iterators[rank()],
        data.plan,
        start=start,
        stop=run.train.steps,
        rank=rank(),
        world_size=world_size(),
        prefetch=run.train.prefetch_steps,
    )


@dataclass(frozen=True)
class Mine:
    """What one rank brings to the agreement before a step.

    Args:
        stop: rank 0 was asked to stop the run.
        error: why this rank's stream cannot go on; "" otherwise.
        errors: why rows of this rank's batch could not be encoded.
        landed: this rank's part of a checkpoint has come to its end.
        ask: rank 0 wants to ask whether a node is about to go.
        rows: sum of the rows' marks, see `mark_of_rows`.
        work: what this rank's batch holds.
    """

    stop: bool = False
    error: str = ""
    errors: tuple[str, ...] = ()
    landed: bool = False
    ask: bool = False
    rows: int = 0
    work: Work = NO_WORK

    @classmethod
    def of(
        cls,
        given: RankStep,
        batch: TrainBatch | None,
        directory: RunDirectory,
        checkpoints: Checkpoints,
        preemption: Preemption,
        work: Work,
    ) -> "Mine":
        """Gather it."""
        return cls(
            stop=rank() == 0 and directory.stop_asked(),
            error=given.error,
            errors=batch.errors if batch is not None else (),
            landed=checkpoints.landed,
            ask=preemption.due,
            rows=mark_of_rows(batch.query_ids.tolist()) if batch is not None else 0,
            work=work,
        )


@dataclass(frozen=True)
class Wish:
    """What the ranks agreed on before a step.

    Args:
        stop: somebody asked the run to stop.
        error: a rank's stream could not go on, and why; "" otherwise.
        bad_rows: rows of this step, over all ranks, that could not be encoded.
        reasons: why, for the first of them.
        landed: a checkpoint has come to its end on every rank.
        ask: it is time to ask whether a node is about to go.
        rows: which rows the step has, over all ranks.
        work: what the step holds, over all ranks.
    """

    stop: bool
    error: str
    bad_rows: int
    reasons: tuple[str, ...]
    landed: bool = False
    ask: bool = False
    rows: int = 0
    work: Work = NO_WORK


def _agree(mine: Mine, device: torch.device) -> Wish:
    """Tell the other ranks what happened here and return what happened anywhere."""
    flags = (mine.stop, bool(mine.error), len(mine.errors), mine.landed, mine.ask, mine.rows)
    counts = torch.tensor([*flags, *astuple(mine.work)], dtype=torch.int64, device=device)
    everybody = [(mine.error, mine.errors[:REASONS_KEPT])]
    if world_size() > 1:
        dist.all_reduce(counts)
    stops, failures, bad, landed, asks, rows, *work = counts.tolist()
    if world_size() > 1 and (failures or bad):
        everybody *= world_size()
        dist.all_gather_object(everybody, everybody[rank()])
    return Wish(
        stop=bool(stops),
        error=next((error for error, _ in everybody if error), ""),
        bad_rows=bad,
        reasons=tuple(reason for _, reasons in everybody for reason in reasons),
        landed=landed == world_size(),
        ask=bool(asks),
        rows=rows,
        work=Work(*work),
    )


def mark_of_rows(query_ids: Iterable[int]) -> int:
    """Return a number that tells which rows a step has, whoever holds them in whatever order.

    Marks of ranks add up to the mark of the step: masked rows add nothing. With 40 bits of each id
    the sum over a million rows is still exact.

    >>> mark_of_rows([7, 2**41 + 5, 0]) == mark_of_rows([5]) + mark_of_rows([7])
    True
    """
    return sum(query_id & MARK_BITS for query_id in query_ids)


def _record(
    run: RunConfig,
    given: RankStep,
    wish: Wish,
    metrics: dict[str, float],
    seconds: float,
    speed: dict[str, float | None],
) -> dict[str, Any]:
    record = {
        "event": "step",
        "step": given.index,
        "epoch": given.epoch,
        "pairs": run.data.order.global_batch,
        "rows": wish.rows,
        "seconds": round(seconds, 4),
        "waited": round(given.waited_s, 4),
        "speed": {n: None if v is None else float(f"{v:.6g}") for n, v in speed.items()},
        "metrics": {name: round(value, 6) for name, value in metrics.items()},
    }
    return {**record, "bad_rows": list(wish.reasons)} if wish.bad_rows else record
