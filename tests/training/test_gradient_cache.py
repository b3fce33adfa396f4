"""Cached gradients equal uncached ones: every term, dropout, adapters, draws over chunks, parts."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rematch_ray.data.schema import Positive
from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.losses.joint import JointLoss, orthogonality_term
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.embeddings import Embeddings, Encoded
from rematch_ray.model.settings import LoraSettings
from rematch_ray.training import gradient_cache
from rematch_ray.training.candidates import build_contrast
from rematch_ray.training.chunks import plan_chunks, plan_sides
from rematch_ray.training.gradient_cache import accumulate
from rematch_ray.training.objective import EncodeChunk, JointModel, ReplayChunk
from rematch_ray.training.pairs import document_uses
from tests.tiny import new_embedder, objective, text_sample, train_batch

CHUNK = 150

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


def build(base: Path, objective_changes: dict[str, Any], model: dict[str, Any]) -> JointModel:
    settings = objective(**objective_changes)
    embedder = new_embedder(base, has_fused=settings.w_fused > 0, **model)
    if (lora := model.get("lora")) is not None:
        embedder.backbone.add_lora(lora)
        for name, parameter in embedder.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    if model.get("gradient_checkpointing"):
        embedder.backbone.checkpoint_layers()
    return JointModel(embedder, settings).train()


def rows(embedder: Embedder) -> TrainBatch:
    """Two sub-batches: pictures, hard negatives, a document that two queries share."""
    shared = replace(text_sample(3), positives=(Positive(text_sample(0).positives[0].item),))
    groups = [
        [text_sample(n, negatives=n % 3, image=n == 1) for n in range(3)] + [shared],
        [text_sample(n, negatives=(n + 1) % 2, image=n == 5) for n in range(4, 8)],
    ]
    return train_batch(embedder, groups, step=3)


def gradients(
    model: JointModel, batch: TrainBatch, **options: Any
) -> tuple[JointLoss, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    calls: list[bool] = []

    def backward(loss: Tensor, last: bool) -> None:
        calls.append(last)
        loss.backward()

    loss = accumulate(model, model, batch, backward=backward, **options)
    assert calls == [False] * (len(calls) - 1) + [True]
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss, found


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 3e-4) -> None:
    assert got.keys() == want.keys()
    largest = max(float(gradient.norm()) for gradient in want.values())
    for name, gradient in want.items():
        error = (got[name] - gradient).norm() / max(float(gradient.norm()), 1e-3 * largest)
        assert error < tolerance, name


@pytest.mark.parametrize("case", CASES)
def test_cached_equals_uncached_in_loss_and_every_gradient(tiny_base: Path, case: str) -> None:
    model = build(tiny_base, *CASES[case])
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


def test_matching_alone_flows_through_the_cache(tiny_base: Path) -> None:
    """Its gradient is a small part of the whole; here it is most of it."""
    changes = {"w_match": 1000.0, "match_mined": 1.0, "match_temperature": 10.0}
    model = build(tiny_base, changes, {})
    batch = rows(model.embedder)
    _, want = gradients(model, batch)
    _, got = gradients(model, batch, chunk_tokens=CHUNK)
    assert_equal(got, want)


def uncached_by_chunks(model: JointModel, batch: TrainBatch) -> dict[str, Tensor]:
    """The reference with dropout: chunks encoded once, with gradients, all of them held."""
    model.zero_grad(set_to_none=True)
    chunks = plan_sides(batch, CHUNK)
    encode = model.embedder.encode_rows
    held: list[tuple[Encoded, list[int], str]] = []
    for chunk in chunks:
        side, rows = ("query", chunk.queries) if chunk.queries else ("document", chunk.documents)
        held.append((encode(batch.batch(side, rows), side), list(rows), side))

    def together(side: str) -> Embeddings:
        parts = [entry for entry in held if entry[2] == side]
        order = torch.tensor([row for _, rows, _ in parts for row in rows]).argsort()
        fused = torch.cat([part.fused for part, *_ in parts if part.fused is not None])
        return Embeddings(torch.cat([p.vectors for p, *_ in parts])[order], fused[order])

    contrast = build_contrast(batch, together("query"), together("document"), model.settings)
    counts = model.counts(batch, 0)
    total = model.contrast_loss(contrast, counts, model.temperatures()).total
    uses = {"query": batch.valid.float(), "document": document_uses(batch).sum(dim=0)}
    states = [(model._orthogonal_states(part), uses[side][rows]) for part, rows, side in held]
    total = total + model.settings.weights["orthogonality"] * orthogonality_term(states, counts)
    total.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def dropout_model(base: Path) -> JointModel:
    return build(base, {"w_match": 0}, {"lora": LoraSettings(rank=2, dropout=0.3)})


def test_dropout_is_drawn_alike_in_both_passes(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dropout_model(tiny_base)
    batch = train_batch(
        model.embedder, [[text_sample(n, negatives=n % 3, image=n == 1) for n in range(8)]]
    )
    torch.manual_seed(5)
    want = uncached_by_chunks(model, batch)
    torch.manual_seed(5)
    _, got = gradients(model, batch, chunk_tokens=CHUNK)
    assert_equal(got, want)
    # without the replay the same comparison fails
    monkeypatch.setattr(gradient_cache.RandomState, "restored", lambda self: _nothing())
    torch.manual_seed(5)
    _, other = gradients(model, batch, chunk_tokens=CHUNK)
    with pytest.raises(AssertionError):
        assert_equal(other, want)


def test_a_step_leaves_the_random_numbers_where_its_first_pass_did(tiny_base: Path) -> None:
    model = dropout_model(tiny_base)
    batch = rows(model.embedder)
    torch.manual_seed(1)
    gradients(model, batch, chunk_tokens=CHUNK)
    after = torch.rand(1)
    torch.manual_seed(1)
    gradients(model, batch, chunk_tokens=CHUNK)
    assert torch.equal(torch.rand(1), after)
    torch.manual_seed(1)
    assert not torch.equal(torch.rand(1), after)


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


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
