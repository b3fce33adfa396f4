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
from rematch_ray.config_file import read_settings
from rematch_ray.data.sources import SourceSettings
from rematch_ray.errors import UserError
from rematch_ray.workloads.journal import Journal, Tail, replace

# What a run may change when it goes on: where and how it runs, never what it computes. That the
# data behind another path is the same is for the plan's digest to say.
FREE_SECTIONS = ("train.", "strategy.", "storage", "track.", "validation", "data.mix.")
FIXED_KEYS = ("train.steps", "train.start_from", "strategy.precision")
# how a step is computed, watched or accepted, not what comes of it: values agree to rounding, and
# where there is dropout it is drawn anew, as by another number of workers
FREE_KEYS = (
    "data.max_bad_share",
    "model.gradient_checkpointing",
    "objective.match_form",
    "optimisation.chunk_tokens",
    "optimisation.probe_every",
)
# what a run that goes on may compute otherwise from then on; it is said and logged
RATES = ("optimisation.learning_rate", "optimisation.new_learning_rate")
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

    def open(self, run: RunConfig) -> str:
        """Make the directory, or go on in it.

        Returns:
            Which rates are others from now on, as it was noted in the log; "" when none is.

        Raises:
            UserError: the directory cannot be written, or its settings cannot be read.
        """
        others = self._other_rates(run)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._stop.unlink(missing_ok=True)
            replace(self._config, yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False))
        except OSError as error:
            raise UserError(
                f"cannot write the run directory {self.path}: {error.strerror}; set `storage`"
            ) from error
        if not others:
            return ""
        saved = max((r["at"] for r in self.records() if r["event"] == "checkpoint"), default=0)
        text = f"from step {saved} on: {', '.join(others)}"
        self.note(text, at=saved)
        return text

    def _refuse_other_settings(self, run: RunConfig) -> None:
        old, new = _compared(self._began_with()), _compared(run)
        for key in sorted(old.keys() | new.keys()):
            free = key.startswith(FREE_SECTIONS) and key not in FIXED_KEYS
            free = free or key in FREE_KEYS or key in RATES
            if not free and old.get(key) != new.get(key):
                raise UserError(
                    f"{self.path} holds a run with {key}={old.get(key)}, now {key}={new.get(key)}; "
                    f"a run goes on with the settings it began with: say {key}="
                    f"{json.dumps(old.get(key), default=str)}, give this one another `name`"
                    f"{self._begin_there()}, or delete {self.path}"
                )

    def _began_with(self) -> RunConfig:
        """The settings in the directory; keys that an earlier release did not know are not set.

        Raises:
            UserError: a key or value that this release does not know, by name.
        """
        try:
            return read_settings(RunConfig, self._config)
        except UserError as error:
            raise UserError(
                f"another release began the run in {self.path} ({error}): go on with that release, "
                f"or give this run another `name`{self._begin_there()}"
            ) from error

    def _begin_there(self) -> str:
        """How another run begins with what this one saved last; "" where nothing is saved."""
        names = [r["name"] for r in self.records() if r["event"] == "checkpoint"]
        if not names:
            return ""
        return f" (train.start_from={self.path / names[-1]} takes over what this one learned)"

    def _other_rates(self, run: RunConfig) -> list[str]:
        """The rates that differ from those in the directory, a phrase each."""
        if not self._config.exists():
            return []
        old, new = _compared(self._began_with()), _compared(run)
        return [f"{k} {_spelt(new[k])}, before {_spelt(old[k])}" for k in RATES if old[k] != new[k]]

    def has_begun(self) -> bool:
        """Whether a run was opened here."""
        return self._config.exists()

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


def _compared(run: RunConfig) -> dict[str, Any]:
    """Dotted key -> value, sources without the places where their files lie."""
    values = dict(flat(run.model_dump(mode="json")))
    values["data.sources"] = [_without_paths(s) for s in values.get("data.sources") or []]
    return values


def _without_paths(source: dict[str, Any]) -> dict[str, Any]:
    """What is compared of a source, and shown where it differs: what is set, but for paths."""
    defaults = {name: field.default for name, field in SourceSettings.model_fields.items()}
    set_here = {k: v for k, v in source.items() if v not in (None, [], defaults.get(k))}
    return {key: value for key, value in set_here.items() if key not in SOURCE_PATHS}


def _spelt(rate: float | None) -> str:
    return "null" if rate is None else f"{rate:g}"


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of nested settings."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
