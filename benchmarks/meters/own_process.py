"""Runs a part of a benchmark in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
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
