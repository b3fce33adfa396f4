"""What can be set about the model, and what identifies one. Middle floor; no torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rematch_ray.data.prompts import Template
from rematch_ray.scoring.budget import DEFAULT_LADDER, Ladder

FreezePart = Literal["vision", "merger", "embeddings", "language"]


class LoraSettings(BaseModel):
    """Adapters on the language model's q, k, v, o, gate, up and down projections.

    Attributes:
        rank: rank of the adapters.
        alpha: scale; the update is multiplied by alpha / rank.
        dropout: on the adapters' input.
        train: parts trained in full beside the adapters, vision, merger or embeddings; by default
            adapters (and what is new) alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=32, ge=1)
    alpha: float = Field(default=64.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    train: tuple[Literal["vision", "merger", "embeddings"], ...] = ()


class ModelSettings(BaseModel):
    """How an embedder is built from a base model.

    Attributes:
        base: folder or hub id of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL model with its processor files;
            or the folder of an export or run, whose banks and heads are then trained on.
        dtype: precision of the backbone; banks, heads, scores and losses stay float32.
        ladder: trained budgets, in order; the last one sets the sizes of both banks.
        embedding_dim: width of the stored vectors; null = the backbone's width, no projection.
        fused_dim: width of the fused vector; null = the smaller of the backbone's width and 512,
            `hidden` = the backbone's width.
        fuse_k: how many of the first meta tokens' states form the fused vector.
        lora: adapters instead of full training; null trains every weight that is not frozen.
        freeze: parts that are not trained: vision, merger, embeddings, language.
        freeze_layers: so many of the first decoder layers are not trained, nor adapters on them.
        quantize: storage of frozen weights under adapters; only null (as `dtype` says) is built.
        gradient_checkpointing: recompute layers in the backward pass to save memory.
        template: the fixed strings around an item; null = the base's own (`template.json` in its
            folder), else Qwen's.
        max_text_tokens: text tokens of one item beyond which the rest is cut.
        max_image_pixels: images with more pixels are refused before decoding.
        min_pixels: images are enlarged to at least this many pixels; null = the processor's own.
        max_pixels: images are reduced to at most this many pixels; null = the processor's own.
        instructions: default instruction per training source and side, `{source: {query: ...}}`.
        readout_layers: which layers the banks are read from; only `last` is built.
        generator: how the vectors are produced; only `bank` is built.
        visual_tokens: tokens per image; only `native` (what the image's size gives) is built.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    ladder: tuple[str, ...] = tuple(DEFAULT_LADDER.texts())
    embedding_dim: int | None = Field(default=128, ge=1)
    fused_dim: Annotated[int, Field(ge=1)] | Literal["hidden"] | None = None
    fuse_k: int = Field(default=16, ge=1)
    lora: LoraSettings | None = None
    freeze: tuple[FreezePart, ...] = ()
    freeze_layers: int = Field(default=0, ge=0)
    quantize: None = None
    gradient_checkpointing: bool = False
    template: Template | None = None
    max_text_tokens: int = Field(default=4096, ge=1)
    max_image_pixels: int = Field(default=64_000_000, ge=1)
    min_pixels: int | None = Field(default=None, ge=1)
    max_pixels: int | None = Field(default=None, ge=1)
    instructions: Mapping[str, Mapping[Literal["query", "document"], str]] = {}
    readout_layers: Literal["last"] = "last"
    generator: Literal["bank"] = "bank"
    visual_tokens: Literal["native"] = "native"

    @field_validator("ladder")
    @classmethod
    def _ladder_is_nested(cls, rungs: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(Ladder.parse(rungs).texts())

    @field_validator("quantize", mode="before")
    @classmethod
    def _is_not_quantised(cls, given: Any) -> Any:
        if given is not None:
            raise ValueError(
                f"quantize {given!r} is not built; the smallest storage of frozen weights is "
                "dtype bfloat16 with lora"
            )
        return given

    @model_validator(mode="after")
    def _frozen_or_trained(self) -> ModelSettings:
        both = set(self.freeze) & set(self.lora.train if self.lora else ())
        if both:
            raise ValueError(f"freeze and lora.train both name {', '.join(sorted(both))}: drop one")
        return self

    @model_validator(mode="after")
    def _pixels_fit(self) -> ModelSettings:
        least, most = self.min_pixels or 1, self.max_pixels or self.min_pixels or 1
        if least > most:
            raise ValueError(f"min_pixels {least} is above max_pixels {most}: lower the former")
        return self

    def fused_width(self, hidden_dim: int) -> int:
        """F, the width of a fused vector beside a backbone of this width."""
        if self.fused_dim == "hidden":
            return hidden_dim
        return self.fused_dim or min(hidden_dim, 512)

    @property
    def budgets(self) -> Ladder:
        """The ladder as budgets."""
        return Ladder.parse(self.ladder)


@dataclass(frozen=True)
class ModelIdentity:
    """What must agree between a model and the embeddings or index made with it.

    Attributes:
        digest: SHA-256 over weights, template and the settings that change vectors.
        name: the run's name, for people.
        ladder: the trained budgets.
        num_query_vectors: R of queries.
        num_document_vectors: R of documents.
        embedding_dim: D.
        fused_dim: F, or None without a fused vector.
        template_digest: SHA-256 of the template.
        weights_digest: SHA-256 over the weights alone; empty in exports made before it was kept.
    """

    digest: str
    name: str
    ladder: tuple[str, ...]
    num_query_vectors: int
    num_document_vectors: int
    embedding_dim: int
    fused_dim: int | None
    template_digest: str
    weights_digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """A plain dict that `from_json` reads back."""
        return {**asdict(self), "ladder": list(self.ladder)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelIdentity:
        """Reads what `to_json` wrote.

        Raises:
            KeyError: a field is missing.
        """
        names = cls.__dataclass_fields__.keys() - {"weights_digest"}
        fields = {name: value[name] for name in names}
        fields["weights_digest"] = value.get("weights_digest", "")
        return cls(**{**fields, "ladder": tuple(fields["ladder"])})


def settings_digest(settings: ModelSettings, weights_digest: str) -> str:
    """Identity hash: the weights plus every setting that changes what a vector is."""
    relevant = settings.model_dump(
        include={
            "ladder",
            "embedding_dim",
            "fused_dim",
            "fuse_k",
            "template",
            "max_text_tokens",
            "min_pixels",
            "max_pixels",
            "readout_layers",
            "generator",
            "visual_tokens",
        }
    )
    text = json.dumps([weights_digest, relevant], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
