"""Image features that decoder layers add to their outputs, beside those among the embeddings.

Qwen3-VL takes features from several depths of its vision tower: the last ones stand in the place of
word embeddings, the others are added behind the first decoder layers, at the same tokens. Rows that
are picked, cut or put side by side take theirs along. Middle floor.

Source: DeepStack (arXiv 2406.04334).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NONE = -1


@dataclass(frozen=True)
class DeepFeatures:
    """Which visual token stands where, and what is added there behind which layer.

    Attributes:
        tokens: (B, T) int64, rows of `layers`; -1 where no image is.
        layers: for the first decoder layers in turn, (visual tokens, H) with gradient.
    """

    tokens: Tensor
    layers: tuple[Tensor, ...]

    @staticmethod
    def of(is_image: Tensor, layers: Sequence[Tensor]) -> DeepFeatures | None:
        """Features in reading order at the places of images, (B, T) bool; None without layers."""
        if not layers:
            return None
        order = is_image.flatten().long().cumsum(0).view_as(is_image) - 1
        return DeepFeatures(order.masked_fill(~is_image, NONE), tuple(layers))

    def take(self, rows: Tensor) -> DeepFeatures:
        """The named rows, (m,) indices."""
        return DeepFeatures(self.tokens[rows], self.layers)

    def columns(self, start: int, stop: int) -> DeepFeatures:
        """Some columns of every row."""
        return DeepFeatures(self.tokens[:, start:stop], self.layers)

    def padded(self, width: int) -> DeepFeatures:
        """With columns on the right that have none."""
        missing = width - self.tokens.shape[1]
        return DeepFeatures(
            torch.nn.functional.pad(self.tokens, (0, missing), value=NONE), self.layers
        )

    def placed(self) -> tuple[Tensor, list[Tensor]]:
        """What a decoder is told: (B, T) bool, and each layer's features in reading order."""
        is_image = self.tokens != NONE
        chosen = self.tokens[is_image]
        return is_image, [layer[chosen] for layer in self.layers]


def join_features(
    parts: Sequence[tuple[DeepFeatures | None, Tensor]], dim: int
) -> DeepFeatures | None:
    """Features of parts that are put together.

    Args:
        parts: of each its features, None where it has none, and its embeddings, (B, T, H).
        dim: 0 one below the other, 1 side by side.

    Returns:
        DeepFeatures of the whole; None where no part has any.
    """
    starts: dict[int, int] = {}
    layers: list[tuple[Tensor, ...]] = []
    tokens = []
    count = 0
    for deep, embeds in parts:
        if deep is None:
            shape = embeds.shape[:2]
            tokens.append(torch.full(shape, NONE, dtype=torch.int64, device=embeds.device))
            continue
        if id(deep.layers) not in starts:  # rows of one pass share their features
            starts[id(deep.layers)] = count
            layers.append(deep.layers)
            count += len(deep.layers[0])
        start = starts[id(deep.layers)]
        tokens.append(torch.where(deep.tokens == NONE, NONE, deep.tokens + start))
    if not layers:
        return None
    whole = layers[0] if len(layers) == 1 else tuple(map(torch.cat, zip(*layers, strict=True)))
    return DeepFeatures(torch.cat(tokens, dim=dim), whole)
