"""Training on Ray Train: N processes over the plan, checkpoints, restart from failure, export.

The driver opens the run directory, starts the processes and shows their progress; each process
runs `train_rank`, which feeds the plan's batches to `Training` and knows no maths. Top floor.
"""

import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from rematch_ray.config import RunConfig
from rematch_ray.data.demo import write_demo
from rematch_ray.data.order import Plan
from rematch_ray.errors import UserError
from rematch_ray.model.starting import check_base
from rematch_ray.training.strategies import check_installed, check_strategy
from rematch_ray.workloads import validation
from rematch_ray.workloads.resuming import check_start
from rematch_ray.workloads.run_directory import CheckpointError, RunDirectory
from rematch_ray.workloads.runtime import Background, Bundle, connect
from rematch_ray.workloads.stream import TrainingData, open_data
from rematch_ray.workloads.tracking import refuse_missing
from rematch_ray.workloads.watch import Watch

POLL_SECONDS = 0.5
STEPS_SHOWN = 20
ELASTIC_WAIT_S = "30"


def train(run: RunConfig) -> dict[str, Any]:
    """Train a run to its end, going on from its last checkpoint if it was interrupted.

    Args:
        run: the checked configuration.

    Returns:
        What `result.json` holds: run directory, export, steps, last metrics, seconds.

    Raises:
        UserError: data, configuration or cluster do not allow the run; nothing was started.
        CheckpointError: checkpoints could not be written; the last good one stands.
        RuntimeError: the workers failed more often than `train.max_failures` allows.
    """
    if run.data.demo is not None:
        demo = run.data.demo
        write_demo(demo.out.absolute(), sources=demo.corpora, quick=demo.quick)
    refuse_missing(run.track)
    _check_strategy(run)
    data = open_data(run.data, run.seed)
    if run.validation is not None:
        validation.check_sets(run.validation)
    directory = RunDirectory(run.directory)
    finished = directory.result(run)
    if finished is not None:
        _say(f"run {run.name} is finished ({finished['steps']} steps): {run.directory}")
        return {**finished, "skipped": True}
    if not os.environ.get("RAY_ADDRESS"):
        check_base(run.model.base)  # on a cluster its nodes may see what this one does not
    if not directory.has_begun():
        check_start(run)
    if run.train.min_workers < run.train.max_workers:
        # just after a node is gone Ray still counts on it, and waits so long before it counts anew
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", ELASTIC_WAIT_S)
    with connect(_bundles(run)) as is_own_cluster:
        if idle := idle_line(run.train.max_workers, data.plan):
            _say(idle)
        if others := directory.open(run):
            _say(others)
        trainer = LocalTrainer if is_own_cluster else TorchTrainer
        return _fit(_with_absolute_paths(run), data, directory, trainer)


def _with_absolute_paths(run: RunConfig) -> RunConfig:
    """Training processes run in a directory of their own: relative paths would lead nowhere.

    The run directory keeps the paths as given: a job that is submitted again has its working
    directory elsewhere, and is the same run.
    """
    base = Path(run.model.base)
    if not base.is_absolute() and base.exists():
        model = run.model.model_copy(update={"base": str(base.absolute())})
        run = run.model_copy(update={"model": model})
    if run.validation is not None:
        found = validation.with_absolute_paths(run.validation)
        run = run.model_copy(update={"validation": found})
    if run.train.start_from is not None:
        start = run.train.start_from.expanduser().absolute()
        run = run.model_copy(update={"train": run.train.model_copy(update={"start_from": start})})
    return run.model_copy(update={"storage": run.storage.expanduser().absolute()})


def _check_strategy(run: RunConfig) -> None:
    """Refuse what the strategy cannot do, or does not find installed, before anything starts."""
    settings = run.train
    check_strategy(
        run.strategy,
        run.model,
        run.optimisation,
        elastic=settings.min_workers < settings.max_workers,
        in_background=settings.async_checkpoints,
    )
    check_installed(run.strategy)


def _bundles(run: RunConfig) -> list[Bundle]:
    settings = run.train
    return [
        Bundle(
            "training process",
            settings.cpus_per_worker,
            settings.gpus_per_worker,
            settings.min_workers,
            "train.num_workers, train.cpus_per_worker or train.gpus_per_worker",
        ),
        Bundle("data task", settings.cpus_per_encoder, key="train.cpus_per_encoder"),
        *validation.bundles(run),
    ]


class LocalTrainer(TorchTrainer):
    """`TorchTrainer` on a cluster that ends with this program.

    Elsewhere a process of Ray Train asks the cluster's dashboard once a second whether the
    controller lives, to free its workers' room if it does not: here nobody is left to use it.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        return [one for one in callbacks if type(one).__name__ != "PlacementGroupCleanerCallback"]


def _fit(
    run: RunConfig, data: TrainingData, directory: RunDirectory, trainer: type[TorchTrainer]
) -> dict[str, Any]:
    """Run `TorchTrainer.fit` in a thread, so that Ctrl-C reaches us and not Ray's own handler."""
    started = time.time()
    progress, watch = Progress(run, directory), Watch(run, directory)
    fit = Background(_trainer(run, data, trainer).fit, "train")
    try:
        _follow(fit, progress, watch)
    except KeyboardInterrupt:
        if progress.steps_seen():  # otherwise there is nothing to save, and a start-up to wait for
            _say(f"stopping: saving after this step; {progress.standing()}; again to stop at once")
            directory.ask_to_stop()
            _follow(fit, progress, watch)
        raise
    try:
        returned = fit.result().return_value
    except ray.train.TrainingFailedError as error:
        raise RuntimeError(failure_line(run, error)) from error
    return _outcome(run, directory, returned, time.time() - started)


def _follow(fit: Background[Any], progress: "Progress", watch: Watch) -> None:
    """Show progress until the fit has ended."""
    while not fit.wait(POLL_SECONDS):
        progress.show()
        watch.look()
    progress.show(last=True)
    watch.close()


def _outcome(
    run: RunConfig, directory: RunDirectory, returned: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Turn what the training processes returned into the run's result, or into an error."""
    if returned.get("refused"):
        raise UserError(
            f"run {run.name} stopped at step {returned['steps']}: {returned['refused']}"
        )
    if returned.get("unsaved"):
        raise CheckpointError(
            f"run {run.name} stopped at step {returned['steps']}: its checkpoints cannot be "
            f"written ({returned['unsaved']}); step {returned['saved']} is saved: make room in "
            f"{run.storage} and give the same command to go on"
        )
    if returned.get("stopped"):
        _say(f"stopped at step {returned['steps']}; the same command goes on: {run.directory}")
        return {**returned, "directory": str(run.directory), "skipped": False}
    validation.settle_best(run)
    result = {**returned, "directory": str(run.directory), "seconds": round(seconds, 1)}
    directory.finish(result)
    _say(f"finished: {run.directory / 'best'}")
    return {**result, "skipped": False}


def _trainer(run: RunConfig, data: TrainingData, trainer: type[TorchTrainer]) -> TorchTrainer:
    from rematch_ray.workloads.loop import train_rank

    settings = run.train
    resources = {"CPU": settings.cpus_per_worker, "GPU": settings.gpus_per_worker}
    return trainer(
        train_rank,
        train_loop_config={"run": run, "data": data},
        validation_config=validation.ray_settings(run),
        torch_config=TorchConfig(timeout_s=int(settings.collective_timeout_seconds)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.num_workers,
            elastic_resize_monitor_interval_s=settings.resize_seconds,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker={kind: n for kind, n in resources.items() if n},
        ),
        run_config=ray.train.RunConfig(
            name=run.name,
            storage_path=str(run.storage),
            failure_config=ray.train.FailureConfig(
                max_failures=settings.max_failures,
                max_preemption_failures=settings.max_preemptions,
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=settings.keep_checkpoints),
        ),
    )


class Progress:
    """Shows what the training processes log: what happened, and a line every few seconds."""

    def __init__(self, run: RunConfig, directory: RunDirectory) -> None:
        self._run = run
        self._log = directory.metrics
        self._tail = directory.tail()
        self._shown_at = 0.0
        self._steps: deque[dict[str, Any]] = deque(maxlen=STEPS_SHOWN)
        self._events = self._said = 0
        self._checkpoint = ""
        self._new_steps = False
        self._read()
        self._has_steps = self._new_steps = False

    def show(self, *, last: bool = False) -> None:
        """Print what happened, and how far the run is when that is due."""
        if not last and time.monotonic() - self._shown_at < self._run.train.progress_seconds:
            return
        for line in self._read():
            _say(line)
        if self._new_steps:
            _say(step_line(list(self._steps), self._run.train.steps))
            self._new_steps = False
        self._shown_at = time.monotonic()

    def steps_seen(self) -> bool:
        """Whether this run has done a step since it was started."""
        self.show(last=True)
        return self._has_steps

    def standing(self) -> str:
        """Say what is saved by now."""
        if not self._checkpoint:
            return "nothing is saved until then"
        return f"until then {self._checkpoint} stands"

    def _read(self) -> list[str]:
        """Take in what is new in the log; return lines about events that were not said yet."""
        news = self._tail.read()
        for number in news.damaged:
            _say(f"{self._log}: line {number} is no record, it was half written: left out")
        if news.anew:  # the workers were restarted: all events come again
            self._events, self._checkpoint = 0, ""
            self._steps.clear()
        lines = []
        for record in news.records:
            if record["event"] == "step":
                self._steps.append(record)
                self._has_steps = self._new_steps = True
            elif record["event"] == "checkpoint":
                self._checkpoint = record["name"]
            elif record["event"] in ("start", "note"):
                self._events += 1
                if record["event"] == "start":  # steps before it are not this group's
                    self._has_steps = self._new_steps = False
                if self._events > self._said:
                    lines.append(start_line(record) if "workers" in record else record["text"])
        self._said = max(self._said, self._events)
        return lines


def failure_line(run: RunConfig, error: ray.train.TrainingFailedError) -> str:
    """Return one line: which ranks failed, each with the last line of its error."""
    ranks = getattr(error, "worker_failures", {})
    shown = "; ".join(f"rank {n}: {_last_line(failure)}" for n, failure in sorted(ranks.items()))
    return (
        f"run {run.name} failed, with {run.train.max_failures} restarts allowed "
        f"({shown or _last_line(error)}); the same command goes on from the last checkpoint"
    )


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def idle_line(workers: int, plan: Plan) -> str:
    """Say how much of the workers' time goes into masked rows; "" when they divide a step."""
    dealt, most = plan.sub_batches_per_step, -(-plan.sub_batches_per_step // workers)
    if dealt % workers == 0:
        return ""
    return (
        f"{workers} workers share {dealt} sub-batches a step: {1 - dealt / (workers * most):.0%} "
        "of their places hold masked rows; a number that divides them wastes none"
    )


def start_line(record: dict[str, Any]) -> str:
    """Return the line that says which processes work, on which nodes, and from which step."""
    several = len({w.get("node") for w in record["workers"]}) > 1
    workers = ", ".join(
        f"rank {w['rank']} pid {w['pid']}" + several * f" on {w.get('node')}"
        for w in record["workers"]
    )
    return f"training from step {record['from_step']}: {workers}"


def step_line(steps: Sequence[dict[str, Any]], total: int) -> str:
    """Return the line of progress: last losses, speed over the last steps, time left."""
    latest = steps[-1]
    recent = steps[-STEPS_SHOWN:]
    seconds = statistics.median(r["seconds"] for r in recent)
    left = (total - 1 - latest["step"]) * seconds
    losses = "  ".join(
        f"{name} {value:.3f}"
        for name, value in latest["metrics"].items()
        if name.startswith("loss")
    )
    return (
        f"step {latest['step'] + 1}/{total}  epoch {latest['epoch']}  {losses}  "
        f"{latest['pairs'] / seconds:.1f} pairs/s  {int(left // 60)}:{int(left % 60):02d} left"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
