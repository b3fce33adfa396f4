"""What is marked `gpu` runs on a machine without one, on the device of tests/pretended_cuda."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="no C++ compiler on this machine"
)
WHOLE = ["tests/model/test_embedder.py", "tests/evaluation"]
"""Tests whose models go to the GPU by themselves where there is one."""
PARTS = [
    "tests/index",
    "tests/pretended_cuda",
    "tests/serve",
    "tests/training/test_measures.py",
    "tests/training/test_step.py",
    "tests/workloads/test_embed.py",
]
"""Those that are told, `device` among their arguments; the rest take minutes."""


def run(*arguments: str) -> int:
    """Runs pytest with the plugin; returns how many tests passed, none of them skipped."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.pretended_cuda.plugin", "-q"]
    done = subprocess.run(
        [*command, "--tb=short", *arguments], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    last = done.stdout.splitlines()[-1]
    assert "skipped" not in last, done.stdout[-4000:]
    found = re.search(r"(\d+) passed", last)
    assert found, last
    return int(found[1])


@needs_compiler
@pytest.mark.timeout(400)
def test_steps_searches_and_passes_run_on_a_device() -> None:
    assert run("-m", "gpu and not slow", *PARTS) > 50


@needs_compiler
@pytest.mark.timeout(400)
def test_models_that_go_to_a_device_by_themselves_are_used_there() -> None:
    assert run("-m", "not slow and not ray", *WHOLE) > 60


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_all_that_needs_a_gpu_runs_on_a_pretended_one() -> None:
    assert run("-m", "gpu", "tests") > 100
