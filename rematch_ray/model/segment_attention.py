"""Attention of a vision tower's images and windows: those of one length in one call.

A vision tower reads all images of a batch as one row, whose segments (images, or windows of them)
must not see each other. transformers attends to each segment by itself and asks the device for
their lengths in every block: for an image of 4,096 patches in windows of 64 that is 64 calls a
block. Here segments of one length are attended to together, and lengths are asked for once.
Middle floor.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

# transformers hands whole rows with their boundaries to what has `flash` in its name
NAME = "rematch_ray_flash_segments"


@dataclass(frozen=True)
class Groups:
    """Segments of a row by their lengths.

    Attributes:
        shapes: (segments, length) of each group.
        order: (T,) tokens of the first group, then the next; None where all have one length.
        back: (T,) where each token stands in that order; None likewise.
    """

    shapes: tuple[tuple[int, int], ...]
    order: Tensor | None
    back: Tensor | None


def group_segments(boundaries: Tensor) -> Groups:
    """Groups the segments between boundaries, (segments + 1,) ints that begin with 0.

    >>> groups = group_segments(torch.tensor([0, 2, 3, 5]))
    >>> groups.shapes, groups.order.tolist(), groups.back.tolist()
    (((1, 1), (2, 2)), [2, 0, 1, 3, 4], [1, 2, 0, 3, 4])
    """
    ends = boundaries.tolist()
    starts: dict[int, list[int]] = {}
    for start, end in itertools.pairwise(ends):
        if end > start:
            starts.setdefault(end - start, []).append(start)
    shapes = tuple((len(starts[length]), length) for length in sorted(starts))
    if len(shapes) <= 1:
        return Groups(shapes, None, None)
    tokens = [
        (torch.tensor(starts[length])[:, None] + torch.arange(length)).flatten()
        for length in sorted(starts)
    ]
    order = torch.cat(tokens)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    device = boundaries.device
    return Groups(shapes, order.to(device), back.to(device))


@torch.compiler.disable
def attend_to_segments(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None = None,
    *,
    cu_seq_lens_q: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention inside each segment, as transformers calls it.

    Args:
        module: the layer.
        query: (1, heads, T, head_dim), and so `key` and `value`.
        key: see `query`.
        value: see `query`.
        attention_mask: none is needed.
        cu_seq_lens_q: (segments + 1,) boundaries, the same tensor in every layer of a pass.
        scaling: of the products; None = 1 / sqrt(head_dim).
        dropout: of the weights.

    Returns:
        (1, T, heads, head_dim), and None for weights that nobody asks for.
    """
    groups = getattr(cu_seq_lens_q, "_groups", None)
    if groups is None:
        groups = group_segments(cu_seq_lens_q)
        cu_seq_lens_q._groups = groups  # type: ignore[attr-defined]  # of this pass and no other
    row = [states[0].transpose(0, 1) for states in (query, key, value)]  # (T, heads, head_dim)
    if groups.order is not None:
        row = [states.index_select(0, groups.order) for states in row]
    found, start = [], 0
    for count, length in groups.shapes:
        stop = start + count * length
        q, k, v = (
            states[start:stop].unflatten(0, (count, length)).transpose(1, 2) for states in row
        )
        seen = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        found.append(seen.transpose(1, 2).flatten(0, 1))
        start = stop
    together = torch.cat(found) if len(found) > 1 else found[0]
    if groups.back is not None:
        together = together.index_select(0, groups.back)
    return together[None], None


AttentionInterface.register(NAME, attend_to_segments)
