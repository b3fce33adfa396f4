"""A process that keeps what it frees is not handed the same pages again and again."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading
import torch
from rematch_ray.model.heap import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)
def step():
    torch.ones(40_000_000).mul_(2)
def steps():
    for _ in range(10):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
if sys.argv[2] == "main":
    steps()
else:
    thread = threading.Thread(target=steps)
    thread.start()
    thread.join()
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has it")


def page_faults(what: str, place: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what, place], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.parametrize("place", ["main", "thread"])
def test_freed_memory_is_used_again(place: str) -> None:
    left = page_faults("leave", place)
    assert left > 300_000  # 160 MB anew in each of ten steps, by pages of 4 KiB
    assert page_faults("keep", place) < left / 4  # the heap may still grow once or twice
