"""A Qwen2.5-VL of given sizes with random weights, and batches of rows of given lengths.

What is measured with them depends on sizes only: neither weights nor texts need to mean anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rematch_ray.data.pixels import PackedPixels, pack
from rematch_ray.data.prompts import PromptTokens
from rematch_ray.data.rows import EncodedRow
from rematch_ray.data.train_batch import Layout, TrainBatch
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.tiny import (
    TinySettings,
    image_processor,
    save_base,
    tiny_model,
    train_tokenizer,
)

WORDS = [
    "<|im_start|>user\nQuery: a red circle left of a blue bar<|im_end|>\n<|im_start|>assistant\n",
    "Document: Match? Yes or No.?<|im_end|>\n<|im_start|>assistant\n",
]
COMMITTED = TinySettings(
    vocabulary=2048,
    hidden_dim=512,
    num_layers=8,
    num_heads=16,
    num_key_value_heads=4,
    mlp_dim=1408,
    vision_dim=64,
    vision_layers=1,
)
"""Hidden 512, 8 layers: the shape that ratios are published for."""


def write_base(folder: Path, sizes: TinySettings = COMMITTED, *, seed: int = 0) -> Path:
    """Writes a base folder with random weights."""
    tokenizer = train_tokenizer(WORDS * 8, sizes)
    save_base(tiny_model(tokenizer, sizes, seed=seed), tokenizer, image_processor(sizes), folder)
    return folder


def random_batch(
    embedder: Embedder,
    pairs: int,
    *,
    query_tokens: int,
    document_tokens: int,
    hard_negatives: int = 1,
    sub_batch: int = 32,
    seed: int = 0,
) -> TrainBatch:
    """Texts of given lengths, meta tokens not counted, each query with its own documents.

    Args:
        embedder: whose template and banks the rows fit.
        pairs: b queries.
        query_tokens: tokens of each query row.
        document_tokens: tokens of each document row.
        hard_negatives: N per query.
        sub_batch: rows per sub-batch.
        seed: of the token ids.
    """
    generator = np.random.default_rng(seed)
    prompt = embedder.row_encoder.prompt
    each = 1 + hard_negatives
    slots = torch.arange(pairs * each).view(pairs, each)
    documents = [
        _row(prompt, f"d{number}", document_tokens, generator) for number in range(pairs * each)
    ]
    ids = torch.arange(1, pairs * each + 1)
    return TrainBatch(
        query_rows=[_row(prompt, f"q{number}", query_tokens, generator) for number in range(pairs)],
        document_rows=documents,
        layout=Layout(embedder.num_vectors("query"), embedder.num_vectors("document"), prompt.pad),
        positive_slot=slots[:, 0],
        negative_slot=slots[:, 1:],
        negative_mined=torch.zeros(pairs, hard_negatives, dtype=torch.bool),
        query_ids=torch.arange(1, pairs + 1),
        document_ids=ids,
        document_content=ids,
        listed_ids=ids[slots[:, :1]],
        sub_batch=torch.arange(pairs) // sub_batch,
        valid=torch.ones(pairs, dtype=torch.bool),
        step=0,
    )


def _row(
    prompt: PromptTokens, name: str, length: int, generator: np.random.Generator
) -> EncodedRow:
    header, end = list(prompt.header), list(prompt.end)
    content = length - len(header) - len(end)
    # the alphabet's tokens: no special one among them
    words: Sequence[int] = generator.integers(20, 250, content).tolist()
    start = len(header) + prompt.template.match_gap
    positions = [*range(len(header)), *range(start, start + content + len(end))]
    return EncodedRow(
        id=name,
        input_ids=np.array([*header, *words, *end], dtype=np.int32),
        positions=np.tile(np.array(positions, dtype=np.int32), (3, 1)),
        header=len(header),
        content=len(header) + content,
        pixels=_NO_PIXELS,
        grid=np.zeros((0, 3), dtype=np.int32),
    )


_NO_PIXELS: PackedPixels = pack(np.zeros((0, 1), dtype=np.float32), None)
