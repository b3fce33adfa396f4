"""Cached gradients equal uncached ones: every term, adapters, draws over chunks, parts."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rematch_ray.model.settings import LoraSettings
from rematch_ray.training import gradient_cache
from rematch_ray.training.chunks import plan_chunks
from rematch_ray.training.objective import EncodeChunk, ReplayChunk
from tests.tiny import text_sample, train_batch
from tests.training.cached import CHUNK, assert_equal, build, gradients, rows

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "joint": ({}, {}),
    "packed": ({"match_form": "packed"}, {}),
    "mined pairs": ({"match_mined": 1.0, "match_temperature": 10.0}, {}),
    "mined pairs, packed": (
        {"match_mined": 1.0, "match_temperature": 10.0, "match_form": "packed"},
        {},
    ),
    "pooled": ({"hard_negatives": "pooled"}, {}),
    "margin, learned temperatures": ({"margin": 0.05, "learn_temperatures": True}, {}),
    "orthogonal vectors": ({"orth_space": "vector", "orth_tokens": "all"}, {}),
    "half the rows match": ({"match_share": 0.5}, {}),
    "rematch": ({"preset": "rematch"}, {}),
    "no matching": ({"w_match": 0}, {}),
    "metaembed": ({"preset": "metaembed", "w_match": 0, "temperature_maxsim": 1.0}, {}),
    "adapters": ({}, {"lora": LoraSettings(rank=2)}),
    "recomputed": ({}, {"gradient_checkpointing": True}),
}
OTHERS = {
    "Qwen2-VL": CASES["joint"],
    "Qwen3-VL": CASES["joint"],
    "Qwen3-VL, packed": CASES["mined pairs, packed"],
    "Qwen3-VL, recomputed adapters": (
        {"hard_negatives": "pooled"},
        {"lora": LoraSettings(rank=2, train=("merger",)), "gradient_checkpointing": True},
    ),
}


BASES = {"Qwen2-VL": "qwen2_base", "Qwen3-VL": "qwen3_base"}


@pytest.mark.parametrize("case", [*CASES, *OTHERS])
def test_cached_equals_uncached_in_loss_and_every_gradient(
    request: pytest.FixtureRequest, device: str, case: str
) -> None:
    base: Path = request.getfixturevalue(BASES.get(case.partition(",")[0], "tiny_base"))
    model = build(base, *(CASES | OTHERS)[case], device=device)
    batch = rows(model.embedder)
    assert len(plan_chunks(batch, CHUNK)) > 3
    want_loss, want = gradients(model, batch)
    for chunk in (CHUNK, 10**6):
        loss, got = gradients(model, batch, chunk_tokens=chunk)
        assert_equal(got, want)
        torch.testing.assert_close(loss.total, want_loss.total.detach(), atol=1e-4, rtol=1e-4)
        assert loss.accuracy.keys() == want_loss.accuracy.keys()
        for ours, theirs in ((loss.parts, want_loss.parts), (loss.accuracy, want_loss.accuracy)):
            for name in theirs:
                torch.testing.assert_close(
                    ours[name].detach(), theirs[name].detach(), atol=1e-4, rtol=1e-4
                )


def test_matching_alone_flows_through_the_cache(tiny_base: Path, device: str) -> None:
    """Its gradient is a small part of the whole; here it is most of it."""
    changes = {"w_match": 1000.0, "match_mined": 1.0, "match_temperature": 10.0}
    model = build(tiny_base, changes, {}, device=device)
    batch = rows(model.embedder)
    _, want = gradients(model, batch)
    _, got = gradients(model, batch, chunk_tokens=CHUNK)
    assert_equal(got, want)


def test_pixels_are_unpacked_for_one_chunk_at_a_time(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(tiny_base, {"w_match": 0}, {})
    batch = train_batch(model.embedder, [[text_sample(n, image=True) for n in range(6)]])
    whole = batch.documents.pixel_values
    assert whole is not None
    seen: list[int] = []
    embed = model.embedder.backbone.embed

    def watching(ids: Tensor, pixels: Tensor | None, grid: Tensor | None) -> Tensor:
        seen.append(0 if pixels is None else len(pixels))
        return embed(ids, pixels, grid)

    monkeypatch.setattr(model.embedder.backbone, "embed", watching)
    gradients(model, batch, chunk_tokens=100)
    assert max(seen) < len(whole) / 2
    assert sum(seen) == 2 * len(whole)


def test_two_parts_are_two_smaller_batches(tiny_base: Path) -> None:
    model = build(tiny_base, {"match_mined": 1.0}, {})
    groups = [[text_sample(4 * g + n, negatives=1) for n in range(3 - g)] for g in range(2)]
    batch = train_batch(model.embedder, groups, step=2)
    want: dict[str, Tensor] = {}
    for number, share in ((0, 0.6), (1, 0.4)):
        _, alone = gradients(model, train_batch(model.embedder, [groups[number]], step=2))
        for name, gradient in alone.items():
            want[name] = want.get(name, 0) + share * gradient
    for options in ({}, {"chunk_tokens": CHUNK}):
        _, got = gradients(model, batch, parts=2, **options)
        assert_equal(got, want)
    with pytest.raises(ValueError, match="2 sub-batches"):
        gradients(model, batch, parts=3)


@pytest.mark.parametrize("parts", [2, 3])
def test_the_gradients_at_the_vectors_are_those_of_the_whole_in_any_number_of_parts(
    tiny_base: Path, parts: int
) -> None:
    """Every part holds the same rows, so each row has the same negatives in a part as in all."""
    model = build(tiny_base, {"w_match": 0}, {})
    model.probe_vectors = True
    group = [text_sample(n, negatives=1) for n in range(3)]
    batch = train_batch(model.embedder, [group] * parts)
    want, _ = gradients(model, batch)
    for options in ({}, {"chunk_tokens": CHUNK}):
        got, _ = gradients(model, batch, parts=parts, **options)
        assert got.vector_gradients.keys() == want.vector_gradients.keys() != set()
        for name, value in want.vector_gradients.items():
            torch.testing.assert_close(got.vector_gradients[name], value, atol=0, rtol=1e-3)


def test_every_rank_makes_the_same_calls_whatever_it_holds(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rank has two chunks more, and extra documents in the first."""
    model = build(tiny_base, {}, {})
    batch = train_batch(model.embedder, [[text_sample(0), text_sample(1)]])
    want_loss, want = gradients(model, batch)
    calls: list[str] = []
    forward = model.forward

    def counted(work: Any) -> Any:
        kind = {EncodeChunk: "encode", ReplayChunk: "replay"}[type(work)]
        extra = len(work.extra) if isinstance(work, ReplayChunk) else 0
        calls.append(f"{kind} {extra}")
        return forward(work)

    monkeypatch.setattr(model, "forward", counted)
    monkeypatch.setattr(gradient_cache, "largest_over_ranks", lambda number, **_: number + 2)
    monkeypatch.setattr(
        gradient_cache, "largest_over_ranks_each", lambda flags: torch.ones_like(flags)
    )
    loss, got = gradients(model, batch, chunk_tokens=10**6)
    assert calls == ["encode 0"] * 3 + ["replay 1"] * 3
    assert_equal(got, want)
    torch.testing.assert_close(loss.total, want_loss.total.detach(), atol=1e-4, rtol=1e-4)


def test_a_model_is_copied_nowhere(tiny_base: Path) -> None:
    model = build(tiny_base, {}, {})
    before = copy.deepcopy(model.state_dict())
    gradients(model, rows(model.embedder), chunk_tokens=CHUNK)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
