"""Random numbers that depend on what they are for, not on who draws them or in which order.

A row's draws are a function of (step, row id), so any number of ranks, chunks or passes sees the
same ones. Middle floor.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


def row_uniforms(row_ids: Tensor, step: int, count: int) -> Tensor:
    """Uniform numbers per row.

    Args:
        row_ids: (b,) int64.
        step: global step.
        count: numbers per row.

    Returns:
        (b, count) float32 in [0, 1).

    >>> ids = torch.tensor([3, 5])
    >>> bool((row_uniforms(ids, 7, 2)[1] == row_uniforms(ids[1:], 7, 2)[0]).all())
    True
    """
    lanes = torch.arange(1, count + 1, device=row_ids.device, dtype=torch.int64)
    state = row_ids[:, None] + _GOLDEN * (lanes[None, :] + 1000003 * (step + 1))
    state = (state ^ _shift(state, 30)) * _MIX1
    state = (state ^ _shift(state, 27)) * _MIX2
    state = state ^ _shift(state, 31)
    return _shift(state, 40).float() / float(1 << 24)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
