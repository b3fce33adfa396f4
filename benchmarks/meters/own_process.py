"""Runs a part of a benchmark in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def run_apart(
    program: str, arguments: Sequence[str], *, what: str, environment: Mapping[str, str] = {}
) -> Any:
    """Runs a Python program to its end and returns the last line it prints, read as JSON.

    Args:
        program: its file.
        arguments: for it.
        what: is measured, for the error.
        environment: variables beside those of this process.

    Raises:
        RuntimeError: it failed; its own messages stand above, on stderr.
    """
    done = subprocess.run(
        [sys.executable, program, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    if done.returncode:
        raise RuntimeError(f"measuring {what} failed with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def run_side_by_side(program: str, arguments: Sequence[str], *, what: str, count: int) -> list[Any]:
    """The same as `run_apart`, so many at once: what a part costs where the other cores work."""
    with ThreadPoolExecutor(count) as threads:
        runs = [threads.submit(run_apart, program, arguments, what=what) for _ in range(count)]
        return [run.result() for run in runs]
