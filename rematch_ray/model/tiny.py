"""A Qwen2.5-VL of a few million parameters: real classes, real processor, its own tokenizer.

Small enough to pretrain on two cores and to ship, large enough to caption an emoji. Knows nothing
of the corpora it will see (texts are handed in) nor of training. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rematch_ray.data.prompts import Template

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "Yes",
    "No",
)
TINY_TEMPLATE = Template(
    header="<|im_start|>user\n",
    match_instruction="Match? Yes or No.",
    answer="?<|im_end|>\n<|im_start|>assistant\n",
)


class TinySettings(BaseModel):
    """Sizes of the tiny model. The defaults are the shipped base.

    Attributes:
        vocabulary: tokens of the byte-pair tokenizer, special tokens included.
        hidden_dim: width of the language model.
        num_layers: its decoder layers.
        num_heads: its attention heads; the head width must be 32.
        num_key_value_heads: its key/value heads.
        mlp_dim: its feed-forward width.
        vision_dim: width of the vision tower.
        vision_layers: its blocks.
        patch_size: image patch side in pixels; one patch is one visual token.
        min_pixels: images are enlarged to at least this many pixels.
        max_pixels: images are reduced to at most this many pixels.
        initializer_range: standard deviation of the initial weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: int = 2048
    hidden_dim: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_key_value_heads: int = 2
    mlp_dim: int = 384
    vision_dim: int = 128
    vision_layers: int = 3
    patch_size: int = 16
    min_pixels: int = 32 * 32
    max_pixels: int = 160 * 160
    initializer_range: float = 0.06


def train_tokenizer(texts: Iterable[str], settings: TinySettings) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer over the given texts, with Qwen's special tokens.

    Yes and No are added tokens, so each is one token wherever it stands.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:8]),
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def image_processor(settings: TinySettings) -> Qwen2VLImageProcessorPil:
    """The PIL/NumPy processor with one visual token per patch."""
    return Qwen2VLImageProcessorPil(
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
        patch_size=settings.patch_size,
        merge_size=1,
    )


def tiny_model(
    tokenizer: PreTrainedTokenizerFast, settings: TinySettings, *, seed: int
) -> Qwen2_5_VLForConditionalGeneration:
    """A randomly initialised model that fits the tokenizer.

    Args:
        tokenizer: as made by `train_tokenizer`.
        settings: sizes.
        seed: of the initial weights.
    """
    torch.manual_seed(seed)
    token = tokenizer.convert_tokens_to_ids
    head_dim = settings.hidden_dim // settings.num_heads
    temporal = head_dim // 8
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": settings.hidden_dim,
        "num_hidden_layers": settings.num_layers,
        "num_attention_heads": settings.num_heads,
        "num_key_value_heads": settings.num_key_value_heads,
        "intermediate_size": settings.mlp_dim,
        "initializer_range": settings.initializer_range,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [temporal, *[(head_dim // 2 - temporal) // 2] * 2],
        },
        "tie_word_embeddings": True,
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
    }
    vision = {
        "depth": settings.vision_layers,
        "hidden_size": settings.vision_dim,
        "num_heads": settings.vision_dim // 32,
        "intermediate_size": 3 * settings.vision_dim,
        "out_hidden_size": settings.hidden_dim,
        "patch_size": settings.patch_size,
        "spatial_merge_size": 1,
        "window_size": 16 * settings.patch_size,
        "fullatt_block_indexes": list(range(settings.vision_layers)),
        "initializer_range": settings.initializer_range,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def save_base(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    processor: Qwen2VLImageProcessorPil,
    path: str | Path,
) -> None:
    """Writes a base model folder that `Embedder.build` and transformers read."""
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    processor.save_pretrained(path)
    (Path(path) / "template.json").write_text(TINY_TEMPLATE.model_dump_json(indent=2) + "\n")
