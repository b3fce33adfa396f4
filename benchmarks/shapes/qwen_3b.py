"""A base with the sizes of Qwen2.5-VL-3B and random weights, and rows with pictures for it.

The sizes are those of its published config; the tokenizer is a small one of our own, as speed and
memory do not depend on what tokens mean. The template is as long under it as the default one is
under Qwen's: answer blocks are what the matching stage costs.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from tokenizers import Regex, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rematch_ray.data.item import Item, Negative, Part, Positive, Sample
from rematch_ray.data.prompts import Template
from rematch_ray.data.samples import SampleEncoder
from rematch_ray.data.schema import samples_to_table
from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.model.tiny import TinySettings, train_tokenizer
from rematch_ray.training.step import Training

TEXT = "a red circle left of a blue bar above the green square and two yellow stars"
WORDS = TEXT.split()
TEMPLATE = Template(
    match_instruction="Does the document match the query? Answer it in words.",
    answer="\nYes or not?<|im_end|>\n<|im_start|>assistant\n",
)
"""The default one without the words that the small tokenizer takes apart (" Yes", " No")."""
_SPECIAL = re.compile(r"(<\|\w+\|>)")
# how Qwen's tokenizer cuts a text before it merges bytes
_QWEN_WORDS = pre_tokenizers.Split(
    Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "isolated",
)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a Qwen2.5-VL; the defaults are the 3B model's."""

    vocabulary: int = 151_936
    hidden: int = 2048
    layers: int = 36
    heads: int = 16
    key_value_heads: int = 2
    mlp: int = 11_008
    vision_hidden: int = 1280
    vision_layers: int = 32
    vision_heads: int = 16
    vision_mlp: int = 3420
    image_side: int = 448


QWEN_3B = Sizes()
SMALL = Sizes(
    vocabulary=2048, hidden=256, layers=2, heads=4, key_value_heads=2, mlp=512,
    vision_hidden=64, vision_layers=2, vision_heads=4, vision_mlp=128, image_side=112,
)  # fmt: skip
"""The same program on a machine without a GPU: does it run?"""


def default_wording() -> tuple[int, int, int, int]:
    """Tokens of the default template's header, end, instruction and answer under Qwen's tokenizer.

    Its words are common ones, each a single token.
    """
    template = Template()
    texts = (template.header, template.end, template.match_instruction, template.answer)
    header, end, instruction, answer = (
        sum(
            1 if _SPECIAL.match(piece) else len(_QWEN_WORDS.pre_tokenize_str(piece))
            for piece in _SPECIAL.split(text)
        )
        for text in texts
    )
    return header, end, instruction, answer


def small_tokenizer() -> PreTrainedTokenizerFast:
    """One in which the words of `TEXT` and of `TEMPLATE` are single tokens."""
    wording = (TEMPLATE.header, TEMPLATE.end, TEMPLATE.match_instruction, TEMPLATE.answer)
    plain = [_SPECIAL.sub("", text) for text in wording]
    return train_tokenizer([" ".join(WORDS), *plain] * 8, TinySettings())


def write_base(folder: Path, sizes: Sizes, *, device: str) -> Path:
    """Writes a base folder, weights in bfloat16 (7.5 GB at the 3B sizes)."""
    tokenizer = small_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    head = sizes.hidden // sizes.heads
    text = {
        "vocab_size": max(sizes.vocabulary, len(tokenizer)),
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_value_heads,
        "intermediate_size": sizes.mlp,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [head // 8, *[(head // 2 - head // 8) // 2] * 2],
        },
        "tie_word_embeddings": True,
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
    }
    vision = {
        "depth": sizes.vision_layers,
        "hidden_size": sizes.vision_hidden,
        "num_heads": sizes.vision_heads,
        "intermediate_size": sizes.vision_mlp,
        "out_hidden_size": sizes.hidden,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [n for n in (7, 15, 23, 31) if n < sizes.vision_layers],
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
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = sizes.image_side
    Qwen2VLImageProcessorPil(
        min_pixels=side**2, max_pixels=side**2, patch_size=14, merge_size=2
    ).save_pretrained(folder)
    (folder / "template.json").write_text(TEMPLATE.model_dump_json(indent=2) + "\n")
    return folder


def picture_batch(training: Training, pairs: int, sizes: Sizes, *, texts: int) -> TrainBatch:
    """Queries of about 100 tokens; documents of a picture and a text, one hard negative each.

    Args:
        training: whose processors encode the rows.
        pairs: b queries.
        sizes: of the pictures.
        texts: words of a document; a query has a third of them.
    """
    draw = np.random.default_rng(0)

    def document(name: str) -> Item:
        return Item(name, (_picture(draw, sizes.image_side), Part("text", _words(draw, texts))))

    samples = [
        Sample(
            Item(f"q{number}", (Part("text", _words(draw, texts // 3)),)),
            (Positive(document(f"d{number}"), 1.0),),
            (Negative(document(f"n{number}")),),
        )
        for number in range(pairs)
    ]
    encode = SampleEncoder(training.joint.embedder.row_encoder, max_negatives=1, seed=0)
    return training.collate(encode(_tables(samples), 0), step=0)


def _tables(samples: Sequence[Sample], sub_batch: int = 32) -> list[pa.Table]:
    table = samples_to_table(samples)
    return [table.slice(start, sub_batch) for start in range(0, len(samples), sub_batch)]


def _words(draw: np.random.Generator, count: int) -> str:
    return " ".join(draw.choice(WORDS, count))


def _picture(draw: np.random.Generator, side: int) -> Part:
    # coarse noise: other pixels in every picture, in few bytes
    coarse = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.NEAREST).save(file, "PNG")
    return Part("image", image=file.getvalue())
