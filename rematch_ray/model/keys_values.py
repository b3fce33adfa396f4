"""The decoder's keys and values, recorded in one forward pass and read by another.

A recorder stands where transformers expects a cache and keeps what each layer computes, gradients
and all; a reader puts recorded columns in front of a second pass's own keys. Neither is a cache
for generation. Knows nothing of meta tokens or matching. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache


class KeyValueRecorder(DynamicCache):
    """Keeps the keys and values of every layer of one forward pass.

    Recording twice changes nothing: a layer that is recomputed in the backward pass calls `update`
    again, and what the first forward recorded is part of the graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recorded: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Records a layer's keys and values, (B, heads, T, head_dim), and hands them back."""
        if layer_idx not in self.recorded:
            self.recorded[layer_idx] = (key_states, value_states)
        return key_states, value_states


@dataclass(frozen=True)
class KeysValues:
    """Keys and values of rows that one forward pass recorded.

    Attributes:
        layers: layer -> keys and values, (B, heads, T, head_dim) each, after the rotation.
        rows: (m,) which of the B rows, in this order; None = all.
        start: first column.
        stop: column to end before; None = to the last.
    """

    layers: dict[int, tuple[Tensor, Tensor]]
    rows: Tensor | None = None
    start: int = 0
    stop: int | None = None

    def take(self, rows: Tensor) -> KeysValues:
        """The named rows, (m,) indices; nothing is copied before a layer is read."""
        chosen = rows if self.rows is None else self.rows[rows]
        return KeysValues(self.layers, chosen, self.start, self.stop)

    def columns(self, start: int, stop: int) -> KeysValues:
        """Some columns of every row."""
        return KeysValues(self.layers, self.rows, start, stop)

    @property
    def num_columns(self) -> int:
        """T of what `layer` returns."""
        stop = self.layers[0][0].shape[2] if self.stop is None else self.stop
        return stop - self.start

    @property
    def has_gradient(self) -> bool:
        """Whether gradients flow back through every layer's keys and values."""
        return all(part.requires_grad for pair in self.layers.values() for part in pair)

    def layer(self, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, (m, heads, T, head_dim) each."""
        key, value = (part[:, :, self.start : self.stop] for part in self.layers[number])
        if self.rows is None:
            return key, value
        return key.index_select(0, self.rows), value.index_select(0, self.rows)

    @staticmethod
    def stacked(first: KeysValues, second: KeysValues) -> KeysValues:
        """The rows of two recordings, one after the other, padded on the right to one width."""
        width = max(first.num_columns, second.num_columns)
        layers = {}
        for number in first.layers:
            pairs = zip(first.layer(number), second.layer(number), strict=True)
            key, value = (torch.cat([_wide(a, width), _wide(b, width)]) for a, b in pairs)
            layers[number] = (key, value)
        return KeysValues(layers)


class KeyValueReader(DynamicCache):
    """Lets a forward pass attend to recorded columns in front of its own.

    Stores nothing, so layers may be recomputed and one reader may serve several passes.

    Args:
        parts: recorded columns in the order of the mask's, all of the same number of rows.
    """

    def __init__(self, parts: Sequence[KeysValues]) -> None:
        super().__init__()
        self._parts = parts

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Recorded columns, then the pass's own."""
        read = [part.layer(layer_idx) for part in self._parts]
        keys = torch.cat([*(key for key, _ in read), key_states], dim=2)
        values = torch.cat([*(value for _, value in read), value_states], dim=2)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Recorded columns."""
        return sum(part.num_columns for part in self._parts)


def _wide(states: Tensor, width: int) -> Tensor:
    return F.pad(states, (0, 0, 0, width - states.shape[2]))
