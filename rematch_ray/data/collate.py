"""Rows -> Batch: right padding, room for the meta tokens, one tensor of patches for all images.

Knows token layout and padding; nothing of files, decoding, weights or losses. `Batch` is what one
forward pass reads. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from rematch_ray.data.rows import EncodedRow

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Moved = TypeVar("Moved", bound="DataclassInstance")

HEADER, CONTENT, END, META, PAD = 0, 1, 2, 3, -1


@dataclass(frozen=True)
class Batch:
    """Padded rows `[P][S][E][M]` of one side.

    Attributes:
        input_ids: (B, T) int64; meta and padding columns hold the padding id.
        mask: (B, T) bool, True = a real or meta token.
        segment: (B, T) int8: `HEADER`, `CONTENT`, `END`, `META` or `PAD`.
        position_ids: (3, B, T) int64.
        meta_positions: (B, R) int64 columns of the meta tokens.
        pixel_values: (patches, patch_dim) float32, all images of all rows; None without images.
        image_grid_thw: (images, 3) int64; None without images.
        ids: the items' ids.
    """

    input_ids: Tensor
    mask: Tensor
    segment: Tensor
    position_ids: Tensor
    meta_positions: Tensor
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None
    ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return moved(self, device)


def collate(rows: Sequence[EncodedRow], *, num_meta: int, pad_id: int) -> Batch:
    """Pads rows to the longest and leaves `num_meta` columns behind each row's last token.

    Args:
        rows: at least one.
        num_meta: R, meta tokens of this side.
        pad_id: token id put under meta tokens and padding.

    Returns:
        Batch with T = longest row + R.
    """
    lengths = np.array([len(row.input_ids) for row in rows])
    num_rows, width = len(rows), int(lengths.max()) + num_meta
    input_ids = np.full((num_rows, width), pad_id, dtype=np.int64)
    segment = np.full((num_rows, width), PAD, dtype=np.int8)
    positions = np.zeros((3, num_rows, width), dtype=np.int64)
    for index, row in enumerate(rows):
        length, stop = lengths[index], lengths[index] + num_meta
        input_ids[index, :length] = row.input_ids
        segment[index, : row.header] = HEADER
        segment[index, row.header : row.content] = CONTENT
        segment[index, row.content : length] = END
        segment[index, length:stop] = META
        positions[:, index, :length] = row.positions
        after = int(row.positions.max()) + 1
        positions[:, index, length:stop] = after + np.arange(num_meta)
    has_images = any(len(row.grid) for row in rows)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        mask=torch.from_numpy(segment != PAD),
        segment=torch.from_numpy(segment),
        position_ids=torch.from_numpy(positions),
        meta_positions=torch.from_numpy(lengths[:, None] + np.arange(num_meta)[None, :]),
        pixel_values=_stack([row.pixels.unpack() for row in rows if len(row.grid)])
        if has_images
        else None,
        image_grid_thw=_stack([row.grid for row in rows if len(row.grid)]).long()
        if has_images
        else None,
        ids=tuple(row.id for row in rows),
    )


def _stack(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays))


def moved(value: Moved, device: torch.device | str) -> Moved:
    """A copy of a dataclass with its tensors (and nested batches) on another device."""
    fresh = {}
    for entry in fields(value):
        current = getattr(value, entry.name)
        fresh[entry.name] = current.to(device) if hasattr(current, "to") else current
    return replace(value, **fresh)
