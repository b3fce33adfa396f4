"""Trackers are told each step once, whatever is done again, and never end a run."""

import struct
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from rematch_ray.config import DataSettings, RunConfig, TrackSettings, TrainSettings
from rematch_ray.data.sources import SourceSettings
from rematch_ray.errors import UserError
from rematch_ray.model.settings import ModelSettings
from rematch_ray.workloads.tracking import FOLDER, TrackedSoFar, Tracking, refuse_missing


def run_in(storage: Path, **track: Any) -> RunConfig:
    run = RunConfig(
        name="run",
        storage=storage,
        model=ModelSettings(base="tiny"),
        data=DataSettings(sources=(SourceSettings(name="s", path=Path("a")),)),
        train=TrainSettings(steps=10),
        track=TrackSettings(**track),
    )
    run.directory.mkdir(parents=True, exist_ok=True)
    return run


def step(number: int, loss: float = 1.0) -> dict[str, Any]:
    metrics = {"loss": loss, "accuracy/1x1": 0.5}
    speed = {"pairs_per_s": 8.0, "mfu": None}
    return {"event": "step", "step": number, "epoch": 0, "metrics": metrics, "speed": speed}


def validation(at: int) -> dict[str, Any]:
    return {"event": "validation", "at": at, "metrics": {"recall@1/1x1": at / 10}}


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    """Every scalar of the event files, as TensorBoard would find them."""
    found = []
    for file in sorted(folder.glob("events.*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.append((value.tag, event.step, round(value.simple_value, 4)))
    return found


class Told:
    """A tracker that remembers, or fails."""

    def __init__(self, fails: bool = False) -> None:
        self.steps: list[int] = []
        self.fails, self.closed = fails, False

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if self.fails:
            raise ConnectionError("the server\nis gone")
        self.steps.append(step)

    def close(self) -> None:
        self.closed = True


def test_an_event_file_holds_every_number_of_every_step_once(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    tracking = Tracking(run)
    tracking.tell([{"event": "start", "from_step": 0}, step(0, 2.0), step(1), step(2)])
    # the workers were restarted: step 2 comes again, and all that was logged before it
    tracking.tell([step(0), step(1), step(2), step(3), validation(4)])
    tracking.close()
    # another process goes on
    again = Tracking(run)
    again.tell([step(n) for n in range(6)] + [validation(4)])
    again.close()
    found = scalars(run.directory / FOLDER)
    for tag in ("loss", "accuracy/1x1", "speed/pairs_per_s"):
        assert [at for name, at, _ in found if name == tag] == list(range(6))
    assert ("loss", 0, 2.0) in found
    assert [f for f in found if f[0].startswith("validation")] == [
        ("validation/recall_at_1/1x1", 3, 0.4)
    ]
    assert not [name for name, _, _ in found if "mfu" in name]


def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(tmp_path: Path) -> None:
    said: list[str] = []
    good, bad = Told(), Told(fails=True)

    def never(*_: Any) -> Told:
        raise PermissionError("no key")

    trackers = {"good": lambda *_: good, "bad": lambda *_: bad, "none": never}
    tracking = Tracking(run_in(tmp_path), say=said.append, trackers=trackers)
    for number in range(3):
        tracking.tell([step(number)])
    tracking.close()
    assert good.steps == [0, 1, 2]
    assert good.closed
    assert said == [
        "no none: no key; metrics.jsonl goes on",
        "bad is told no more: the server is gone; metrics.jsonl goes on",
    ]


def test_a_failed_validation_is_no_result_and_may_come_again(tmp_path: Path) -> None:
    told = Told()
    tracking = Tracking(run_in(tmp_path), trackers={"told": lambda *_: told})
    tracking.tell([{"event": "validation", "at": 4, "error": "no memory"}])
    tracking.tell([validation(4)])
    assert told.steps == [3]


def test_a_full_disk_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    tracking = Tracking(run_in(tmp_path), say=said.append, trackers={})

    def full(_: TrackedSoFar) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TrackedSoFar, "save", full)
    tracking.tell([step(0)])
    tracking.tell([step(1)])
    assert said == ["what trackers were told is not recorded: No space left on device"]


def test_without_the_writer_tensorboard_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    Tracking(run_in(tmp_path), say=said.append)
    [line] = said
    assert line.startswith("no TensorBoard")
    assert "pip install 'rematch-ray[tracking]'" in line


def test_no_tracker_is_told_when_none_is_wanted(tmp_path: Path) -> None:
    run = run_in(tmp_path, tensorboard=False)
    tracking = Tracking(run)
    tracking.tell([step(0)])
    tracking.close()
    assert not (run.directory / FOLDER).exists()


@pytest.mark.parametrize("key", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_refused_by_name(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"track\.{key} is set, but {key} is not installed: pip"):
        refuse_missing(TrackSettings(**{key: "x"}))
    refuse_missing(TrackSettings())


def test_weights_and_biases_goes_on_with_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, Any]] = []
    logged: list[dict[str, float]] = []
    made = types.SimpleNamespace(
        log=logged.append, finish=lambda: None, define_metric=lambda name, step_metric: None
    )
    stub = types.ModuleType("wandb")
    stub.init = lambda **given: begun.append(given) or made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stub)
    run = run_in(tmp_path, tensorboard=False, wandb="team/search")
    for number in range(2):
        tracking = Tracking(run)
        tracking.tell([step(n) for n in range(number + 1)])
        tracking.close()
    assert [(given["entity"], given["project"]) for given in begun] == [("team", "search")] * 2
    assert begun[0]["id"] == begun[1]["id"]
    assert begun[0]["resume"] == "allow"
    assert [metrics["step"] for metrics in logged] == [0, 1]
