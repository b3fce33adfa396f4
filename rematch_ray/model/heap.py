"""Memory that a process keeps between two steps instead of giving it back and asking for it again.

Every forward pass on a CPU allocates and frees the same large tensors. glibc maps the larger ones
anew each time and the kernel fills every page with zeros: a seventh of a training step's CPU time
at hidden size 512 (benchmarks/results/loader.md). Threads other than the main one get heaps of
their own, which give large blocks back whatever is set: all share one (forward passes run in such
threads, and cost 8 % more without this). The peak stays what it was. Top floor.
"""

import ctypes
import platform

# numbers of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_NEVER, _LARGEST = 2**31 - 1, 2**30


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, up to blocks of 1 GiB.

    Returns:
        Whether the C library took the setting: only glibc has it, elsewhere nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_THRESHOLD, _LARGEST), (_M_TRIM_THRESHOLD, _NEVER), (_M_ARENA_MAX, 1))
    return all(mallopt(name, value) == 1 for name, value in settings)
