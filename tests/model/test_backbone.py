"""The MLLM's four calls against transformers' own path, and what is trained, frozen or adapted."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, BertConfig

from rematch_ray.data.collate import HEADER, Batch, collate
from rematch_ray.data.prompts import Side
from rematch_ray.data.schema import Item
from rematch_ray.errors import UserError
from rematch_ray.model.backbone import Backbone
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.settings import FreezePart, LoraSettings

MakeBatch = Callable[[list[Item], Side], Batch]


@pytest.fixture(params=["tiny_base", "qwen2_base", "qwen3_base"])
def base(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def backbone(base: Path) -> Backbone:
    return Backbone.load(base).eval()


def bare(embedder: Embedder, items: list[Item]) -> Batch:
    """Rows without meta tokens."""
    rows = [embedder.row_encoder.encode(item, "document") for item in items]
    return collate(rows, num_meta=0, pad_id=embedder.row_encoder.prompt.pad)


def hidden(backbone: Backbone, batch: Batch, positions: Tensor | None = None) -> Tensor:
    embeds, deep = backbone.embed(batch.input_ids, batch.pixel_values, batch.image_grid_thw)
    places = batch.position_ids if positions is None else positions
    return backbone.decode(embeds, places, deep=deep)


@torch.inference_mode()
def test_states_equal_those_of_transformers_own_multimodal_path(
    backbone: Backbone, embedder: Embedder, mixed: list[Item]
) -> None:
    batch = bare(embedder, mixed)
    gap = embedder.row_encoder.prompt.template.match_gap
    ours = hidden(backbone, batch, batch.position_ids - gap * (batch.segment != HEADER).long())
    theirs = backbone.model.model(
        input_ids=batch.input_ids,
        attention_mask=batch.mask.long(),
        mm_token_type_ids=(batch.input_ids == backbone.image_token_id).int(),
        pixel_values=batch.pixel_values,
        image_grid_thw=batch.image_grid_thw,
        use_cache=False,
    ).last_hidden_state
    torch.testing.assert_close(ours[batch.mask], theirs[batch.mask], atol=1e-5, rtol=1e-5)
    # the gap is seen, so the check above could fail
    assert (hidden(backbone, batch) - theirs)[batch.mask].abs().max() > 1e-2


@torch.inference_mode()
def test_positions_on_three_axes_matter(
    backbone: Backbone, embedder: Embedder, mixed: list[Item]
) -> None:
    batch = bare(embedder, mixed)
    flat = batch.position_ids[:1].expand(3, -1, -1)
    difference = (hidden(backbone, batch) - hidden(backbone, batch, flat)).abs()
    assert difference[0].max() == 0  # text: the axes agree
    assert difference[1].max() > 1e-3


@torch.inference_mode()
def test_no_mask_is_a_causal_mask(
    backbone: Backbone, embedder: Embedder, mixed: list[Item]
) -> None:
    batch = bare(embedder, mixed)
    embeds, deep = backbone.embed(batch.input_ids, batch.pixel_values, batch.image_grid_thw)
    length = embeds.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril().expand(len(batch), 1, -1, -1)
    given = backbone.decode(embeds, batch.position_ids, causal, deep=deep)
    plain = backbone.decode(embeds, batch.position_ids, deep=deep)
    torch.testing.assert_close(plain, given, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_image_features_stand_at_their_own_rows(
    backbone: Backbone, embedder: Embedder, mixed: list[Item]
) -> None:
    batch = bare(embedder, mixed)
    embeds, deep = backbone.embed(batch.input_ids, batch.pixel_values, batch.image_grid_thw)
    for index, item in enumerate(mixed):
        alone = bare(embedder, [item])
        [want], own = backbone.embed(alone.input_ids, alone.pixel_values, alone.image_grid_thw)
        torch.testing.assert_close(embeds[index, : len(want)], want, atol=1e-5, rtol=1e-5)
        if deep is not None and own is not None:
            _, placed = deep.take(torch.tensor([index])).placed()
            torch.testing.assert_close(placed, own.placed()[1], atol=1e-5, rtol=1e-5)


def test_a_training_batch_without_images_still_uses_the_vision_tower(backbone: Backbone) -> None:
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        plain, _ = backbone.embed(ids, None, None)
    embeds, _ = backbone.train().embed(ids, None, None)
    assert torch.equal(embeds.detach(), plain)
    embeds.sum().backward()
    for name, parameter in backbone.model.model.visual.named_parameters():
        assert parameter.grad is not None, name
        assert torch.count_nonzero(parameter.grad) == 0


def test_a_frozen_vision_tower_is_left_out_of_such_a_batch(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone.freeze(("vision", "merger"))
    monkeypatch.setattr(backbone, "image_features", None)
    backbone.train().embed(torch.tensor([[5, 6, 7]]), None, None)


def trained(backbone: Backbone) -> set[str]:
    return {name for name, weight in backbone.model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(
    ("part", "inside", "outside"),
    [
        ("vision", "model.visual.blocks", "model.visual.merger"),
        ("merger", "model.visual.merger", "model.visual.blocks"),
        ("embeddings", "model.language_model.embed_tokens", "model.language_model.layers"),
        ("language", "model.language_model.layers", "model.language_model.embed_tokens"),
    ],
)
def test_a_frozen_part_is_exactly_that_part(
    backbone: Backbone, part: FreezePart, inside: str, outside: str
) -> None:
    before = trained(backbone)
    backbone.freeze((part,))
    frozen = before - trained(backbone)
    assert frozen
    assert any(name.startswith(inside) for name in frozen)
    assert not any(name.startswith(outside) for name in frozen)


def test_the_four_parts_together_are_the_whole_model(backbone: Backbone) -> None:
    backbone.freeze(("vision", "merger", "embeddings", "language"))
    assert trained(backbone) == set()


def test_adapters_train_alone_and_only_in_the_language_model(backbone: Backbone) -> None:
    backbone.add_lora(LoraSettings(rank=2, alpha=4))
    names = trained(backbone)
    layers = backbone.model.config.get_text_config().num_hidden_layers
    assert len(names) == layers * 7 * 2
    assert all(".lora_" in name and ".language_model.layers." in name for name in names)
    for kind in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        assert sum(f".{kind}." in name for name in names) == layers * 2


@torch.inference_mode()
def test_an_export_holds_the_merged_adapters_and_leaves_the_model_alone(
    backbone: Backbone, embedder: Embedder, mixed: list[Item], tmp_path: Path
) -> None:
    backbone.add_lora(LoraSettings(rank=2, alpha=4))
    for name, weight in backbone.model.named_parameters():
        if ".lora_B." in name:  # zero at the start, so an untrained adapter changes nothing
            weight.copy_(torch.randn_like(weight) * 0.1)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    batch = bare(embedder, mixed)
    want = hidden(backbone, batch)

    backbone.save(tmp_path / "merged")

    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    saved = load_file(tmp_path / "merged" / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in saved)
    got = hidden(Backbone.load(tmp_path / "merged").eval(), batch)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_an_output_layer_of_its_own_can_be_frozen(backbone: Backbone) -> None:
    backbone.freeze_untied_head()  # tied: the embedding table stays trained
    assert backbone.word_embeddings.weight.requires_grad
    backbone.model.lm_head.weight = nn.Parameter(backbone.word_embeddings.weight.detach().clone())
    backbone.freeze_untied_head()
    assert not backbone.model.lm_head.weight.requires_grad
    assert backbone.word_embeddings.weight.requires_grad


def test_another_kind_of_model_is_refused_by_name(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"'bert'.*qwen2_5_vl"):
        Backbone.load(tmp_path)


def test_nothing_loadable_is_a_mistake_of_the_user(tmp_path: Path, tiny_base: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="no base model"):
            Backbone.load(path)
    # a config whose weights are missing
    (tmp_path / "config.json").write_text((tiny_base / "config.json").read_text())
    with pytest.raises(UserError, match="no base model"):
        Backbone.load(tmp_path)


def copy_of(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder / "base")
    return folder / "base" / "model.safetensors"


def test_truncated_weights_are_a_mistake_of_the_user(tiny_base: Path, tmp_path: Path) -> None:
    file = copy_of(tiny_base, tmp_path)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match="no base model"):
        Backbone.load(file.parent)


def test_a_missing_weight_is_named_and_not_made_up(tiny_base: Path, tmp_path: Path) -> None:
    file = copy_of(tiny_base, tmp_path)
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights, .*layers\.1\.mlp\.up_proj\.weight"):
        Backbone.load(file.parent)


def test_sliding_windows_are_refused(tiny_base: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny_base)
    model.config.get_text_config().layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(UserError, match="sliding_attention"):
        Backbone(model)
