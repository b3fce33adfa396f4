"""A vision tower attends inside each image and window as transformers does, in fewer calls."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rematch_ray.data.collate import collate
from rematch_ray.data.schema import Item
from rematch_ray.model import segment_attention
from rematch_ray.model.backbone import Backbone
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.segment_attention import group_segments
from tests.tiny import png

SIZES = [(32, 64), (48, 32), (64, 64), (32, 64), (16, 80), (80, 80)]


BASES = {"Qwen2-VL": "qwen2_base", "Qwen3-VL": "qwen3_base"}


@pytest.fixture(params=["images", "windows", *BASES])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    base: Path = request.getfixturevalue(BASES.get(request.param, "tiny_base"))
    backbone = Backbone.load(base).train()
    if request.param == "windows":
        tower = backbone.model.model.visual
        tower.fullatt_block_indexes = []
        tower.window_size = 2 * tower.patch_size
    return backbone


def features(backbone: Backbone, embedder: Embedder, name: str) -> tuple[Tensor, list[Tensor], int]:
    """What comes out, the gradient of every weight, and how many times attention was computed."""
    backbone.model.model.visual.config._attn_implementation = name
    items = [Item.of(png("red", width, height)) for width, height in SIZES]
    rows = [embedder.row_encoder.encode(item, "document") for item in items]
    batch = collate(rows, num_meta=0, pad_id=embedder.row_encoder.prompt.pad)
    assert batch.pixel_values is not None and batch.image_grid_thw is not None
    backbone.zero_grad(set_to_none=True)
    calls = []
    attention = F.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            F,
            "scaled_dot_product_attention",
            lambda *a, **k: (calls.append(1), attention(*a, **k))[1],
        )
        found, deep = backbone.image_features(batch.pixel_values, batch.image_grid_thw)
    together = torch.cat([found, *deep])
    weight = torch.linspace(-1, 1, together.numel()).view_as(together)
    (together * weight).sum().backward()
    tower = backbone.model.model.visual
    return together.detach(), [p.grad.clone() for p in tower.parameters()], len(calls)


def test_features_and_gradients_are_those_of_transformers(
    backbone: Backbone, embedder: Embedder
) -> None:
    want, want_gradients, many = features(backbone, embedder, "sdpa")
    got, gradients, few = features(backbone, embedder, segment_attention.NAME)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients, want_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert few < many


def test_a_loaded_model_uses_it(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Backbone.load(tiny_base).eval()
    asked: list[list[int]] = []
    group = group_segments

    def watching(boundaries: Tensor) -> segment_attention.Groups:
        asked.append(boundaries.tolist())
        return group(boundaries)

    monkeypatch.setattr(segment_attention, "group_segments", watching)
    patches = torch.zeros(8, 3 * 2 * 16 * 16)
    backbone.image_features(patches, torch.tensor([[1, 2, 2], [1, 1, 4]]))
    assert asked == [[0, 4, 8]]  # once, however many blocks the tower has


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_every_token_is_in_the_group_of_its_segment(lengths: list[int]) -> None:
    boundaries = torch.tensor([0, *lengths]).cumsum(0)
    groups = group_segments(boundaries)
    assert sorted(groups.shapes) == sorted(
        {length: (lengths.count(length), length) for length in lengths if length}.values()
    )
    if groups.order is None or groups.back is None:
        assert len(groups.shapes) <= 1
        return
    tokens = torch.arange(sum(lengths))
    assert torch.equal(tokens[groups.order][groups.back], tokens)
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    start = 0
    for count, length in groups.shapes:
        rows = segment[groups.order[start : start + count * length]].view(count, length)
        assert (rows == rows[:, :1]).all()
        start += count * length
