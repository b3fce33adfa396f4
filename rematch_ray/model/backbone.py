"""The MLLM underneath: word embeddings, image features, decoder, answer logits.

The one file that knows transformers' Qwen-VL classes. It knows nothing of meta tokens, fused
vectors or losses. Learnable inputs are put into `inputs_embeds` by the caller; the embedding layer
is never patched, so generation keeps working. Middle floor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, Cache

from rematch_ray.errors import UserError
from rematch_ray.model import segment_attention
from rematch_ray.model.deep_features import DeepFeatures
from rematch_ray.model.settings import FreezePart, LoraSettings

SUPPORTED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
LORA_TARGETS = (
    r".*language_model\.layers\.\d+\."
    r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
)
_PARTS: dict[FreezePart, str] = {
    "merger": r"^model\.visual\.(deepstack_)?merger(_list)?\.",
    "vision": r"^model\.visual\.(?!(deepstack_)?merger(_list)?\.)",
    "embeddings": r"^(model\.language_model\.embed_tokens|lm_head)\.",
    "language": r"^model\.language_model\.(?!embed_tokens\.)",
}


class Backbone(nn.Module):
    """A Qwen-VL model behind the four calls that the embedder and the matching stage need.

    Args:
        model: a transformers `Qwen2VLForConditionalGeneration`, `Qwen2_5_VL...` or `Qwen3VL...`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.image_token_id: int = model.config.image_token_id
        self.hidden_dim: int = model.config.get_text_config().hidden_size
        tower = model.model.visual.config
        if tower._attn_implementation == "sdpa":
            tower._attn_implementation = segment_attention.NAME
        self.sharded = False
        """Whether weights lie spread over ranks: then every forward is one that all ranks make."""
        self.autocast_dtype: torch.dtype | None = None
        """Arithmetic of layers in training where it is not the weights' own; logits keep theirs."""
        kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
        if kinds - {"full_attention"}:
            raise UserError(
                f"base model uses {sorted(kinds)} layers; only full attention is supported: "
                "set use_sliding_window to false in its config"
            )

    @classmethod
    def check(cls, path: str | Path) -> None:
        """Whether a folder or hub id is of a kind of model that is supported, by its config alone.

        Raises:
            UserError: it is not, or there is none.
        """
        try:
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise _no_base(path, error) from error
        if config.model_type not in SUPPORTED:
            raise UserError(
                f"base model {str(path)!r} is of type {config.model_type!r}; "
                f"supported: {', '.join(SUPPORTED)}"
            )

    @classmethod
    def load(cls, path: str | Path, *, dtype: torch.dtype = torch.float32) -> Backbone:
        """Loads a base model from a folder or hub id; never runs code that comes with it.

        Raises:
            UserError: nothing loadable there, or a kind of model that is not supported.
        """
        cls.check(path)
        try:
            model, report = AutoModelForImageTextToText.from_pretrained(
                path,
                dtype=dtype,
                attn_implementation="sdpa",
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise _no_base(path, error) from error
        # transformers fills what is missing with random numbers and goes on
        if missing := sorted(report["missing_keys"]):
            raise UserError(
                f"base model {str(path)!r} lacks {len(missing)} weights, {missing[0]} first: "
                "its files are incomplete, copy or download them again"
            )
        return cls(model)

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The input embedding table."""
        return self.model.get_input_embeddings()

    def embed(
        self, input_ids: Tensor, pixel_values: Tensor | None, image_grid_thw: Tensor | None
    ) -> tuple[Tensor, DeepFeatures | None]:
        """Input embeddings with image features at the image placeholders.

        Args:
            input_ids: (B, T).
            pixel_values: (patches, patch_dim) or None.
            image_grid_thw: (images, 3) or None.

        Returns:
            (B, T, H) in the backbone's precision, and what images add behind the first decoder
            layers (Qwen3-VL; else None). Without images but with trainable vision weights one tiny
            black image runs and counts nothing, so that every rank uses every weight; so it does,
            trainable or not, where weights are sharded.
        """
        embeds = self.word_embeddings(input_ids)
        if pixel_values is None or image_grid_thw is None:
            if self.training and (self.sharded or self._vision_is_trained()):
                blank, layers = self._blank_image_features()
                embeds = embeds + 0.0 * sum((layer.sum() for layer in layers), blank.sum())
            return embeds, None
        features, layers = self.image_features(pixel_values, image_grid_thw)
        is_image = input_ids == self.image_token_id
        where = is_image[:, :, None].expand_as(embeds)
        embeds = embeds.masked_scatter(where, features.to(embeds.dtype))
        return embeds, DeepFeatures.of(is_image, layers)

    def image_features(
        self, pixel_values: Tensor, image_grid_thw: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Visual tokens of all images, (tokens, H), and those that are added behind layers."""
        pixel_values = pixel_values.to(self.word_embeddings.weight.dtype)
        with self._autocast(pixel_values.device):
            output = self.model.model.get_image_features(pixel_values, image_grid_thw)
        deep = getattr(output, "deepstack_features", None) or []
        return torch.cat(list(output.pooler_output)), [torch.cat(list(layer)) for layer in deep]

    def decode(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        mask: Tensor | None = None,
        *,
        deep: DeepFeatures | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Last hidden states after the final norm.

        Args:
            inputs_embeds: (B, T, H).
            position_ids: (3, B, T); always explicit, the model's own fallback is 1-D.
            mask: (B, 1, T, K) bool, True = may attend; None = causal, which hides right padding.
            deep: of the same rows and columns, as `embed` gave it.
            cache: records the layers' keys and values, or puts K - T recorded columns before them.

        Returns:
            (B, T, H).
        """
        added: dict[str, Any] = {}
        if deep is not None:
            added["visual_pos_masks"], added["deepstack_visual_embeds"] = deep.placed()
        with self._autocast(inputs_embeds.device):
            output = self.model.model.language_model(
                inputs_embeds=inputs_embeds,
                position_ids=position_ids,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=False,
                **added,
            )
        return output.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits, (..., H) -> (..., V)."""
        return self.model.lm_head(hidden)

    def freeze(self, parts: tuple[FreezePart, ...]) -> None:
        """Stops training the named parts."""
        patterns = [re.compile(_PARTS[part]) for part in parts]
        for name, parameter in self.model.named_parameters():
            if any(pattern.search(name) for pattern in patterns):
                parameter.requires_grad_(False)

    def freeze_layers(self, count: int) -> None:
        """Stops training the first decoder layers.

        Raises:
            UserError: there are not that many.
        """
        layers = self.model.model.language_model.layers
        if count > len(layers):
            raise UserError(
                f"model.freeze_layers is {count}, and the base model has {len(layers)} decoder "
                "layers: lower it, or without model.lora freeze 'language' as a whole"
            )
        for layer in layers[:count]:
            layer.requires_grad_(False)

    def freeze_untied_head(self) -> None:
        """Stops training the output layer where it is not the embedding table itself."""
        if self.model.lm_head.weight is not self.word_embeddings.weight:
            self.model.lm_head.requires_grad_(False)

    def checkpoint_layers(self) -> None:
        """Recomputes layers in the backward pass, also those whose keys and values are recorded."""
        self.model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
        for layer in self.model.model.language_model.layers:
            # transformers drops caches from recomputed layers, as a growing one would grow twice;
            # ours record once and read without storing
            layer._can_checkpoint_with_cache = True

    def add_lora(self, settings: LoraSettings) -> None:
        """Freezes every weight but the opened parts', and adds adapters to the language model.

        Adapters are float32 whatever the precision of what they stand beside.
        """
        opened = [re.compile(_PARTS[part]) for part in settings.train]
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=LORA_TARGETS,
        )
        inject_adapter_in_model(config, self.model)
        for name, parameter in self.model.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.float()
            elif any(pattern.search(name) for pattern in opened):
                parameter.requires_grad_(True)  # adding adapters has frozen it

    def save(self, path: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Writes config and safetensors; adapters are merged into what is written.

        The model itself is left alone: merging in place and back would change its weights by a
        rounding error each time.

        Args:
            path: folder to write.
            state: whole weights by the model's names, where they are spread over ranks.
        """
        given = self.model.state_dict() if state is None else state
        merged = {
            name.replace(".base_layer.", "."): tensor
            for name, tensor in given.items()
            if ".lora_" not in name
        }
        for name, layer in self.model.named_modules():
            if isinstance(layer, LoraLayer):
                weight = merged[f"{name}.weight"]
                update = sum(_lora_update(layer, name, key, given) for key in layer.active_adapters)
                merged[f"{name}.weight"] = (weight.float() + update).to(weight.dtype)
        self.model.save_pretrained(path, state_dict=merged)

    def _autocast(self, device: torch.device) -> torch.autocast:
        wanted = self.autocast_dtype if self.training else None
        return torch.autocast(device.type, wanted or torch.bfloat16, enabled=wanted is not None)

    def _vision_is_trained(self) -> bool:
        return any(parameter.requires_grad for parameter in self.model.model.visual.parameters())

    def _blank_image_features(self) -> tuple[Tensor, list[Tensor]]:
        vision = self.model.config.vision_config
        side = vision.spatial_merge_size
        patch_dim = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        weight = self.word_embeddings.weight
        pixels = weight.new_zeros((side * side, patch_dim))
        grid = torch.tensor([[1, side, side]], device=weight.device)
        return self.image_features(pixels, grid)


def _no_base(path: str | Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(
        f"no base model at {str(path)!r}: give a folder or hub id of a Qwen-VL model ({reason})"
    )


def _lora_update(layer: Any, name: str, key: str, state: Mapping[str, Tensor]) -> Tensor:
    """What an adapter adds to its layer's weight."""
    up, down = (state[f"{name}.lora_{part}.{key}.weight"].float() for part in "BA")
    return layer.scaling[key] * (up @ down)
