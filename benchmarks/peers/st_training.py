"""sentence-transformers' gradient-cached MaxSim training, on our model or on its own.

`BankModule` makes our embedder one of its modules, so that both sides run the same weights on the
same rows. `stock_encoder` is what it builds itself on the same base. Both are trained by
`cached_step` with its loss in a plain loop: its Trainer would add callbacks and a data loader, so
leaving it out favours it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Module
from sentence_transformers.multi_vector_encoder.losses import (
    CachedMultiVectorMultipleNegativesRankingLoss,
)
from torch import Tensor, nn
from transformers import AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLProcessor
from transformers.utils import is_torchvision_available

from rematch_ray.data.collate import Batch
from rematch_ray.model.embedder import Embedder

Features = dict[str, Any]
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class BankModule(Module):
    """Our embedder as a module: the vectors of its bank are the token embeddings of a row."""

    forward_kwargs = {"task"}  # noqa: RUF012  # the name and the type are the library's

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder = embedder

    def forward(self, features: Features, task: str | None = None, **_: Any) -> Features:
        """Adds `token_embeddings` (B, R, D) and an `attention_mask` (B, R) of ones."""
        batch = Batch(
            features["input_ids"],
            features["attention_mask"],
            features["segment"],
            features["positions"].movedim(2, 0),
            features["meta_positions"],
            features.get("pixel_values"),
            features.get("image_grid_thw"),
        )
        side = "query" if task == "query" else "document"
        vectors = self.embedder.encode_rows(batch, side).vectors
        mask = torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
        return features | {"token_embeddings": vectors, "attention_mask": mask}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """A benchmark saves nothing."""
        raise NotImplementedError


def bank_features(batch: Batch) -> Features:
    """A side of a batch in the library's layout: rows first, so that it can cut mini-batches."""
    features: Features = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.mask,
        "segment": batch.segment,
        "positions": batch.position_ids.movedim(0, 2),
        "meta_positions": batch.meta_positions,
    }
    if batch.image_grid_thw is not None:
        assert len(batch.image_grid_thw) == len(batch), "rows of one image each"
        features |= {"pixel_values": batch.pixel_values, "image_grid_thw": batch.image_grid_thw}
    return features


def cached_step(
    model: MultiVectorEncoder,
    optimizer: torch.optim.Optimizer,
    columns: Callable[[], Sequence[Features]],
    *,
    mini_batch: int,
    scale: float,
    clip: float,
) -> Callable[[], float]:
    """A function that takes one step and returns its loss.

    Args:
        model: trained as it stands.
        optimizer: of its weights.
        columns: makes the features of queries, positives and negatives; called in every step.
        mini_batch: rows per forward pass.
        scale: 1 / temperature of the summed MaxSim.
        clip: largest gradient norm.
    """
    criterion = CachedMultiVectorMultipleNegativesRankingLoss(
        model, scale=scale, mini_batch_size=mini_batch
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    model.train()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = criterion(columns())
        loss.backward()
        nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        return float(loss.detach())

    return step


def on_device(features: Features, device: torch.device | str) -> Features:
    """The tensors of a column on a device."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in features.items()}


def stock_encoder(base: Path, folder: Path, device: str) -> MultiVectorEncoder:
    """Its own multi-vector model on our base: every token's state, projected and normalised.

    Args:
        base: folder of a Qwen2.5-VL.
        folder: where a copy with a chat template goes; without one it takes no images.
        device: where the weights go.
    """
    if not is_torchvision_available():
        AutoProcessor.register(Qwen2_5_VLConfig, _WithoutVideos, exist_ok=True)
    shutil.copytree(base, folder)
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE)
    return MultiVectorEncoder(str(folder), device=device)


class _WithoutVideos(Qwen2_5_VLProcessor):
    """Its video part needs torchvision, whose wheels do not fit torch's CPU builds."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
