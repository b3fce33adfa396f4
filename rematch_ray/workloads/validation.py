"""Validation beside training: a Ray task per checkpoint, whose best weights become `best/`.

Ray Train starts the task when a checkpoint is reported with `validation=True`, one at a time, and
keeps the checkpoint until it ends. What a validation found lies in `validation/<steps>.json` of the
run directory, so that a run that goes on neither repeats it nor forgets the best. Top floor.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import ray.exceptions
import ray.train
from ray.train import ReportedCheckpointStatus, ValidationConfig

from rematch_ray.config import HeldOutSettings, RunConfig, ValidationSettings
from rematch_ray.data.readers.files import absolute_path
from rematch_ray.data.readers.formats import list_data
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.evaluation.held_out import (
    Draw,
    HeldOut,
    check_items,
    measure_recall,
    read_items,
    read_samples,
    with_means,
)
from rematch_ray.model.embedder import Embedder
from rematch_ray.training.trained import trained_embedder
from rematch_ray.workloads.journal import replace
from rematch_ray.workloads.run_directory import RunDirectory
from rematch_ray.workloads.runtime import Bundle
from rematch_ray.workloads.stages import reason_of

FOLDER = "validation"
BEST, LAST = "best", "last"


def bundles(run: RunConfig) -> list[Bundle]:
    """Resources that validation takes beside training; none when there is no validation."""
    settings = run.validation
    if settings is None:
        return []
    key = "validation.cpus or validation.gpus"
    return [Bundle("validation task", settings.cpus, settings.gpus, key=key)]


def ray_settings(run: RunConfig) -> ValidationConfig | None:
    """What Ray Train is told; None when there is no validation."""
    settings = run.validation
    if settings is None:
        return None
    return ValidationConfig(
        fn=validate,
        task_config=ray.train.ValidationTaskConfig(fn_kwargs={"run": run.model_dump(mode="json")}),
        ray_remote_kwargs={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
    )


def is_due(run: RunConfig, done: int) -> bool:
    """Whether the weights after `done` steps are validated: every so often, and the last ones."""
    if run.validation is None:
        return False
    every = run.validation.every or run.train.checkpoint_every
    return done % every == 0 or done == run.train.steps


def asks(run: RunConfig, directory: RunDirectory, done: int) -> bool:
    """Whether rank 0 asks for a validation of the checkpoint after `done` steps.

    One that is due while another is unfinished is left out, and said, unless it is the last: a
    slow validation would otherwise keep ever more checkpoints from being deleted.
    """
    if not is_due(run, done) or _read(_file(directory.path, done), run):
        return False
    if done == run.train.steps:
        return True
    known = ray.train.get_all_reported_checkpoints(
        consistency_mode=ray.train.CheckpointConsistencyMode.COMMITTED
    )
    if any(c.status == ReportedCheckpointStatus.PENDING_VALIDATION for c in known):
        directory.note(
            f"no validation after {done} steps: an earlier one has not ended; raise "
            "validation.every or lower validation.max_queries or max_documents",
            at=done,
        )
        return False
    return True


def validate(checkpoint: ray.train.Checkpoint, *, run: dict[str, Any]) -> dict[str, float]:
    """Measure a checkpoint's weights, and export them when they are the best yet; a Ray task.

    Args:
        checkpoint: with `state/` and `trainer.json`.
        run: RunConfig as plain values, its paths absolute.

    Returns:
        `validation/<metric>` -> value, which Ray keeps with the checkpoint.
    """
    config = RunConfig.model_validate(run)
    folder = Path(checkpoint.path)
    done = int(json.loads((folder / "trainer.json").read_text())["index"])
    file = _file(config.directory, done)
    record = _read(file, config)
    if record is None:
        try:
            record = _measured(config, folder, done)
        except ray.exceptions.TaskCancelledError:
            raise
        # whatever it is, whoever watches the run is told; Ray writes it into a log file only
        except Exception as error:
            failed = {"event": "validation", "at": done, "error": reason_of(error)}
            replace(file, json.dumps(failed) + "\n")
            raise
        replace(file, json.dumps(record) + "\n")
    return {f"validation/{name}": value for name, value in record["metrics"].items()}


def results(directory: Path, *, known: Container[int] = ()) -> Iterator[dict[str, Any]]:
    """Yield the records of a run's validations, in order of steps, but for the known ones."""
    for file in sorted((directory / FOLDER).glob("[0-9]*.json")):
        if int(file.stem) not in known:
            yield json.loads(file.read_text())


def settle_best(run: RunConfig) -> None:
    """After the last step: where no validation has chosen, the last weights are the best."""
    best = run.directory / BEST
    if run.validation is not None and best.exists():
        return
    partial = run.directory / f".{BEST}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(run.directory / LAST, partial)
    shutil.rmtree(best, ignore_errors=True)
    partial.rename(best)


def read_set(settings: HeldOutSettings, draw: Draw) -> HeldOut:
    """Read one held-out set."""
    if settings.samples is not None:
        return read_samples(settings.name, settings.samples, draw, reader=settings.reader)
    assert settings.queries is not None
    assert settings.corpus is not None
    assert settings.qrels is not None
    return read_items(settings.name, settings.queries, settings.corpus, settings.qrels, draw)


def read_sets(run: RunConfig) -> list[HeldOut]:
    """Read every held-out set of a run, as much of each as the settings allow.

    Raises:
        UserError: a file that is missing or does not fit.
    """
    settings = _settings(run)
    draw = Draw(settings.max_queries, settings.max_documents, run.seed)
    return [read_set(held_out, draw) for held_out in settings.sets]


def check_sets(settings: ValidationSettings) -> None:
    """Refuse held-out sets that cannot be read or do not fit, by their ids and columns alone.

    Raises:
        UserError: names the set or the file.
    """
    for of in settings.sets:
        if of.samples is not None:
            list_data(of.samples, of.reader, rows="samples")
        elif of.queries is not None and of.corpus is not None and of.qrels is not None:
            check_items(of.name, of.queries, of.corpus, of.qrels)


def with_absolute_paths(settings: ValidationSettings) -> ValidationSettings:
    """The same sets, found from any working directory."""
    names = ("queries", "corpus", "qrels", "samples")
    sets = []
    for held_out in settings.sets:
        paths = {name: getattr(held_out, name) for name in names}
        found = {n: path.expanduser().absolute() for n, path in paths.items() if path is not None}
        told = {n: getattr(held_out.reader, n) for n in ("image_root", "corpus", "corpus_copy")}
        reader = held_out.reader.model_copy(
            update={n: absolute_path(path) for n, path in told.items() if path is not None}
        )
        sets.append(held_out.model_copy(update=found | {"reader": reader}))
    return settings.model_copy(update={"sets": tuple(sets)})


def _measured(run: RunConfig, checkpoint: Path, done: int) -> dict[str, Any]:
    """Measure, export if best, and return the record of it."""
    started = time.time()
    settings, directory = _settings(run), RunDirectory(run.directory)

    def goes_on() -> None:
        if directory.stop_asked():  # Ray asks for it again when the run goes on
            raise ray.exceptions.TaskCancelledError(error_message="the run is being stopped")

    model = _load(run, checkpoint)
    by_set = {}
    for held_out in read_sets(run):
        by_set[held_out.name] = measure_recall(
            model, held_out, batch_size=settings.batch_rows, goes_on=goes_on
        )
    metrics = with_means(by_set)
    value = metrics[run.validation_metric]
    earlier = [r for r in _comparable(run) if r["at"] != done]
    best = max(earlier, key=lambda r: r["value"], default=None)
    is_best = best is None or value > best["value"]
    if is_best:
        model.save_pretrained(run.directory / BEST)
    return {
        "event": "validation",
        "at": done,
        "metric": run.validation_metric,
        "value": value,
        "is_best": is_best,
        "best_at": done if is_best or best is None else best["at"],
        "seconds": round(time.time() - started, 2),
        "measure": _measure_digest(run),
        "metrics": {name: round(number, 6) for name, number in metrics.items()},
    }


def _load(run: RunConfig, checkpoint: Path) -> Embedder:
    device = "cuda" if _settings(run).gpus else "cpu"
    model = trained_embedder(run.model, run.objective, checkpoint / "state", name=run.name)
    return model.to(device)


def _comparable(run: RunConfig) -> list[dict[str, Any]]:
    """Earlier validations that measured the same thing."""
    digest = _measure_digest(run)
    return [r for r in results(run.directory) if r.get("measure") == digest]


def _measure_digest(run: RunConfig) -> str:
    """What a value depends on beside the weights."""
    settings = _settings(run)
    names = ("name", "queries", "corpus", "qrels", "samples")
    # the names of files, not their folders: a job submitted again may find the same ones elsewhere
    sets = [
        [Path(getattr(of, n) or "").name for n in names] + _told(of.reader) for of in settings.sets
    ]
    limits = [settings.max_queries, settings.max_documents]
    text = json.dumps([sets, limits, run.validation_metric, run.seed])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _told(reader: ReaderSettings) -> list[dict[str, Any]]:
    """What decides which rows a reader gives; nothing where nothing is set."""
    places = {"image_root", "corpus", "corpus_copy"}
    told = reader.model_dump(mode="json", exclude_defaults=True, exclude=places)
    return [told] if told else []


def _read(file: Path, run: RunConfig) -> dict[str, Any] | None:
    """What a validation found, None when it failed, measured something else or was not done."""
    if not file.exists():
        return None
    record = json.loads(file.read_text())
    return record if record.get("measure") == _measure_digest(run) else None


def _file(directory: Path, done: int) -> Path:
    folder = directory / FOLDER
    folder.mkdir(exist_ok=True)
    return folder / f"{done:07d}.json"


def _settings(run: RunConfig) -> ValidationSettings:
    assert run.validation is not None
    return run.validation
