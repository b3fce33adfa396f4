"""Which rows go through the model together: of like length, and at most so much of everything.

Padding costs as much as tokens do, so rows are sorted by length inside a window and cut into
batches by what a batch holds when it is padded. Knows numbers only. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BatchLimits:
    """What one forward pass may hold; a single row that is larger is a batch of its own.

    Attributes:
        rows: items.
        tokens: tokens of the padded batch, meta tokens included: its rows times the longest.
        patches: image patches of all its rows.
    """

    rows: int
    tokens: int
    patches: int


def cut_batches(
    lengths: Sequence[int], patches: Sequence[int], limits: BatchLimits
) -> list[list[int]]:
    """Groups rows of similar length into batches.

    Args:
        lengths: tokens of each row, meta tokens included.
        patches: image patches of each row.
        limits: of one batch.

    Returns:
        The places of each batch's rows, longest batch first: what is too large for a device then
        fails at once and not after hours. Every row is in one batch.

    >>> cut_batches([3, 9, 4, 8], [0, 0, 0, 0], BatchLimits(rows=3, tokens=18, patches=1))
    [[1, 3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], -patches[row], row))
    batches: list[list[int]] = []
    width = held = 0
    for row in order:
        current = batches[-1] if batches else []
        fits = (
            0 < len(current) < limits.rows
            and (len(current) + 1) * width <= limits.tokens
            and held + patches[row] <= limits.patches
        )
        if fits:
            current.append(row)
            held += patches[row]
        else:
            batches.append([row])
            width, held = lengths[row], patches[row]
    return batches


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of the tokens of all padded batches that are padding, 0 to 1.

    >>> padding_share([2, 4], [[0, 1]])
    0.25
    """
    of = np.asarray(lengths)
    padded = sum(len(batch) * int(of[list(batch)].max()) for batch in batches)
    return 1 - sum(int(of[list(batch)].sum()) for batch in batches) / padded if padded else 0.0
