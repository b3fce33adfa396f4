"""What a forward pass gives: the embeddings of items, and what the objective reads beside them.

Plain containers of tensors; they know no model. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rematch_ray.data.collate import Batch
from rematch_ray.model.deep_features import DeepFeatures
from rematch_ray.model.keys_values import KeysValues
from rematch_ray.model.raw_rows import RawRows


@dataclass(frozen=True)
class Embeddings:
    """Vectors of N items of one side.

    Attributes:
        vectors: (N, R, D) float32, unit norm, nested: the first r are the budget-r vectors.
        fused: (N, F) float32, unit norm; None for a model trained without it.
    """

    vectors: Tensor
    fused: Tensor | None

    def __len__(self) -> int:
        return self.vectors.shape[0]

    def __getitem__(self, rows: slice) -> Embeddings:
        return Embeddings(self.vectors[rows], None if self.fused is None else self.fused[rows])

    def cpu(self) -> Embeddings:
        """The same embeddings in main memory."""
        return Embeddings(self.vectors.cpu(), None if self.fused is None else self.fused.cpu())

    @staticmethod
    def concatenate(parts: Sequence[Embeddings]) -> Embeddings:
        """Rows of several embeddings one after another; ValueError when there are none."""
        if not parts:
            raise ValueError("nothing to concatenate: pass at least one Embeddings")
        fused = [part.fused for part in parts if part.fused is not None]
        vectors = torch.cat([part.vectors for part in parts])
        return Embeddings(vectors, torch.cat(fused) if fused else None)


@dataclass(frozen=True)
class Encoded:
    """One forward pass: the embeddings and what the other terms of the objective read.

    Attributes:
        vectors: (B, R, D) unit vectors with gradient.
        fused: (B, F) unit vectors with gradient, or None.
        states: (B, R, H) un-normalised last hidden states at the meta tokens.
        batch: the rows.
        inputs_embeds: (B, T, H) for the packed matching stage's raw views; None when recorded.
        deep: what images add behind the first layers, for the packed stage; None when recorded.
        keys_values: the decoder's keys and values of the rows, where they were recorded.
    """

    vectors: Tensor
    fused: Tensor | None
    states: Tensor
    batch: Batch
    inputs_embeds: Tensor | None = None
    deep: DeepFeatures | None = None
    keys_values: KeysValues | None = None

    @property
    def embeddings(self) -> Embeddings:
        """The vectors alone, with gradient."""
        return Embeddings(self.vectors, self.fused)

    def raw_rows(self) -> RawRows:
        """What the matching stage reads; ValueError without a fused vector."""
        if self.fused is None:
            raise ValueError("matching needs a fused vector, which this model was built without")
        batch = self.batch
        return RawRows(
            self.inputs_embeds,
            batch.position_ids,
            batch.segment,
            self.fused,
            self.keys_values,
            self.deep,
        )
