"""What the embedding pass leaves of the raw items for the matching stage. Middle floor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rematch_ray.data.collate import CONTENT, PAD
from rematch_ray.model.deep_features import DeepFeatures, join_features
from rematch_ray.model.keys_values import KeysValues


@dataclass(frozen=True)
class RawRows:
    """Raw rows of one side: to be read again (packed), or as keys and values (shared).

    Attributes:
        inputs_embeds: (B, T, H) with image features in place; None once keys and values are there.
        position_ids: (3, B, T).
        segment: (B, T) int8 as in `Batch`.
        fused: (B, F) stored fused vectors, with gradient in training.
        keys_values: what the embedding pass computed for these rows; None when it kept nothing.
        deep: what their images add behind the first layers; None without, or once there are keys.
    """

    inputs_embeds: Tensor | None
    position_ids: Tensor
    segment: Tensor
    fused: Tensor
    keys_values: KeysValues | None = None
    deep: DeepFeatures | None = None

    def __len__(self) -> int:
        return self.fused.shape[0]

    def take(self, rows: Tensor) -> RawRows:
        """The named rows, (m,) indices."""
        return RawRows(
            None if self.inputs_embeds is None else self.inputs_embeds[rows],
            self.position_ids[:, rows],
            self.segment[rows],
            self.fused[rows],
            None if self.keys_values is None else self.keys_values.take(rows),
            None if self.deep is None else self.deep.take(rows),
        )

    @property
    def content_width(self) -> int:
        """Columns up to the end of the longest row's content."""
        content = (self.segment >= 0) & (self.segment <= CONTENT)
        return int(content.sum(dim=1).max())

    @property
    def content_end(self) -> Tensor:
        """(B,) first position after each row's content, over all three axes."""
        content = self.segment == CONTENT
        return self.position_ids.masked_fill(~content, -1).amax(dim=(0, 2)) + 1

    @staticmethod
    def stacked(first: RawRows, second: RawRows) -> RawRows:
        """The rows of two passes, one after the other, padded on the right to one width."""
        width = max(first.segment.shape[1], second.segment.shape[1])

        def wide(values: Tensor, value: int, last: int = 0) -> Tensor:
            missing = width - values.shape[-1 - last]
            return F.pad(values, (0, 0) * last + (0, missing), value=value)

        embeds = deep = None
        if first.inputs_embeds is not None and second.inputs_embeds is not None:
            both = [wide(part, 0, last=1) for part in (first.inputs_embeds, second.inputs_embeds)]
            embeds = torch.cat(both)
            features = [rows.deep and rows.deep.padded(width) for rows in (first, second)]
            deep = join_features(list(zip(features, both, strict=True)), dim=0)
        keys_values = None
        if first.keys_values is not None and second.keys_values is not None:
            keys_values = KeysValues.stacked(first.keys_values, second.keys_values)
        return RawRows(
            embeds,
            torch.cat([wide(first.position_ids, 0), wide(second.position_ids, 0)], dim=1),
            torch.cat([wide(first.segment, PAD), wide(second.segment, PAD)]),
            torch.cat([first.fused, second.fused]),
            keys_values,
            deep,
        )
