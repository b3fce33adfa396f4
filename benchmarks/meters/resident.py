"""Peak memory of a process on Linux, resident or its own alone, without the allocator's holes."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from meters.sampling import sampled

SAMPLE_S = 0.02

# glibc keeps freed blocks in holes that the next tensors do not fit, which would measure the
# allocator: with this every tensor is its own mapping, given back when it is freed
RETURN_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment of a process that is measured; it has to be there from the start."""


def start_peak() -> int:
    """Lets the peak start anew; returns the bytes that are resident now."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """Most bytes that were resident since `start_peak`."""
    return _status("VmHWM")


@dataclass
class OwnMemory:
    """Most bytes of a process that are no page of a file, while it was watched."""

    peak_bytes: int = 0

    def look(self) -> None:
        """Take one sample."""
        self.peak_bytes = max(self.peak_bytes, _status("RssAnon"))


@contextmanager
def own_memory() -> Iterator[OwnMemory]:
    """Samples until the block ends: what is mapped from files does not count, as it can go."""
    memory = OwnMemory()
    memory.look()
    with sampled(memory.look, SAMPLE_S):
        yield memory


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status: peak memory on CPU needs Linux")
