"""How the coarse stage grows with its corpus: its kind, its lists, how many are looked through.

Counts alone; what the kinds are is in kinds.py. Middle floor.
"""

from __future__ import annotations

import math

SCAN, PACKED, BITS, LISTS = "scan", "scan4", "scan1", "ivf_sq8"
SCANS = (SCAN, PACKED, BITS)
# whole searches took the same with 8 and 4 bits at 20,000 documents, and a fifth less with 4 at
# 100,000 (results/search.md); between them nothing was measured
PACKED_FROM_DOCUMENTS = 50_000
# One bit a number reads 20 bytes instead of 68 of a document of 128, and the 8-bit codes of what it
# proposes come on top: a fifth slower at 100,000 documents, half the time of the scan at a million
# (results/search.md); between them nothing was measured
BITS_FROM_DOCUMENTS = 300_000
# A scan misses nothing, and lists are faster only where few of many are probed: an eighth of those
# of a million documents took 7.3 ms a search and found 0.937 of the ten best, scans of 4 and 8 bits
# 6.1 and 8.0 ms and 0.987 (results/search.md). Where lists begin to pay was not measured: a scan of
# this many would take 30 ms
LISTS_FROM_DOCUMENTS = 10_000_000
_LEAST_NPROBE, _PROBED_SHARE = 64, 8


def kind_by_size(num_documents: int) -> str:
    """The kind that `auto` stands for.

    >>> [kind_by_size(documents) for documents in (1000, 10**5, 10**6, 10**8)]
    ['scan', 'scan4', 'scan1', 'ivf_sq8']
    """
    if num_documents < PACKED_FROM_DOCUMENTS:
        return SCAN
    if num_documents < BITS_FROM_DOCUMENTS:
        return PACKED
    return BITS if num_documents < LISTS_FROM_DOCUMENTS else LISTS


def lists_for(num_entries: int) -> int:
    """Inverted lists for a number of entries: FAISS's own advice below a million.

    >>> lists_for(1_000_000)
    4000
    """
    return max(1, math.isqrt(16 * num_entries))


def default_nprobe(num_lists: int) -> int:
    """How many inverted lists a search looks through that names no number.

    >>> [default_nprobe(count) for count in (16, 400, 4096)]
    [16, 64, 512]
    """
    return min(num_lists, max(_LEAST_NPROBE, num_lists // _PROBED_SHARE))
