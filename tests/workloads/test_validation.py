"""Validation measures checkpoints, keeps the best weights and repeats nothing."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
import ray.exceptions
import ray.train

from rematch_ray.config import (
    DataSettings,
    HeldOutSettings,
    RunConfig,
    SourceSettings,
    TrainSettings,
    ValidationSettings,
)
from rematch_ray.data.order import OrderSettings
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.schema import items_to_table, samples_to_table, write_parquet
from rematch_ray.errors import UserError
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.settings import LoraSettings
from rematch_ray.training.settings import OptimisationSettings
from rematch_ray.training.step import Training
from rematch_ray.workloads import validation
from rematch_ray.workloads.journal import replace
from rematch_ray.workloads.run_directory import RunDirectory
from rematch_ray.workloads.runtime import refuse_what_does_not_fit
from rematch_ray.workloads.train import train
from rematch_ray.workloads.watch import Watch, validation_line
from tests.tiny import model_settings, text_sample
from tests.workloads.test_tracking import scalars

RUNGS = ("fused", "1x1", "2x3", "4x6")


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> tuple[HeldOutSettings, ...]:
    """A set of Items with qrels and a set of Samples."""
    folder = tmp_path_factory.mktemp("held-out")
    samples = [text_sample(n, negatives=1, source="notes") for n in range(16)]
    write_parquet(samples_to_table(samples), folder / "samples.parquet")
    pictures = [text_sample(n, source="photos", image=True) for n in range(12)]
    queries, documents = ([s.query for s in pictures], [s.positives[0].item for s in pictures])
    write_parquet(items_to_table(queries), folder / "queries.parquet")
    write_parquet(items_to_table(documents), folder / "corpus.parquet")
    lines = {
        "query_id": [item.id for item in queries],
        "document_id": [item.id for item in documents],
        "score": [1.0] * 12,
    }
    pq.write_table(pa.table(lines), folder / "qrels.parquet")
    names = ("queries", "corpus", "qrels")
    return (
        HeldOutSettings(name="notes", samples=folder / "samples.parquet"),
        HeldOutSettings(name="photos", **{name: folder / f"{name}.parquet" for name in names}),
    )


def run_config(
    base: Path, storage: Path, sets: tuple[HeldOutSettings, ...], **changes: Any
) -> RunConfig:
    given: dict[str, Any] = {
        "name": "run",
        "storage": storage,
        "model": model_settings(base),
        "optimisation": OptimisationSettings(warmup_steps=2, learning_rate=1e-3),
        "data": DataSettings(sources=(SourceSettings(name="s", path=Path("a")),)),
        "train": TrainSettings(steps=8, checkpoint_every=2),
        "validation": ValidationSettings(sets=sets, batch_rows=8),
    }
    return RunConfig(**(given | changes))


def checkpoint(run: RunConfig, done: int) -> ray.train.Checkpoint:
    """A checkpoint of an untrained model."""
    made = Training.build(
        run.model, run.objective, run.optimisation, seed=run.seed, total_steps=8, name="run"
    )
    folder = run.directory / f"checkpoint_{done:07d}"
    made.save(folder / "state")
    (folder / "trainer.json").write_text(json.dumps({"index": done}))
    return ray.train.Checkpoint(str(folder))


def validate(run: RunConfig, point: ray.train.Checkpoint) -> dict[str, float]:
    return validation.validate(point, run=run.model_dump(mode="json"))


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)], ids=["full", "lora"])
def test_a_checkpoint_is_measured_at_every_budget_and_the_first_is_the_best(
    tiny_base: Path, tmp_path: Path, held_out: tuple[HeldOutSettings, ...], lora: Any
) -> None:
    run = run_config(tiny_base, tmp_path, held_out, model=model_settings(tiny_base, lora=lora))
    metrics = validate(run, checkpoint(run, 2))
    names = {f"recall@{k}/{rung}" for k in (1, 10) for rung in RUNGS}
    assert set(metrics) == {
        f"validation/{part}{name}" for part in ("", "notes/", "photos/") for name in names
    }
    mean = metrics["validation/recall@10/4x6"]
    both = [metrics[f"validation/{part}/recall@10/4x6"] for part in ("notes", "photos")]
    assert mean == pytest.approx(sum(both) / 2, abs=1e-5)
    [record] = validation.results(run.directory)
    assert (record["at"], record["is_best"], record["metric"]) == (2, True, "recall@10/4x6")

    # what was exported is what was measured
    best = Embedder.from_pretrained(run.directory / "best", device="cpu")
    again = validation.measure_recall(best, validation.read_sets(run)[0])
    assert again["recall@10/4x6"] == pytest.approx(both[0], abs=1e-5)


def test_a_step_is_measured_once_and_only_better_weights_replace_the_best(
    tiny_base: Path,
    tmp_path: Path,
    held_out: tuple[HeldOutSettings, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = run_config(tiny_base, tmp_path, held_out[:1])
    recalls = iter([0.5, 0.25, 0.5, 0.75])
    measured: list[float] = []

    def recall(*_: Any, **__: Any) -> dict[str, float]:
        measured.append(next(recalls))
        return {f"recall@10/{rung}": measured[-1] for rung in RUNGS}

    monkeypatch.setattr(validation, "measure_recall", recall)
    points = {done: checkpoint(run, done) for done in (2, 4, 6, 8)}
    exported = []
    for done in (2, 4, 2, 4, 6, 8):
        validate(run, points[done])
        exported.append((run.directory / "best" / "rematch.json").stat().st_mtime_ns)
    assert measured == [0.5, 0.25, 0.5, 0.75]  # 2 and 4 were not measured again
    assert len(set(exported[:5])) == 1
    assert exported[5] != exported[4]
    records = list(validation.results(run.directory))
    assert [(r["at"], r["is_best"], r["best_at"]) for r in records] == [
        (2, True, 2),
        (4, False, 2),
        (6, False, 2),
        (8, True, 8),
    ]


def test_how_samples_are_read_goes_with_the_set(tmp_path: Path, tiny_base: Path) -> None:
    reader = ReaderSettings(image_root="images", split="dev")
    of = HeldOutSettings(name="set", samples=Path("rows"), reader=reader)
    [found] = validation.with_absolute_paths(ValidationSettings(sets=(of,))).sets
    assert found.reader.image_root == str(Path("images").absolute())
    assert found.reader.split == "dev"
    digests = {
        validation._measure_digest(run_config(tiny_base, tmp_path, (changed,)))
        for changed in (of, found, of.model_copy(update={"reader": ReaderSettings()}))
    }
    assert len(digests) == 2  # folders do not count, another split does
    paths = dict.fromkeys(("queries", "corpus", "qrels"), Path("rows"))
    with pytest.raises(ValueError, match="'set': reader says how samples are read"):
        HeldOutSettings(name="set", reader=reader, **paths)


def test_another_metric_begins_anew(
    tiny_base: Path, tmp_path: Path, held_out: tuple[HeldOutSettings, ...]
) -> None:
    run = run_config(tiny_base, tmp_path, held_out[:1])
    point = checkpoint(run, 2)
    validate(run, point)
    settings = ValidationSettings(sets=held_out[:1], metric="recall@1/1x1")
    validate(run.model_copy(update={"validation": settings}), point)
    [record] = validation.results(run.directory)
    assert (record["metric"], record["is_best"]) == ("recall@1/1x1", True)


def test_a_validation_that_fails_is_told_and_may_be_done_again(
    tiny_base: Path, tmp_path: Path, held_out: tuple[HeldOutSettings, ...]
) -> None:
    lost = HeldOutSettings(name="lost", samples=tmp_path / "nowhere")
    run = run_config(tiny_base, tmp_path, (lost,))
    point = checkpoint(run, 2)
    with pytest.raises(UserError, match="nowhere: no such file"):
        validate(run, point)
    [record] = validation.results(run.directory)
    assert "nowhere: no such file" in validation_line(record)
    validate(run_config(tiny_base, tmp_path, held_out[:1]), point)
    [record] = validation.results(run.directory)
    assert record["is_best"]


def test_a_run_that_is_being_stopped_ends_its_validation_for_ray_to_ask_again(
    tiny_base: Path, tmp_path: Path, held_out: tuple[HeldOutSettings, ...]
) -> None:
    run = run_config(tiny_base, tmp_path, held_out)
    point = checkpoint(run, 2)
    RunDirectory(run.directory).ask_to_stop()
    with pytest.raises(ray.exceptions.TaskCancelledError):
        validate(run, point)
    assert not list(validation.results(run.directory))
    assert not (run.directory / "best").exists()


def test_validation_is_due_every_so_often_and_at_the_end(
    tiny_base: Path, tmp_path: Path, held_out: tuple[HeldOutSettings, ...]
) -> None:
    often = run_config(tiny_base, tmp_path, held_out)
    assert [d for d in range(1, 9) if validation.is_due(often, d)] == [2, 4, 6, 8]
    settings = ValidationSettings(sets=held_out, every=6)
    seldom = often.model_copy(update={"validation": settings})
    assert [d for d in range(1, 9) if validation.is_due(seldom, d)] == [6, 8]
    never = often.model_copy(update={"validation": None})
    assert not any(validation.is_due(never, d) for d in range(9))
    assert validation.ray_settings(never) is None
    assert validation.bundles(never) == []


def test_a_cluster_without_room_beside_training_is_refused(
    tiny_base: Path, tmp_path: Path, held_out: tuple[HeldOutSettings, ...]
) -> None:
    settings = ValidationSettings(sets=held_out, cpus=3, gpus=1)
    run = run_config(tiny_base, tmp_path, held_out, validation=settings)
    with pytest.raises(UserError, match=r"validation task \(3 CPU, 1 GPU\).*lower validation"):
        refuse_what_does_not_fit(validation.bundles(run), [{"CPU": 8.0, "GPU": 0.0}])


def test_sets_that_do_not_fit_are_refused_before_anything_starts(
    tiny_base: Path, tmp_path: Path, held_out: tuple[HeldOutSettings, ...]
) -> None:
    validation.check_sets(ValidationSettings(sets=held_out))
    photos = held_out[1]
    assert photos.qrels is not None
    lines = pq.read_table(photos.qrels).slice(1)
    pq.write_table(lines, tmp_path / "few.parquet")
    short = photos.model_copy(update={"qrels": tmp_path / "few.parquet"})
    with pytest.raises(UserError, match=r"'photos': 1 queries have no line in .*few\.parquet"):
        validation.check_sets(ValidationSettings(sets=(short,)))


def test_the_last_weights_are_the_best_where_nothing_has_chosen(
    tiny_base: Path, tmp_path: Path, held_out: tuple[HeldOutSettings, ...]
) -> None:
    run = run_config(tiny_base, tmp_path, held_out)
    (run.directory / "last").mkdir(parents=True)
    (run.directory / "last" / "weights").write_text("last")
    validation.settle_best(run)
    best = run.directory / "best" / "weights"
    assert best.read_text() == "last"
    best.write_text("chosen")
    validation.settle_best(run)
    assert best.read_text() == "chosen"
    validation.settle_best(run.model_copy(update={"validation": None}))
    assert best.read_text() == "last"


def test_the_watch_logs_each_validation_once_even_when_the_log_is_written_anew(
    tiny_base: Path, tmp_path: Path, held_out: tuple[HeldOutSettings, ...]
) -> None:
    run = run_config(tiny_base, tmp_path, held_out)
    directory, said = RunDirectory(run.directory), list[str]()
    (run.directory / "validation").mkdir(parents=True)
    watch = Watch(run, directory, say=said.append)
    record = {"event": "validation", "at": 2, "metric": "recall@10/4x6", "value": 0.5}
    record |= {"is_best": True, "best_at": 2, "metrics": {"recall@10/4x6": 0.5}}
    (run.directory / "validation" / "0000002.json").write_text(json.dumps(record))
    for _ in range(2):
        watch.look()
    assert said == ["validation after 2 steps: recall@10/4x6 0.500, the best yet"]
    directory.log({"event": "step", "step": 2, "epoch": 0, "metrics": {"loss": 1.0}})
    directory.forget_steps_from(2)  # the workers were restarted from the validated checkpoint
    watch.look()
    Watch(run, directory, say=said.append).look()  # and so was the driver
    assert [r["event"] for r in directory.records()] == ["validation"]
    assert len(said) == 1
    replace(directory.metrics, "")  # the line was lost while rank 0 wrote the log anew
    watch.look()
    assert [r["at"] for r in directory.records()] == [2]


@pytest.fixture
def _restored_data_context() -> Any:
    before = ray.data.DataContext.get_current().copy()
    yield
    ray.data.DataContext._set_current(before)


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster", "_restored_data_context")
def test_a_run_is_validated_tracked_and_drawn_beside_training(
    tiny_base: Path,
    samples: dict[str, Path],
    tmp_path: Path,
    held_out: tuple[HeldOutSettings, ...],
) -> None:
    data = DataSettings(
        sources=tuple(SourceSettings(name=n, path=path) for n, path in samples.items()),
        order=OrderSettings(global_batch=8, sub_batch=4),
    )
    settings = TrainSettings(steps=8, checkpoint_every=4, keep_checkpoints=1, num_workers=2)
    run = run_config(tiny_base, tmp_path, held_out, data=data, train=settings)
    finished = train(run)
    assert finished["steps"] == 8
    records = list(RunDirectory(run.directory).records())
    found = [r for r in records if r["event"] == "validation"]
    # the one after 4 steps may be left out on a slow machine, the last one never
    assert found[-1]["at"] == 8
    best_at = found[-1]["best_at"]
    best = Embedder.from_pretrained(run.directory / "best", device="cpu")
    [of_best] = [r for r in found if r["at"] == best_at]
    again = {of.name: validation.measure_recall(best, of) for of in validation.read_sets(run)}
    for name, value in validation.with_means(again).items():
        assert of_best["metrics"][name] == pytest.approx(value, abs=0.02)

    speed = [r["speed"] for r in records if r["event"] == "step"]
    assert len(speed) == 8
    assert all(s["tokens_per_s"] > 0 and s["tflops"] > 0 for s in speed)
    assert any(s["visual_tokens_per_s"] > 0 for s in speed)  # one of two sources has pictures
    assert speed[-1]["mfu"] is None
    assert speed[-1]["peak_memory_bytes"] > 1e8
    told = scalars(run.directory / "tensorboard")
    assert [at for name, at, _ in told if name == "loss"] == list(range(8))
    assert ("validation/recall_at_10/4x6", 7) in [(name, at) for name, at, _ in told]
    assert (run.directory / "training.png").stat().st_size > 10_000
