"""Which segments to merge when many small writes have left many small ones.

Segments of about the same size are merged together, so that a document is copied once for every
time its segment grows by `fan_in`, however many writes there are. Knows sizes only. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence


def pick_segments(rows: Sequence[int], *, fan_in: int = 8, max_rows: int = 20_000) -> list[int]:
    """Positions of segments that are worth merging; none where there are few of one size.

    Args:
        rows: live documents of each segment.
        fan_in: so many segments of about one size make it worth while.
        max_rows: most documents of all that are picked: bounds what one merge reads and writes.

    >>> pick_segments([5000, 1, 1, 1, 1, 7, 1], fan_in=4)
    [1, 2, 3, 4, 6]
    >>> pick_segments([5000, 1, 1, 7], fan_in=4)
    []
    >>> pick_segments([30, 31, 32], fan_in=2, max_rows=70)
    [0, 1]
    """
    tiers: dict[int, list[int]] = {}
    for position, count in enumerate(rows):
        tiers.setdefault(_tier(count, fan_in), []).append(position)
    for tier in sorted(tiers):
        chosen, total = [], 0
        for position in sorted(tiers[tier], key=lambda place: rows[place]):
            total += rows[position]
            if total > max_rows:
                break
            chosen.append(position)
        if len(chosen) >= fan_in:
            return sorted(chosen)
    return []


def _tier(rows: int, fan_in: int) -> int:
    tier = 0
    while rows >= fan_in:
        rows //= fan_in
        tier += 1
    return tier
