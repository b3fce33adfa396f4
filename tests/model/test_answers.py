"""Shared against packed form: the same answers and gradients; detached caches are caught."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rematch_ray.losses.matching import matching_loss
from rematch_ray.model.answers import packed_answers, shared_answers
from rematch_ray.model.deep_features import DeepFeatures
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.keys_values import KeysValues
from rematch_ray.model.raw_rows import RawRows
from rematch_ray.model.settings import LoraSettings
from tests.model.triplets import DOCUMENTS, LABELS, Form, answer, encoded, separate_answers
from tests.tiny import new_embedder


def losses(model: Embedder, form: Form) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, the matching loss alone, and something that only the vectors see."""
    queries, documents = encoded(model, record=form is shared_answers)
    logits = answer(model, form, queries.raw_rows(), documents.raw_rows())
    prompt = model.row_encoder.prompt
    matching = matching_loss(
        logits, LABELS.to(model.device), yes_id=prompt.yes, no_id=prompt.no
    ).mean()
    contrast = (queries.vectors.sum(dim=1) @ documents.vectors.sum(dim=1).T).logsumexp(1).mean()
    return logits.detach(), matching, contrast


def gradients(model: Embedder, form: Form, *, alone: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradient of every weight and of what the rows put into the decoder."""
    model.zero_grad(set_to_none=True)
    made: list[Tensor] = []
    added: list[Tensor] = []
    embed = model.backbone.embed

    def watched(*inputs: Any) -> tuple[Tensor, DeepFeatures | None]:
        embeds, deep = embed(*inputs)
        layers = () if deep is None else deep.layers
        for values in (embeds, *layers):
            if not values.requires_grad:  # adapters leave the embedding table alone
                values.requires_grad_()
            values.retain_grad()
        made.append(embeds)
        added.extend(layers)
        return embeds, deep

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.backbone, "embed", watched)
        logits, matching, contrast = losses(model, form)
    (matching if alone else contrast + 0.1 * matching).backward()
    named = model.named_parameters()
    found = {name: p.grad.clone() for name, p in named if p.grad is not None}
    # in the shared form each row's content has read its own copy of the header, else the query's
    header = len(model.row_encoder.prompt.header)
    sides = [embeds.grad for embeds in made if embeds.grad is not None]
    heads = [side[:, :header].sum(dim=0) for side in sides]
    found["embeddings of the header"] = torch.stack(heads).sum(dim=0)
    for name, side in zip(("queries", "documents"), sides, strict=True):
        found[f"embeddings of the {name}"] = side[:, header:]
    for number, layer in enumerate(added):
        if layer.grad is not None:
            found[f"deep embeddings {number}"] = layer.grad
    return logits, found


def assert_the_same(
    got: tuple[Tensor, dict[str, Tensor]], want: tuple[Tensor, dict[str, Tensor]]
) -> None:
    torch.testing.assert_close(got[0], want[0], atol=1e-4, rtol=1e-4)
    assert got[1].keys() >= want[1].keys()
    for name, gradient in want[1].items():
        error = (got[1][name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error < 2e-4, name
    # what one form does not reach, the other leaves at zero
    for name in got[1].keys() - want[1].keys():
        assert got[1][name].abs().max() == 0, name


MODELS: dict[str, dict[str, Any]] = {
    "full": {},
    "adapters": {"lora": LoraSettings(rank=2)},
    "recomputed": {"gradient_checkpointing": True},
    "recomputed adapters": {"lora": LoraSettings(rank=2), "gradient_checkpointing": True},
}
BASES = {"Qwen2-VL": "qwen2_base", "Qwen3-VL": "qwen3_base"}
KINDS = [*MODELS, "Qwen2-VL full", "Qwen3-VL full", "Qwen3-VL recomputed adapters"]


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, device: str) -> Embedder:
    family = request.param.partition(" ")[0]
    changes = MODELS[request.param.removeprefix(f"{family} ") if family in BASES else request.param]
    base = request.getfixturevalue(BASES.get(family, "tiny_base"))
    model = new_embedder(base, **changes).train()
    if (lora := changes.get("lora")) is not None:
        model.backbone.add_lora(lora)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # at their start of zero they would hide everything
                torch.nn.init.normal_(parameter, std=0.05)
    if changes.get("gradient_checkpointing"):
        model.backbone.checkpoint_layers()
    return model.to(device)


@pytest.mark.parametrize("alone", [False, True], ids=["joint", "matching alone"])
def test_shared_equals_packed_in_answers_and_every_gradient(model: Embedder, alone: bool) -> None:
    want = gradients(model, packed_answers, alone=alone)
    assert_the_same(gradients(model, shared_answers, alone=alone), want)


def test_both_forms_equal_eight_forwards_of_one_view_each_in_every_gradient(
    model: Embedder,
) -> None:
    """The matching loss alone: documents in either slot, pictures, rows of unequal length."""
    want = gradients(model, separate_answers, alone=True)
    assert all(gradient.any() for name, gradient in want[1].items() if "embeddings" in name)
    for form in (packed_answers, shared_answers):
        assert_the_same(gradients(model, form, alone=True), want)


def test_the_recording_pass_leaves_the_vectors_alone(tiny_base: Path) -> None:
    model = new_embedder(tiny_base)
    for plain, recorded in zip(
        encoded(model, record=False), encoded(model, record=True), strict=True
    ):
        assert torch.equal(plain.vectors, recorded.vectors)


def detached(rows: RawRows) -> RawRows:
    assert rows.keys_values is not None
    layers = {n: (k.detach(), v.detach()) for n, (k, v) in rows.keys_values.layers.items()}
    return RawRows(
        rows.inputs_embeds, rows.position_ids, rows.segment, rows.fused, KeysValues(layers)
    )


def test_detached_keys_and_values_are_refused_not_trusted(tiny_base: Path) -> None:
    model = new_embedder(tiny_base).train()
    queries, documents = (part.raw_rows() for part in encoded(model, record=True))
    with pytest.raises(RuntimeError, match="detached"):
        answer(model, shared_answers, queries, detached(documents))
    with pytest.raises(RuntimeError, match="detached"):
        answer(model, shared_answers, detached(queries), documents)
    with torch.no_grad():  # nothing to lose
        got = answer(model, shared_answers, detached(queries), detached(documents))
        torch.testing.assert_close(got, answer(model, shared_answers, queries, documents))


def test_reentrant_checkpointing_is_refused(tiny_base: Path) -> None:
    model = new_embedder(tiny_base).train()
    model.backbone.checkpoint_layers()
    model.backbone.model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": True}
    )
    with pytest.raises(RuntimeError, match="detached"):
        losses(model, shared_answers)


def test_rows_without_a_recording_are_refused(tiny_base: Path) -> None:
    model = new_embedder(tiny_base)
    queries, documents = (part.raw_rows() for part in encoded(model, record=False))
    with pytest.raises(RuntimeError, match="record=True"):
        answer(model, shared_answers, queries, documents)


def test_rows_of_two_passes_stack_to_those_of_one(tiny_base: Path) -> None:
    model = new_embedder(tiny_base).train()
    queries, together = encoded(model, record=True)
    parts = []
    for chosen in (slice(0, 2), slice(2, None)):
        rows = [model.row_encoder.encode(item, "document") for item in DOCUMENTS[chosen]]
        batch = model.batch(rows, "document")
        parts.append(model.encode_rows(batch, "document", record=True).raw_rows())
    want = answer(model, shared_answers, queries.raw_rows(), together.raw_rows())
    got = answer(model, shared_answers, queries.raw_rows(), RawRows.stacked(*parts))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_no_raw_token_is_read_twice(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_embedder(tiny_base)
    queries, documents = (part.raw_rows() for part in encoded(model, record=True))
    seen: list[int] = []
    decode = model.backbone.decode

    def counting(inputs_embeds: Tensor, *rest: object, **named: object) -> Tensor:
        seen.append(inputs_embeds.shape[1])
        return decode(inputs_embeds, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(model.backbone, "decode", counting)
    answer(model, shared_answers, queries, documents)
    prompt = model.row_encoder.prompt
    assert seen == [len(prompt.match_instruction) + 3 + 8 * len(prompt.answer)]


def test_a_longer_answer_moves_with_the_stored_vector(tiny_base: Path) -> None:
    """Gradients reach the query's bank through Z alone, too: the projector is part of the graph."""
    model = new_embedder(tiny_base).train()
    _, matching, _ = losses(model, shared_answers)
    matching.backward()
    for side in ("query", "document"):
        gradient = model.banks[side].grad
        assert gradient is not None and gradient[: model.settings.fuse_k].abs().max() > 0
