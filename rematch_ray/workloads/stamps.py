"""Which stages of a longer job are done: one stamp per stage, with a hash of what went into it.

Knows nothing of what a stage does. A stage with the same inputs is skipped, an interrupted one goes
on, one whose inputs changed loses its outputs and is done again.
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Stamps:
    """The stamps of one job.

    Args:
        folder: where they lie.
        stages: every stage's name, in order.
        fresh: forget what earlier runs finished.
    """

    def __init__(self, folder: Path, stages: tuple[str, ...], *, fresh: bool = False) -> None:
        self._folder = folder
        self._stages = stages
        self._fresh = fresh

    def do(
        self, stage: str, inputs: Any, work: Callable[[], dict[str, Any]], *outputs: Path
    ) -> dict[str, Any]:
        """Do a stage unless it is done.

        Args:
            stage: its name.
            inputs: what its result depends on, as JSON.
            work: does it and returns its result, as JSON.
            outputs: removed before the stage is done anew.

        Returns:
            The result, of now or of the run that finished the stage.
        """
        label = f"[{self._stages.index(stage) + 1}/{len(self._stages)}] {stage}"
        digest = hashlib.sha256(
            json.dumps(inputs, sort_keys=True, default=str).encode()
        ).hexdigest()
        stamp = self._read(stage)
        if not self._fresh and stamp.get("inputs") == digest:
            if "result" in stamp:
                _say(f"{label}: done before ({stamp['seconds']:.0f} s)")
                return dict(stamp["result"])
        elif self._fresh or stamp:
            for output in outputs:
                shutil.rmtree(output, ignore_errors=True)
        _say(f"{label} ...")
        self._write(stage, {"inputs": digest})
        started = time.monotonic()
        result = work()
        seconds = round(time.monotonic() - started, 1)
        self._write(stage, {"inputs": digest, "seconds": seconds, "result": result})
        _say(f"{label}: {seconds:.0f} s")
        return result

    def seconds(self) -> dict[str, float]:
        """Seconds that every finished stage took."""
        stamps = {stage: self._read(stage) for stage in self._stages}
        return {stage: stamp["seconds"] for stage, stamp in stamps.items() if "seconds" in stamp}

    def _file(self, stage: str) -> Path:
        return self._folder / f"{stage}.json"

    def _read(self, stage: str) -> dict[str, Any]:
        try:
            found = json.loads(self._file(stage).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, stage: str, stamp: dict[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._file(stage).with_suffix(".unfinished")
        partial.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
        partial.replace(self._file(stage))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
