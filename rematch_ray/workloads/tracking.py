"""Where a run's metrics go beside its log: TensorBoard, Weights & Biases, MLflow.

One process tells the trackers, the driver: it reads the run's log, so a slow or broken tracker
never holds up a training step. A tracker that fails is named once and told no more; the log has
everything. Knows records and trackers, nothing of Ray. Top floor.
"""

import importlib.util
import json
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from rematch_ray.config import RunConfig, TrackSettings
from rematch_ray.errors import UserError
from rematch_ray.workloads.journal import replace
from rematch_ray.workloads.run_directory import flat

EXPERIMENT = "rematch-ray"
FOLDER = "tensorboard"
PARAMETER_LETTERS = 500  # that every version of MLflow takes
INSTALL = "pip install 'rematch-ray[tracking]'"


class Tracker(Protocol):
    """Something that is told numbers."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take the numbers of one step."""

    def close(self) -> None:
        """Hand over what is waiting."""


class TensorBoard:
    """Event files in the run directory; `tensorboard --logdir <run>` shows them."""

    def __init__(self, run: RunConfig, state: "TrackedSoFar") -> None:
        from tensorboardX import SummaryWriter

        folder = str(run.directory / FOLDER)
        # what another process wrote of later steps, unrecorded when it was killed, is superseded
        purge = state.next_step if state.next_step else None
        # files are named and read by the second: one of the same second would be overwritten
        suffix = f".{time.time_ns()}"
        self._writer = SummaryWriter(folder, purge_step=purge, filename_suffix=suffix)
        if not state.next_step:
            told = yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False)
            self._writer.add_text("config", f"```yaml\n{told}```", 0)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one scalar per number."""
        for name, value in metrics.items():
            self._writer.add_scalar(_plain(name), value, step)

    def close(self) -> None:
        """Write what is waiting to the disk."""
        self._writer.close()


class WeightsAndBiases:
    """A run of a Weights & Biases project, gone on with by its id."""

    def __init__(self, run: RunConfig, state: "TrackedSoFar") -> None:
        import wandb

        entity, _, project = (run.track.wandb or "").rpartition("/")
        state.ids.setdefault("wandb", uuid.uuid4().hex[:12])
        self._run = wandb.init(
            entity=entity or None,
            project=project,
            id=state.ids["wandb"],
            name=run.name,
            dir=str(run.directory),
            resume="allow",
            config=run.model_dump(mode="json"),
        )
        # its own step only goes up, and a validation ends after later steps were told
        self._run.define_metric("*", step_metric="step")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send the numbers of one step."""
        self._run.log({**metrics, "step": step})

    def close(self) -> None:
        """End the run there."""
        self._run.finish()


class MLflow:
    """A run of the MLflow experiment `rematch-ray`, gone on with by its id."""

    def __init__(self, run: RunConfig, state: "TrackedSoFar") -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=run.track.mlflow)
        if "mlflow" not in state.ids:
            found = self._client.get_experiment_by_name(EXPERIMENT)
            experiment = (
                found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
            )
            made = self._client.create_run(experiment, run_name=run.name)
            state.ids["mlflow"] = made.info.run_id
            for name, value in flat(run.model_dump(mode="json")):
                self._client.log_param(made.info.run_id, name, str(value)[:PARAMETER_LETTERS])
        self._id = state.ids["mlflow"]

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send the numbers of one step, under names that its stores accept."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        # a store of files cannot hold both `loss` and `loss/fused`
        named = {_plain(name).replace("/", "."): value for name, value in metrics.items()}
        entries = [Metric(name, float(value), now, step) for name, value in named.items()]
        self._client.log_batch(self._id, metrics=entries)

    def close(self) -> None:
        """End the run there."""
        self._client.set_terminated(self._id)


def refuse_missing(settings: TrackSettings) -> None:
    """Refuse trackers that were asked for by name and are not installed.

    Raises:
        UserError: says what to install.
    """
    for key in ("wandb", "mlflow"):
        if getattr(settings, key) is not None and importlib.util.find_spec(key) is None:
            raise UserError(f"track.{key} is set, but {key} is not installed: {INSTALL}")


class TrackedSoFar:
    """What the trackers were told, kept in the run directory so that nothing is told twice.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        known = json.loads(path.read_text()) if path.exists() else {}
        self.next_step = int(known.get("next_step", 0))
        """First step that was not told."""
        self.validated = int(known.get("validated", -1))
        """Steps done at the last validation that was told; -1 = none."""
        self.ids: dict[str, str] = known.get("ids", {})
        """Run ids that trackers gave."""

    def save(self) -> None:
        """Write it to the disk."""
        told = {"next_step": self.next_step, "validated": self.validated, "ids": self.ids}
        replace(self._path, json.dumps(told) + "\n")


class Tracking:
    """Tells every tracker of a run each step and each validation once.

    Args:
        run: settings.
        say: shows a line to people.
        trackers: name -> how to begin; None = those of the settings.
    """

    def __init__(
        self,
        run: RunConfig,
        *,
        say: Callable[[str], None] | None = None,
        trackers: Mapping[str, Callable[[RunConfig, TrackedSoFar], Tracker]] | None = None,
    ) -> None:
        self._say = say or _to_stderr
        self._state = TrackedSoFar(run.directory / "tracked.json")
        self._trackers: dict[str, Tracker] = {}
        self._unsaved = False
        for name, begin in (_wanted(run.track) if trackers is None else trackers).items():
            self._begin(name, begin, run)

    def tell(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Tell the trackers what they have not heard yet; steps done again are left out."""
        told = 0
        for record in records:
            if record["event"] == "step" and record["step"] >= self._state.next_step:
                self._state.next_step = record["step"] + 1
            elif is_result(record) and record["at"] > self._state.validated:
                self._state.validated = record["at"]
            else:
                continue
            told += 1
            metrics, step = numbers(record)
            self._each("log", metrics, step)
        if told:
            self._save()

    def close(self) -> None:
        """Hand over what is waiting."""
        self._each("close")
        self._save()

    def _begin(
        self, name: str, begin: Callable[[RunConfig, TrackedSoFar], Tracker], run: RunConfig
    ) -> None:
        try:
            self._trackers[name] = begin(run, self._state)
        except ImportError as missing:
            self._say(
                f"no {name}: {missing.name} is not installed ({INSTALL}); metrics.jsonl goes on"
            )
        # a tracker may raise anything, a run goes on whatever it is
        except Exception as error:  # noqa: BLE001
            self._say(f"no {name}: {_line(error)}; metrics.jsonl goes on")

    def _save(self) -> None:
        try:
            self._state.save()
        except OSError as error:  # a full disk ends no run; what is told twice then is the same
            if not self._unsaved:
                self._say(f"what trackers were told is not recorded: {error.strerror}")
            self._unsaved = True

    def _each(self, call: str, *arguments: Any) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                getattr(tracker, call)(*arguments)
            # a tracker may raise anything, a run goes on whatever it is
            except Exception as error:  # noqa: BLE001
                del self._trackers[name]
                self._say(f"{name} is told no more: {_line(error)}; metrics.jsonl goes on")


def is_result(record: Mapping[str, Any]) -> bool:
    """Whether a record is a validation that found something."""
    return record["event"] == "validation" and "metrics" in record


def numbers(record: Mapping[str, Any]) -> tuple[dict[str, float], int]:
    """The numbers of a record under the names that trackers show, and their step.

    A validation after n steps stands at step n - 1, the last one that made its weights.

    >>> numbers(
    ...     {
    ...         "event": "step",
    ...         "step": 3,
    ...         "epoch": 0,
    ...         "metrics": {"loss": 2.0},
    ...         "speed": {"mfu": None, "stall": 0.1},
    ...     }
    ... )
    ({'loss': 2.0, 'epoch': 0.0, 'speed/stall': 0.1}, 3)
    >>> numbers({"event": "validation", "at": 4, "metrics": {"recall@1/1x1": 0.5}})
    ({'validation/recall@1/1x1': 0.5}, 3)
    """
    if record["event"] == "validation":
        found = record.get("metrics", {})
        return {f"validation/{name}": float(value) for name, value in found.items()}, record[
            "at"
        ] - 1
    named = {**record["metrics"], "epoch": record["epoch"]}
    named |= {f"speed/{name}": value for name, value in record.get("speed", {}).items()}
    return {name: float(value) for name, value in named.items() if value is not None}, record[
        "step"
    ]


def _wanted(settings: TrackSettings) -> dict[str, Callable[[RunConfig, TrackedSoFar], Tracker]]:
    wanted: dict[str, Callable[[RunConfig, TrackedSoFar], Tracker]] = {}
    if settings.tensorboard:
        wanted["TensorBoard"] = TensorBoard
    if settings.wandb is not None:
        wanted["Weights & Biases"] = WeightsAndBiases
    if settings.mlflow is not None:
        wanted["MLflow"] = MLflow
    return wanted


def _plain(name: str) -> str:
    """A metric's name in letters that every tracker takes."""
    return name.replace("@", "_at_")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
