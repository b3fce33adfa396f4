"""A run's directory: its configuration, its log of steps, a request to stop, its result.

Plain files that the driver and the training processes share; Ray Train adds the checkpoints beside
them. It knows nothing of Ray, models or data.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from rematch_ray.config import RunConfig
from rematch_ray.errors import UserError

# What a run may change when it goes on: where and how it runs, never what it computes. That the
# data behind another path is the same is for the plan's digest to say.
FREE_SECTIONS = ("train.", "storage")
FIXED_KEYS = ("train.steps",)


class RunDirectory:
    """The files of one run.

    Args:
        path: `<storage>/<name>`, absolute.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
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
            _write(self._config, yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False))
        except OSError as error:
            raise UserError(
                f"cannot write the run directory {self.path}: {error.strerror}; set `storage`"
            ) from error

    def _refuse_other_settings(self, run: RunConfig) -> None:
        old = dict(_flat(yaml.safe_load(self._config.read_text())))
        new = dict(_flat(run.model_dump(mode="json")))
        for values in (old, new):
            sources = values.get("data.sources") or []
            values["data.sources"] = [{**source, "path": None} for source in sources]
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
        _write(self._result, json.dumps(result, indent=1) + "\n")

    def ask_to_stop(self) -> None:
        """Ask the training processes to save and return after the step they are in."""
        self._stop.touch()

    def stop_asked(self) -> bool:
        """Whether somebody asked the run to stop."""
        return self._stop.exists()

    def log(self, record: dict[str, Any]) -> None:
        """Append one record to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def forget_steps_from(self, step: int) -> None:
        """Drop logged steps from `step` on: they are about to be done again."""
        kept = [r for r in self.records() if r.get("step", -1) < step]
        _write(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield what was logged; a last line that is still being written is left out."""
        if not self.metrics.exists():
            return
        with self.metrics.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
