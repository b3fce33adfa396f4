"""A model of some hundred thousand random weights, and rows, samples and batches that fit it.

The weights are drawn wider than a real model's, so that a token that should not be seen would show.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from transformers import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from rematch_ray.data.rows import RowEncoder
from rematch_ray.data.samples import SampleEncoder
from rematch_ray.data.schema import Item, Negative, Positive, Sample, samples_to_table
from rematch_ray.data.train_batch import TrainBatch, collate_train
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
from rematch_ray.training.settings import ObjectiveSettings

SIZES = TinySettings(
    vocabulary=512,
    hidden_dim=64,
    num_layers=2,
    num_heads=2,
    num_key_value_heads=1,
    mlp_dim=96,
    vision_dim=64,
    vision_layers=1,
    initializer_range=0.15,
)
TEXTS = [
    "a red circle left of a blue bar",
    "the document matches the query",
    "Query: grinning face with big eyes",
    "Document: Match? Yes or No.",
]
LADDER = ("1x1", "2x3", "4x6")
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange")


def write_base(folder: Path, sizes: TinySettings = SIZES, *, seed: int = 0) -> Path:
    """A base model folder with random weights."""
    tokenizer = train_tokenizer(TEXTS * 4, sizes)
    save_base(tiny_model(tokenizer, sizes, seed=seed), tokenizer, image_processor(sizes), folder)
    return folder


def write_qwen2_base(folder: Path, sizes: TinySettings = SIZES) -> Path:
    """The same as a Qwen2-VL."""
    text, tokens = _sizes_of_text(write_base(folder, sizes))
    vision = {
        "depth": 2,
        "embed_dim": sizes.vision_dim,
        "hidden_size": sizes.hidden_dim,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": sizes.patch_size,
        "spatial_merge_size": 1,
        "initializer_range": sizes.initializer_range,
    }
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **tokens)
    return _save_random(folder, Qwen2VLForConditionalGeneration, config)


def write_qwen3_base(folder: Path, sizes: TinySettings = SIZES) -> Path:
    """The same as a Qwen3-VL, whose images add features of two depths behind the first layers."""
    text, tokens = _sizes_of_text(write_base(folder, sizes))
    text["num_hidden_layers"] = 3  # what is added behind the last one nobody would read
    text["head_dim"] = text["hidden_size"] // text["num_attention_heads"]
    text["rope_parameters"]["mrope_interleaved"] = True
    vision = {
        "depth": 2,
        "deepstack_visual_indexes": [0, 1],
        "num_position_embeddings": 36,
        "hidden_size": sizes.vision_dim,
        "num_heads": 2,
        "intermediate_size": 2 * sizes.vision_dim,
        "out_hidden_size": sizes.hidden_dim,
        "patch_size": sizes.patch_size,
        "spatial_merge_size": 1,
        "initializer_range": sizes.initializer_range,
    }
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **tokens)
    return _save_random(folder, Qwen3VLForConditionalGeneration, config)


def _save_random(folder: Path, kind: Any, config: Any) -> Path:
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    return folder


def _sizes_of_text(base: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sizes of a base's language model; its special tokens and that its embeddings are tied."""
    written = json.loads((base / "config.json").read_text())
    kept = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    kept += ("num_key_value_heads", "intermediate_size", "initializer_range", "rope_parameters")
    tokens = {name: value for name, value in written.items() if name.endswith("_token_id")}
    tokens["tie_word_embeddings"] = True
    return {name: written["text_config"][name] for name in kept}, tokens


def model_settings(base: Path, /, **changes: Any) -> ModelSettings:
    given: dict[str, Any] = {
        "base": str(base),
        "ladder": LADDER,
        "embedding_dim": 16,
        "fused_dim": 24,
        "fuse_k": 3,
        "template": TINY_TEMPLATE,
    }
    return ModelSettings(**(given | changes))


def new_embedder(base: Path, *, seed: int = 0, has_fused: bool = True, **changes: Any) -> Embedder:
    """An untrained embedder, in evaluation mode."""
    torch.manual_seed(seed)
    return Embedder.build(model_settings(base, **changes), has_fused=has_fused, name="tiny").eval()


def picture(colour: str = "red", width: int = 32, height: int = 32) -> Image.Image:
    """A coloured rectangle with a white corner, so that its patches differ."""
    image = Image.new("RGB", (width, height), colour)
    image.paste("white", (0, 0, width // 4, height // 4))
    return image


def png(colour: str = "red", width: int = 32, height: int = 32) -> bytes:
    buffer = io.BytesIO()
    picture(colour, width, height).save(buffer, "PNG")
    return buffer.getvalue()


def text_sample(
    number: int, *, negatives: int = 0, source: str = "notes", image: bool = False
) -> Sample:
    """Query `q<n>`, positive `d<n>` (a text or a picture) and hard negatives `h<n>.<i>`."""
    colour = COLOURS[number % len(COLOURS)]
    content: str | bytes = png(colour, 32, 32 + 16 * (number % 2)) if image else f"the {colour} bar"
    document = Item.of(content, id=f"d{number}")
    wrong = [Item.of(f"wrong {number} {i}", id=f"h{number}.{i}") for i in range(negatives)]
    return Sample(
        Item.of(f"which is {colour} {number}", id=f"q{number}"),
        (Positive(document),),
        tuple(Negative(item) for item in wrong),
        source=source,
    )


def step_table(
    encoder: RowEncoder, sub_batches: Sequence[Sequence[Sample]], *, step: int = 0
) -> pa.Table:
    """What the stream hands a rank: its sub-batches, encoded."""
    encode = SampleEncoder(encoder, max_negatives=8, seed=0)
    return encode([samples_to_table(samples) for samples in sub_batches], step)


def train_batch(
    embedder: Embedder, sub_batches: Sequence[Sequence[Sample]], *, step: int = 0
) -> TrainBatch:
    """What one rank reads in one step."""
    return collate_train(
        step_table(embedder.row_encoder, sub_batches, step=step),
        step=step,
        num_query_meta=embedder.num_vectors("query"),
        num_document_meta=embedder.num_vectors("document"),
        pad_id=embedder.row_encoder.prompt.pad,
    )


def objective(**changes: Any) -> ObjectiveSettings:
    """The joint objective with temperatures at which gradients of random weights are not lost."""
    given: dict[str, Any] = {"temperature_fused": 0.2, "temperature_maxsim": 0.3, "w_match": 0.5}
    if changes.get("learn_temperatures"):
        given["temperature_maxsim"] = 0.2  # the largest that can be learned
    return ObjectiveSettings(**(given | changes))


def unit(shape: Sequence[int], seed: int) -> torch.Tensor:
    """Seeded random unit vectors along the last axis."""
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return torch.nn.functional.normalize(torch.from_numpy(values), dim=-1)
