"""One embedder with random weights for the folder; tests that change weights make their own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rematch_ray.data.collate import Batch
from rematch_ray.data.prompts import Side
from rematch_ray.data.schema import Item
from rematch_ray.model.embedder import Embedder
from tests.tiny import png

MIXED = [
    Item.of("a red circle", id="text"),
    Item.of(png("red", 32, 64), id="image"),
    Item.of("left", png("blue", 48, 32), "of a longer text", png("green"), "end", id="interleaved"),
    Item.of("a", id="short"),
]


@pytest.fixture(scope="session")
def embedder(tiny_export: Path) -> Embedder:
    return Embedder.from_pretrained(tiny_export, device="cpu")


@pytest.fixture(scope="session")
def batch_of(embedder: Embedder) -> Callable[[list[Item], Side], Batch]:
    """Items as a batch of the session's embedder."""

    def make(items: list[Item], side: Side) -> Batch:
        return embedder.batch([embedder.row_encoder.encode(item, side) for item in items], side)

    return make


@pytest.fixture(scope="session")
def mixed() -> list[Item]:
    """Text, image, both interleaved, and a very short text."""
    return MIXED
