"""A run begins with a checkpoint of another one, or says why it cannot."""

import json
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch

from rematch_ray.config import RunConfig
from rematch_ray.errors import UserError
from rematch_ray.training.step import Training
from rematch_ray.workloads.bad_rows import BadRows
from rematch_ray.workloads.resuming import check_start, restore
from rematch_ray.workloads.stream import TrainingData, open_data
from tests.workloads.runs import run_config

BAD = {"epoch": 0, "in_epoch": 3, "total": 5}


@pytest.fixture
def run(
    tiny_base: Path, samples: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RunConfig:
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: None)
    return run_config(tiny_base, samples, tmp_path)


def build(run: RunConfig, seed: int = 0) -> Training:
    return Training.build(
        run.model, run.objective, run.optimisation, seed=seed, total_steps=run.train.steps
    )


def saved(run: RunConfig, data: TrainingData, **changes: Any) -> RunConfig:
    """The same run, to begin with a checkpoint of its weights after four steps."""
    folder = run.directory / "checkpoint_0000004"
    training = build(run)
    training.steps_done = 4
    with torch.no_grad():
        training.joint.log_temperatures.fill_(0.5)
    training.save(folder / "state")
    position = {"index": 4, "plan": data.plan.digest, "bad_rows": BAD}
    (folder / "trainer.json").write_text(json.dumps({**position, **changes}))
    train = run.train.model_copy(update={"start_from": folder})
    return run.model_copy(update={"train": train, "name": "other"})


def test_a_run_begins_with_the_weights_and_steps_of_a_checkpoint(run: RunConfig) -> None:
    data = open_data(run.data, 0)
    begun = saved(run, data)
    check_start(begun)
    training, accepted = build(begun, seed=3), BadRows(begun.data, data.plan)
    assert restore(training, begun, data, accepted) == training.steps_done == 4
    assert training.joint.log_temperatures.tolist() == [0.5, 0.5]
    assert accepted.counted == BAD


def test_bad_rows_of_other_data_do_not_count(run: RunConfig) -> None:
    data = open_data(run.data, 0)
    begun = saved(run, data, plan="of the rows before they were mended")
    accepted = BadRows(begun.data, data.plan)
    assert restore(build(begun), begun, data, accepted) == 4
    assert accepted.total == 0


def test_a_run_without_a_checkpoint_begins_with_the_base(run: RunConfig) -> None:
    data = open_data(run.data, 0)
    check_start(run)
    assert restore(build(run), run, data, BadRows(run.data, data.plan)) == 0


@pytest.mark.parametrize("model", [{"embedding_dim": 24}, {"lora": {"rank": 2}}])
def test_a_checkpoint_of_another_model_is_refused(run: RunConfig, model: dict[str, Any]) -> None:
    data = open_data(run.data, 0)
    begun = saved(run, data)
    values = begun.model_dump(mode="json")
    wider = RunConfig.model_validate({**values, "model": {**values["model"], **model}})
    with pytest.raises(UserError, match=r"checkpoint_0000004 does not fit this model \(.+\)"):
        restore(build(wider), wider, data, BadRows(run.data, data.plan))


def test_what_is_no_checkpoint_or_leaves_no_step_is_refused(run: RunConfig) -> None:
    begun = saved(run, open_data(run.data, 0))
    for folder in (run.directory, run.directory / "checkpoint_0000008"):
        elsewhere = begun.train.model_copy(update={"start_from": folder})
        with pytest.raises(UserError, match=r"no checkpoint of a run; there are .*_0000004$"):
            check_start(begun.model_copy(update={"train": elsewhere}))
    nowhere = begun.train.model_copy(update={"start_from": Path("/nowhere/at/all")})
    with pytest.raises(UserError, match="no checkpoint of a run; give RUN/checkpoint"):
        check_start(begun.model_copy(update={"train": nowhere}))
    short = begun.train.model_copy(update={"steps": 4})
    with pytest.raises(UserError, match=r"has done 4 steps and train.steps is 4: raise"):
        check_start(begun.model_copy(update={"train": short}))
