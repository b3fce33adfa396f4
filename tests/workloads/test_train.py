"""A run survives kills, stops and restarts: every step once, at any number of processes."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.data
import ray.train
import yaml
from ray.train.torch import TorchTrainer

from rematch_ray.config import RunConfig
from rematch_ray.errors import UserError
from rematch_ray.model.embedder import Embedder
from rematch_ray.training.strategies import StrategySettings
from rematch_ray.workloads.bad_rows import BadRows
from rematch_ray.workloads.run_directory import RunDirectory
from rematch_ray.workloads.stream import open_data
from rematch_ray.workloads.train import (
    LocalTrainer,
    Progress,
    failure_line,
    idle_line,
    start_line,
    step_line,
    train,
)
from tests.workloads.runs import STEPS, planned_rows, records, run_config, when


@pytest.fixture
def _restored_data_context() -> Iterator[None]:
    before = ray.data.DataContext.get_current().copy()
    yield
    ray.data.DataContext._set_current(before)


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster", "_restored_data_context")
def test_a_killed_worker_and_a_stopped_run_lose_no_step_and_repeat_none(
    tiny_base: Path, samples: dict[str, Path], tmp_path: Path
) -> None:
    run = run_config(tiny_base, samples, tmp_path)
    directory = RunDirectory(run.directory)

    def kill_rank_1() -> None:
        [start] = records(run, "start")
        os.kill(start["workers"][1]["pid"], signal.SIGKILL)

    # rank 1 dies in mid-epoch; the run goes on from a checkpoint, then somebody asks it to stop
    killer = when(lambda: len(records(run, "step")) > 5, kill_rank_1)
    stopper = when(
        lambda: len(records(run, "start")) > 1 and len(records(run, "step")) > 9,
        directory.ask_to_stop,
    )
    stopped = train(run)
    killer.join()
    stopper.join()
    assert stopped["stopped"]
    assert 9 < stopped["steps"] < STEPS
    assert not (run.directory / "best").exists()
    [_, restart] = records(run, "start")
    assert restart["from_step"] in (0, 4, 8)

    # the next run goes on with three processes, which do not divide a step's four sub-batches;
    # rank 2 meets a disk without room for its part of a checkpoint
    alone = run_config(tiny_base, samples, tmp_path, num_workers=3)
    # at another rate, and a chunk at a time
    alone = other(alone, optimisation={"learning_rate": 1e-5, "chunk_tokens": 400})
    state = run.directory / "checkpoint_0000024" / "state"
    state.mkdir(parents=True)
    (state / "__2_0.distcp").symlink_to("/dev/full")
    finished = train(alone)
    [rates, note] = records(run, "note")
    assert rates["text"].endswith("on: optimisation.learning_rate 1e-05, before 0.0001")
    learned = [r["metrics"]["learning_rate"] for r in records(run, "step")]
    assert max(learned[: stopped["steps"]]) > 5e-5 and max(learned[stopped["steps"] :]) <= 1e-5
    assert "checkpoint_0000024 could not be written ([Errno 28] No space left" in note["text"]
    assert "stands: checkpoint_0000020" in note["text"]
    assert not state.exists()
    saved = [r["at"] for r in records(run, "checkpoint") if r["at"] > stopped["steps"]]
    assert saved == [n for n in range(0, STEPS + 1, 4) if n > stopped["steps"] and n != 24]
    assert finished["steps"] == STEPS
    assert records(run, "start")[-1]["from_step"] == stopped["steps"]
    assert [r["step"] for r in records(run, "step")] == list(range(STEPS))
    epochs = [r["epoch"] for r in records(run, "step")]
    data = open_data(run.data, 0)
    assert epochs == [step // data.plan.steps_per_epoch for step in range(STEPS)]
    # every committed step has the rows of an unbroken run
    assert [r["rows"] for r in records(run, "step")] == [
        planned_rows(data, step) for step in range(STEPS)
    ]

    position = json.loads((run.directory / "checkpoint_0000032" / "trainer.json").read_text())
    assert position["index"] == STEPS
    assert position["world_size"] == 3
    for name in ("best", "last"):
        assert Embedder.from_pretrained(run.directory / name, device="cpu").ladder
    again = train(alone)
    assert again["skipped"]
    assert again["metrics"] == finished["metrics"]

    # another run begins with a checkpoint of this one, under other settings
    cut = run.directory / "checkpoint_0000028"
    begun = other(alone, train={"num_workers": 1, "start_from": cut}, data={"max_negatives": 0})
    begun = other(begun, objective={"temperature_fused": 0.05}).model_copy(update={"name": "on"})
    assert train(begun)["steps"] == STEPS
    [start] = records(begun, "start")
    assert start["from_step"] == 28
    assert [r["step"] for r in records(begun, "step")] == list(range(28, STEPS))


def test_a_run_goes_on_only_with_the_settings_it_began_with(
    tiny_base: Path, samples: dict[str, Path], tmp_path: Path
) -> None:
    run = run_config(tiny_base, samples, tmp_path)
    directory = RunDirectory(run.directory)
    assert directory.result(run) is None
    directory.open(run)
    assert directory.result(run_config(tiny_base, samples, tmp_path, num_workers=4)) is None
    with pytest.raises(UserError, match=r"holds a run with train.steps=32, now train.steps=20"):
        directory.result(run_config(tiny_base, samples, tmp_path, steps=20))
    moved = run_config(tiny_base, {n: Path("elsewhere") / n for n in samples}, tmp_path)
    assert directory.result(moved) is None
    # an earlier release knew fewer keys of a source, and another rows' limit is other data
    config = run.directory / "config.yaml"
    written = yaml.safe_load(config.read_text())
    sources = written["data"]["sources"]
    known = {"name", "path", "weight"}
    written["data"]["sources"] = [{k: s[k] for k in s if k in known} for s in sources]
    config.write_text(yaml.safe_dump(written))
    assert directory.result(run) is None
    limited = tuple(s.model_copy(update={"max_rows": 9}) for s in run.data.sources)
    data = run.data.model_copy(update={"sources": limited})
    with pytest.raises(UserError, match=r"data\.sources=.*'max_rows': 9"):
        directory.result(run.model_copy(update={"data": data}))
    # ddp and fsdp2 read each other's checkpoints; another precision is another run
    sharded = run.model_copy(update={"strategy": StrategySettings(name="fsdp2")})
    assert directory.result(sharded) is None
    half = StrategySettings(precision="bfloat16")
    with pytest.raises(UserError, match=r"strategy.precision=None, now strategy.precision=bfloat"):
        directory.result(run.model_copy(update={"strategy": half}))
    with pytest.raises(UserError, match=r"seed=0, now seed=3"):
        directory.result(run.model_copy(update={"seed": 3}))
    begun = run_config(tiny_base, samples, tmp_path, start_from=tmp_path / "checkpoint_0000004")
    with pytest.raises(UserError, match=r"train.start_from=None"):
        directory.result(begun)


def other(run: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    """The run with other values of some keys, `section={key: value}`."""
    return run.model_copy(
        update={n: getattr(run, n).model_copy(update=keys) for n, keys in sections.items()}
    )


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"max_bad_share": 0.2}},
        {"model": {"gradient_checkpointing": True}},
        {"objective": {"match_form": "packed"}},
        {"optimisation": {"chunk_tokens": 500, "probe_every": 0}},
    ],
)
def test_what_changes_no_result_may_change_when_a_run_goes_on(
    tiny_base: Path, samples: dict[str, Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    run = run_config(tiny_base, samples, tmp_path)
    directory = RunDirectory(run.directory)
    assert directory.open(run) == ""
    changed = other(run, **change)
    assert directory.result(changed) is None
    assert directory.open(changed) == ""
    assert list(directory.records()) == []


def test_other_rates_are_taken_and_noted_and_what_else_is_learned_by_names_the_way(
    tiny_base: Path, samples: dict[str, Path], tmp_path: Path
) -> None:
    run = run_config(tiny_base, samples, tmp_path)
    directory = RunDirectory(run.directory)
    directory.open(run)
    hot = other(run, objective={"temperature_fused": 0.05})
    with pytest.raises(UserError, match=r"another `name`, or delete"):
        directory.result(hot)
    directory.log({"event": "checkpoint", "at": 4, "name": "checkpoint_0000004"})
    with pytest.raises(UserError, match=r"train\.start_from=.*/run/checkpoint_0000004 takes over"):
        directory.result(hot)
    slow = other(run, optimisation={"learning_rate": 1e-5, "new_learning_rate": 1e-4})
    assert directory.result(slow) is None
    said = directory.open(slow)
    assert said == (
        "from step 4 on: optimisation.learning_rate 1e-05, before 0.0001, "
        "optimisation.new_learning_rate 0.0001, before null"
    )
    assert records(run, "note") == [{"event": "note", "at": 4, "text": said}]
    assert directory.open(slow) == ""


def test_a_run_goes_on_under_a_release_that_knows_other_keys(
    tiny_base: Path, samples: dict[str, Path], tmp_path: Path
) -> None:
    run = run_config(tiny_base, samples, tmp_path)
    directory = RunDirectory(run.directory)
    directory.open(run)
    config = run.directory / "config.yaml"
    written = yaml.safe_load(config.read_text())
    # an earlier release did not know keys that have a default: they count as not set
    del written["objective"]["match_temperature"], written["model"]["max_text_tokens"]
    del written["data"]["order"]["window"], written["track"]
    config.write_text(yaml.safe_dump(written))
    assert directory.result(run) is None
    changed = other(run, model={"max_text_tokens": 9})
    with pytest.raises(UserError, match=r"max_text_tokens=4096, now model.max_text_tokens=9"):
        directory.result(changed)
    # a later one knows keys that this one does not
    written["objective"]["w_later"] = 1.0
    config.write_text(yaml.safe_dump(written))
    with pytest.raises(UserError, match=r"another release began .*unknown key objective.w_later"):
        directory.result(run)


def test_only_a_cluster_of_this_program_trains_without_a_cleaner(tmp_path: Path) -> None:
    """Of what Ray Train starts by itself: a cluster that ends with the program needs no cleaner."""

    def callbacks(trainer: type[TorchTrainer]) -> list[str]:
        made = trainer(lambda: None, run_config=ray.train.RunConfig(storage_path=str(tmp_path)))
        return [type(one).__name__ for one in made._create_default_callbacks()]

    everywhere, here = callbacks(TorchTrainer), callbacks(LocalTrainer)
    assert set(everywhere) - set(here) == {"PlacementGroupCleanerCallback"}
    assert [name for name in everywhere if name in here] == here


def test_steps_that_are_done_again_are_forgotten_and_a_half_written_line_is_left_out(
    tmp_path: Path,
) -> None:
    directory = RunDirectory(tmp_path)
    directory.log({"event": "start", "from_step": 0})
    for step in range(5):
        directory.log({"event": "step", "step": step})
    with directory.metrics.open("a") as file:
        file.write('{"event": "st')
    assert len(list(directory.records())) == 6
    directory.forget_steps_from(3)
    assert [r.get("step") for r in directory.records()] == [None, 0, 1, 2]


def test_a_damaged_line_of_the_log_is_named_and_the_run_goes_on(
    tiny_base: Path, samples: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_config(tiny_base, samples, tmp_path)
    directory = RunDirectory(run.directory)
    directory.open(run)
    directory.log({"event": "step", "step": 0})
    with directory.metrics.open("a") as file:
        file.write('{"event": "st')
    directory.log({"event": "note", "at": 1, "text": "from the driver"})
    progress = Progress(run, directory)
    assert "metrics.jsonl: line 2 is no record" in capsys.readouterr().err
    directory.forget_steps_from(0)
    assert [r["event"] for r in directory.records()] == ["note"]
    progress.show(last=True)
    assert "is no record" not in capsys.readouterr().err


def test_workers_that_do_not_divide_a_step_are_told_what_it_costs(
    tiny_base: Path, samples: dict[str, Path], tmp_path: Path
) -> None:
    plan = open_data(run_config(tiny_base, samples, tmp_path).data, 0).plan
    assert idle_line(1, plan) == idle_line(2, plan) == ""
    assert "3 workers share 4 sub-batches a step: 33% of their places" in idle_line(3, plan)


def test_what_a_strategy_cannot_do_is_refused_before_anything_starts(
    tiny_base: Path, samples: dict[str, Path], tmp_path: Path
) -> None:
    strategy = {"strategy": StrategySettings(name="deepspeed")}
    for settings, message in (
        ({"num_workers": (1, 2)}, "strategy deepspeed resumes at the number of processes"),
        ({"async_checkpoints": True}, "strategy deepspeed writes its own files"),
    ):
        run = run_config(tiny_base, samples, tmp_path, **settings)
        with pytest.raises(UserError, match=message):
            train(run.model_copy(update=strategy))
    assert not (tmp_path / "run").exists()


def test_a_missing_source_is_refused_by_path(tiny_base: Path, tmp_path: Path) -> None:
    run = run_config(tiny_base, {"photos": tmp_path / "nowhere"}, tmp_path)
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        train(run)


def test_bad_rows_are_counted_by_epoch_and_refused_past_their_share(
    tiny_base: Path, samples: dict[str, Path], tmp_path: Path
) -> None:
    run = run_config(tiny_base, samples, tmp_path)
    plan = open_data(run.data, 0).plan
    bad = (1, ("item 'x': truncated",))
    # 80 rows an epoch, 1 % of them: none may be bad
    assert "1 of the 80 training rows" in BadRows(run.data, plan).refuses(0, *bad)
    lenient = BadRows(run.data.model_copy(update={"max_bad_share": 0.02}), plan)
    assert not lenient.refuses(0, *bad)
    assert "item 'x': truncated" in lenient.refuses(0, *bad)
    assert not lenient.refuses(1, *bad)
    assert lenient.total == 3


def test_a_run_that_failed_is_one_line_with_every_ranks_error(
    tiny_base: Path, samples: dict[str, Path], tmp_path: Path
) -> None:
    run = run_config(tiny_base, samples, tmp_path, max_failures=2)
    failures: dict[int, Exception] = {1: OSError("stack\n  of lines\nNo space left on device")}
    line = failure_line(run, ray.train.WorkerGroupError("a long story", failures))
    assert line.startswith("run run failed, with 2 restarts allowed (rank 1: No space left on")
    assert "\n" not in line


def test_progress_reads_on_and_says_every_event_once(
    tiny_base: Path, samples: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_config(tiny_base, samples, tmp_path, progress_seconds=1e-6)
    directory = RunDirectory(run.directory)
    directory.open(run)
    start = {"event": "start", "from_step": 0, "workers": [{"rank": 0, "pid": 11}]}
    step = {"event": "step", "epoch": 0, "pairs": 8, "seconds": 1.0, "metrics": {"loss": 1.0}}

    def said(progress: Progress) -> list[str]:
        progress.show()
        return capsys.readouterr().err.splitlines()

    directory.log(start)
    directory.log({**step, "step": 0})
    progress = Progress(run, directory)
    # what an earlier run logged is not said again, nor taken for a step of this one
    assert said(progress) == []
    assert not progress.steps_seen()
    directory.log({**start, "from_step": 1})
    directory.log({**step, "step": 1})
    directory.log({"event": "checkpoint", "at": 2, "name": "checkpoint_0000002"})
    directory.note("the disk is full", at=2)
    lines = said(progress)
    assert [line.split()[0] for line in lines] == ["training", "the", "step"]
    assert progress.steps_seen()
    assert progress.standing() == "until then checkpoint_0000002 stands"
    # the workers were restarted: the file is written anew
    directory.forget_steps_from(1)
    directory.log({**start, "from_step": 1})
    assert [line.split()[0] for line in said(progress)] == ["training"]
    assert not progress.steps_seen()
    directory.log({**step, "step": 1})
    assert said(progress)[0].startswith("step 2/32")


def test_progress_names_the_losses_the_speed_and_the_time_left() -> None:
    workers = [{"rank": 0, "pid": 11, "node": "a"}, {"rank": 1, "pid": 12, "node": "a"}]
    line = start_line({"from_step": 4, "workers": workers})
    assert line == "training from step 4: rank 0 pid 11, rank 1 pid 12"
    apart = [workers[0], {**workers[1], "node": "b"}]
    line = start_line({"from_step": 4, "workers": apart})
    assert line == "training from step 4: rank 0 pid 11 on a, rank 1 pid 12 on b"
    metrics = {"loss": 1.23456, "loss/fused": 0.5, "accuracy/1x1": 0.9}
    steps = [
        {"step": i, "epoch": 1, "pairs": 64, "seconds": 2.0, "metrics": metrics} for i in range(40)
    ]
    line = step_line(steps, 100)
    assert line.startswith("step 40/100  epoch 1  loss 1.235  loss/fused 0.500  32.0 pairs/s")
    assert line.endswith("2:00 left")
