"""A tiny random base model, an export made from it, and a small corpus with bad rows."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from rematch_ray.data.schema import (
    Item,
    Negative,
    Positive,
    Sample,
    items_to_table,
    samples_to_table,
    write_parquet,
)
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.settings import ModelSettings
from rematch_ray.model.tiny import (
    TINY_TEMPLATE,
    TinySettings,
    image_processor,
    save_base,
    tiny_model,
    train_tokenizer,
)

SIZES = TinySettings(
    vocabulary=300, hidden_dim=32, num_layers=1, num_heads=1, num_key_value_heads=1, mlp_dim=48,
    vision_dim=32, vision_layers=1,
)  # fmt: skip
LADDER = ("1x1", "2x4")


def png(number: int, size: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (number * 7 % 256, number * 31 % 256, 80)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny base model with random weights."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(["a red circle left of a blue bar"] * 4, SIZES)
    save_base(tiny_model(tokenizer, SIZES, seed=0), tokenizer, image_processor(SIZES), folder)
    return folder


def model_settings(base: Path) -> ModelSettings:
    return ModelSettings(
        base=str(base), ladder=LADDER, embedding_dim=8, fused_dim=16, fuse_k=2,
        template=TINY_TEMPLATE, instructions={"photos": {"document": "Describe the photo."}},
    )  # fmt: skip


@pytest.fixture(scope="session")
def export(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of an untrained embedder."""
    folder = tmp_path_factory.mktemp("export") / "best"
    torch.manual_seed(0)
    Embedder.build(model_settings(base), name="untrained").save_pretrained(folder)
    return folder


GOOD_ROWS = 60


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files: 60 good rows of image, text or both, and 3 that cannot be embedded."""
    folder = tmp_path_factory.mktemp("corpus")
    items = []
    for number in range(GOOD_ROWS):
        parts = [[png(number)], [f"document {number}"], [f"photo {number}", png(number, 48)]]
        items.append(
            Item.of(
                *parts[number % 3],
                id=f"d{number}",
                source="photos" if number % 2 else "notes",
                payload={"name": f"name {number}", "size": {"width": number}},
            )
        )
    bad = [
        Item.of(png(1)[:40], id="truncated", source="photos", payload={"name": "t"}),
        Item.of(b"not an image", id="text", source="photos", payload={"name": "x"}),
        Item.of(b"", id="empty", source="notes", payload={"name": "e"}),
    ]
    mixed = [*items[:20], bad[0], *items[20:30], bad[1]]
    payload = items_to_table(items).schema.field("payload").type
    write_parquet(items_to_table(mixed, payload), folder / "a.parquet")
    write_parquet(items_to_table([*items[30:], bad[2]], payload), folder / "b.parquet")
    return folder


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two sources of training rows: photos found by their name, notes by their text."""
    folder = tmp_path_factory.mktemp("train")
    rows = {
        "photos": [sample("photos", n, png(n)) for n in range(48)],
        "notes": [sample("notes", n, f"note {n}") for n in range(32)],
    }
    paths = {}
    for name, made in rows.items():
        paths[name] = folder / name
        write_parquet(samples_to_table(made[:20]), paths[name] / "a.parquet")
        write_parquet(samples_to_table(made[20:]), paths[name] / "b.parquet")
    return paths


def sample(source: str, number: int, document: bytes | str) -> Sample:
    positive = Item.of(document, id=f"{source}-{number}")
    wrong = Item.of(f"wrong {number}", id=f"{source}-wrong-{number}")
    query = Item.of(f"query {number}", id=f"q-{source}-{number}")
    return Sample(query, (Positive(positive),), (Negative(wrong),), source=source)
