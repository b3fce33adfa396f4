"""A run's directory: its configuration, its log of steps, a request to stop, its result.

Plain files that the driver and the training processes share; Ray Train adds the checkpoints beside
them. It knows nothing of Ray, models or data.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from rematch_ray.config import RunConfig
from rematch_ray.data.sources import SourceSettings
from rematch_ray.errors import UserError
from rematch_ray.workloads.journal import Journal, Tail, replace

# What a run may change when it goes on: where and how it runs, never what it computes. That the
# data behind another path is the same is for the plan's digest to say.
FREE_SECTIONS = ("train.", "strategy.", "storage", "track.", "validation", "data.mix.")
FIXED_KEYS = ("train.steps", "strategy.precision")
SOURCE_PATHS = ("path", "image_root", "corpus", "corpus_copy")


class CheckpointError(RuntimeError):
    """A run stopped because its checkpoints could not be written."""


class RunDirectory:
    """The files of one run.

    Args:
        path: `<storage>/<name>`, absolute.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self._journal = Journal(self.metrics)
        self._config = path / "config.yaml"
        self._result = path / "result.json"
        self._stop = path / "stop"

    def result(self, run: RunConfig) -> dict[str, Any] | None:
        """Return what a finished run recorded; None when there is something left to do.

        Raises:
            UserError: the directory holds a run with other settings.
        """
        if self._config.exists():
            self._refuse_other_settings(run)
        return json.loads(self._result.read_text()) if self._result.exists() else None

    def open(self, run: RunConfig) -> None:
        """Make the directory, or go on in it.

        Raises:
            UserError: the directory cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._stop.unlink(missing_ok=True)
            replace(self._config, yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False))
        except OSError as error:
            raise UserError(
                f"cannot write the run directory {self.path}: {error.strerror}; set `storage`"
            ) from error

    def _refuse_other_settings(self, run: RunConfig) -> None:
        old = dict(flat(yaml.safe_load(self._config.read_text())))
        new = dict(flat(run.model_dump(mode="json")))
        for values in (old, new):
            values["data.sources"] = [_without_paths(s) for s in values.get("data.sources") or []]
        for key in sorted(old.keys() | new.keys()):
            free = key.startswith(FREE_SECTIONS) and key not in FIXED_KEYS
            if not free and old.get(key) != new.get(key):
                raise UserError(
                    f"{self.path} holds a run with {key}={old.get(key)}, now {key}={new.get(key)}; "
                    "a run goes on with the settings it began with: give this one another `name`, "
                    f"or delete {self.path}"
                )

    def finish(self, result: dict[str, Any]) -> None:
        """Record the result: from now on the run is finished."""
        replace(self._result, json.dumps(result, indent=1) + "\n")

    def ask_to_stop(self) -> None:
        """Ask the training processes to save and return after the step they are in."""
        self._stop.touch()

    def stop_asked(self) -> bool:
        """Whether somebody asked the run to stop."""
        return self._stop.exists()

    def log(self, record: dict[str, Any]) -> None:
        """Append one record to metrics.jsonl."""
        self._journal.append(record)

    def note(self, text: str, *, at: int) -> None:
        """Log a line for whoever watches the run; `at` is the number of steps done."""
        self.log({"event": "note", "at": at, "text": text})

    def forget_steps_from(self, step: int) -> None:
        """Drop logged steps from `step` on: they are about to be done again."""
        self._journal.keep([r for r in self.records() if r.get("step", -1) < step])

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield what was logged; a last line that is still being written is left out."""
        return self._journal.records()

    def tail(self) -> Tail:
        """Return a reader of the log that goes on where it stopped."""
        return Tail(self.metrics)


def _without_paths(source: dict[str, Any]) -> dict[str, Any]:
    """What is compared of a source; keys that earlier releases did not write count as not set."""
    defaults = {name: field.default for name, field in SourceSettings.model_fields.items()}
    set_here = {k: v for k, v in source.items() if v not in (None, [], defaults.get(k))}
    return {key: value for key, value in set_here.items() if key not in SOURCE_PATHS}


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of nested settings."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
