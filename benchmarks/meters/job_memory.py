"""Private memory of a job's processes and what its object store holds, sampled while it runs.

Private (USS) is what a process would give back if it ended: shared pages, the object store among
them, do not count. Linux only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from meters.cpu import title
from meters.sampling import sampled

SAMPLE_S = 0.5
MIB = 2**20


@dataclass
class JobMemory:
    """Peaks of a job, in MiB.

    Attributes:
        driver: private memory of this process.
        worker: the largest private memory of any one worker.
        workers: peaks of the workers by what they do.
        object_store: bytes that the object store held at once.
    """

    driver: float = 0.0
    worker: float = 0.0
    workers: dict[str, float] = field(default_factory=dict)
    object_store: float = 0.0

    def look(self) -> None:
        """Take one sample."""
        self.driver = max(self.driver, _private(os.getpid()))
        for pid, name in _workers():
            held = _private(pid)
            self.workers[name] = max(self.workers.get(name, 0.0), held)
            self.worker = max(self.worker, held)
        self.object_store = max(self.object_store, _object_store())


@contextmanager
def watched() -> Iterator[JobMemory]:
    """Sample until the block ends; Ray has to be running."""
    memory = JobMemory()
    with sampled(memory.look, SAMPLE_S):
        yield memory


def heap_by_title(root: int) -> dict[str, float]:
    """MiB of memory without a file of a process and all below it, by what they call themselves.

    Files that a process alone has mapped count as private, but the system may take them back.
    """
    parents = _parents()
    sums: dict[str, float] = {}
    for pid in sorted(parents):
        if pid == root or _is_below(pid, parents, root):
            name = title(pid) or _name(pid)
            sums[name] = sums.get(name, 0.0) + _mib(pid, "Anonymous")
    return sums


def _private(pid: int) -> float:
    return _mib(pid, "Private_")


def _mib(pid: int, field: str) -> float:
    """Sum of the fields of `smaps_rollup` that begin so; 0 where the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def _workers() -> Iterator[tuple[int, str]]:
    """Ray's workers below this process, by what their title says they do, idle ones too."""
    parents = _parents()
    for pid in parents:
        name = title(pid)
        is_ours = _is_below(pid, parents, os.getpid()) and "Agent" not in name
        if is_ours and _is_of_ray(pid):
            yield pid, name.partition("(")[0].strip(": ")


def _parents() -> dict[int, int]:
    """The parent of every process."""
    found: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return found


def _is_below(pid: int, parents: dict[int, int], root: int) -> bool:
    while pid > 1:
        pid = parents.get(pid, 0)
        if pid == root:
            return True
    return False


def _is_of_ray(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().startswith("ray::")
    except OSError:
        return False


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "ended"


def _object_store() -> float:
    """MiB that the object store of the local node holds."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    address = ray.get_runtime_context().gcs_address
    stats = get_memory_info_reply(get_state_from_address(address)).store_stats
    return float(stats.object_store_bytes_used) / MIB
