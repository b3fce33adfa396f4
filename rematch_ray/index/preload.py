"""Brings segments into memory before their first search, and keeps them there.

A search reads planes through memory maps. Where their files are not in memory, it waits for the
disk page by page, thousands of times where it scores thousands of documents; and of what is in
memory a system first gives up the pages that no process has mapped. So files are mapped whole, and
every page of them read once, in large pages where there are any (npy.py), what small budgets read
first; what would take too much memory stays on disk, to be read when a search asks for it. Middle
floor.
"""

from __future__ import annotations

import logging
import mmap
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from rematch_ray.index.generation import Generation
from rematch_ray.index.payload import PAYLOAD_FILE
from rematch_ray.index.segment import KEYS_FILE, Segment

_CGROUP = Path("/sys/fs/cgroup")
_SHARE = 0.5
# a line in the log from so many bytes on: a small write is not worth one
_TOLD_BYTES = 1 << 28
logger = logging.getLogger(__name__)


class Preloader:
    """Holds the files of segments in memory; one for each reader that serves.

    Args:
        room: bytes that it may take at the moment, asked before each segment.
    """

    def __init__(self, room: Callable[[], int] | None = None) -> None:
        self._room = room or (lambda: int(_SHARE * unmapped_memory()))
        self._held: dict[Path, dict[str, mmap.mmap]] = {}

    def take(self, generation: Generation) -> None:
        """Reads the segments that it does not hold yet; returns when that is done.

        A file that does not fit is left out, and one that is gone or cannot be read: who searches
        is told of that, not this.
        """
        for segment in generation.segments:
            if segment.directory not in self._held:
                self._held[segment.directory] = self._read(segment)

    def keep(self, generations: Iterable[Generation]) -> None:
        """Lets go of all segments but those of some generations."""
        named = {each.directory for generation in generations for each in generation.segments}
        self._held = {name: files for name, files in self._held.items() if name in named}

    def held(self, segment: Segment) -> set[str]:
        """Names of the files of a segment that are held."""
        return set(self._held.get(segment.directory, ()))

    def _read(self, segment: Segment) -> dict[str, mmap.mmap]:
        room, started = self._room(), time.monotonic()
        held: dict[str, mmap.mmap] = {}
        left: list[str] = []
        for name in by_use(segment):
            size = segment.manifest.files[name].bytes
            mapped = read_through(segment.directory / name) if 0 < size <= room else None
            if mapped is not None:
                held[name] = mapped
                room -= size
            elif size:
                left.append(name)
        size = sum(map(len, held.values()))
        if left or size >= _TOLD_BYTES:
            logger.info(
                "%s: read %.2f GB into memory in %.1f s%s",
                segment.directory.name,
                size / 1e9,
                time.monotonic() - started,
                f"; left on disk: {', '.join(left)}" if left else "",
            )
        return held


def by_use(segment: Segment) -> list[str]:
    """Names of the files of a segment that searches read, those that all of them read first.

    Codes that are held on a device are not read from here.
    """
    starts = {"fused": 0} | {f"{start}_{stop}": start for start, stop in segment.manifest.planes}

    def rank(name: str) -> tuple[int, int, str]:
        kind, _, plane = name.partition(".")[0].partition("_")
        if name == KEYS_FILE or kind == "coarse":
            return 0, 0, name
        if name == PAYLOAD_FILE or kind == "lexical":
            return 2, 0, name
        if kind == "originals":
            return 3, starts[plane], name
        return 1, starts.get(plane, 0), name

    on_device = ("codes_", "scales_") if segment.device is not None else ()
    read = [name for name in segment.manifest.files if not name.startswith(on_device)]
    return sorted(read, key=rank)


def read_through(path: Path) -> mmap.mmap | None:
    """Maps a file that is not empty and reads a byte of each page; None where that cannot be."""
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as gone:
        logger.warning("%s is not read ahead: %s", path, gone)
        return None
    try:
        # what is not in memory yet comes in large pages, where there are any; MADV_WILLNEED would
        # read it into small ones before that
        mapped.madvise(mmap.MADV_HUGEPAGE)
    except (AttributeError, OSError):  # a system, or a kernel, without them
        if hasattr(mmap, "MADV_WILLNEED"):
            mapped.madvise(mmap.MADV_WILLNEED)
    # a reduction without the interpreter's lock: health checks go on meanwhile
    np.frombuffer(mapped, np.uint8)[:: mmap.PAGESIZE].max()
    return mapped


def unmapped_memory() -> int:
    """Bytes of memory that could be had at the moment without taking mapped pages from anybody.

    Of the machine, or of the control group (version 2) that this process is confined to, whichever
    is less.
    """
    machine, group = _of_machine(), _of_group()
    return machine if group is None else min(machine, group)


def _of_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    sizes = {line.partition(":")[0]: 1024 * int(line.split()[1]) for line in lines}
    return max(0, sizes["MemAvailable"] - sizes["Mapped"])


def _of_group(directory: Path = _CGROUP) -> int | None:
    try:
        most = (directory / "memory.max").read_text().strip()
        used = int((directory / "memory.current").read_text())
        lines = (directory / "memory.stat").read_text().splitlines()
    except OSError:  # no group, or one of version 1
        return None
    if most == "max":
        return None
    sizes = {line.split()[0]: int(line.split()[1]) for line in lines}
    return max(0, int(most) - used + sizes["file"] - sizes["file_mapped"])
