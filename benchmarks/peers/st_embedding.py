"""sentence-transformers' `encode` over rows of our files, with our model or with its own.

`bank_encoder` makes our embedder its module, so that both sides run the same weights on the same
tokens; `stock_encoder` (st_training.py) is what it builds itself on the same base. Reading the
files and opening pictures counts, as it does for us.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import InputModule

from peers.st_training import BankModule, Features
from rematch_ray.data.item import Item
from rematch_ray.data.readers.parquet import read_table
from rematch_ray.data.schema import items_from_table
from rematch_ray.model.embedder import Embedder


class BankEncoder(BankModule, InputModule):  # type: ignore[misc]
    """Our processors and our embedder as the library's first and only module."""

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> Features:
        """Decodes, tokenises and pads a batch of Items."""
        rows = [self.embedder.row_encoder.encode(item, "document") for item in inputs]
        batch = self.embedder.batch(rows, "document")
        features: Features = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.mask,
            "segment": batch.segment,
            "positions": batch.position_ids.movedim(0, 2),
            "meta_positions": batch.meta_positions,
        }
        if batch.image_grid_thw is not None:
            features |= {
                "pixel_values": batch.pixel_values,
                "image_grid_thw": batch.image_grid_thw,
            }
        return features


def bank_encoder(embedder: Embedder, device: str) -> MultiVectorEncoder:
    """Our model behind the library's `encode`."""
    return MultiVectorEncoder(modules=[BankEncoder(embedder)], device=device)


def encode_items(model: MultiVectorEncoder, data: Path, batch_size: int) -> list[torch.Tensor]:
    """Reads the files and encodes their Items with `bank_encoder`."""
    items = items_from_table(read_table(data, rows="items"))
    encoded: list[torch.Tensor] = model.encode_document(
        items, batch_size=batch_size, convert_to_numpy=False, show_progress_bar=False
    )
    return encoded


def encode_stock(model: MultiVectorEncoder, data: Path, batch_size: int) -> list[torch.Tensor]:
    """Reads the files, opens the pictures and encodes the rows with the library's own model."""
    items = items_from_table(read_table(data, rows="items"))
    encoded: list[torch.Tensor] = model.encode_document(
        [_input(item) for item in items],
        batch_size=batch_size,
        convert_to_numpy=False,
        show_progress_bar=False,
    )
    return encoded


def _input(item: Item) -> Any:
    """A text, a picture or both, in the library's forms."""
    pictures = [
        Image.open(io.BytesIO(part.image)).convert("RGB") for part in item.images if part.image
    ]
    if not pictures:
        return item.text
    return {"image": pictures[0], "text": item.text} if item.text else pictures[0]
