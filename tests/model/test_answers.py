"""Shared against packed form: the same answers and gradients; detached caches are caught."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rematch_ray.data.schema import Item
from rematch_ray.losses.matching import matching_loss, view_labels
from rematch_ray.model.answers import packed_answers, shared_answers
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.embeddings import Encoded
from rematch_ray.model.keys_values import KeysValues
from rematch_ray.model.raw_rows import RawRows
from rematch_ray.model.settings import LoraSettings
from tests.tiny import new_embedder, png

QUERIES = [
    Item.of("a red circle", id="q0"),
    Item.of(png("red", 32, 48), "like this but blue", id="q1"),
    Item.of("a", id="q2"),
]
DOCUMENTS = [
    Item.of(png("red", 48, 64), id="d0"),
    Item.of("a very long text about a bar left of a circle", id="d1"),
    Item.of("short", png(), id="d2"),
    Item.of("a blue bar", id="d3"),
    Item.of(png("blue"), "and words behind it", id="d4"),
]
# a document may serve several queries, in either slot; a query may have no triplet at all
ROWS = torch.tensor([0, 1, 2, 0])
FIRST = torch.tensor([0, 3, 2, 4])
SECOND = torch.tensor([1, 0, 0, 3])
LABELS = view_labels(torch.tensor([0, 1, 0, 1]))

Answers = Callable[..., Tensor]


def encoded(model: Embedder, *, record: bool) -> tuple[Encoded, Encoded]:
    queries = [model.row_encoder.encode(item, "query") for item in QUERIES]
    documents = [model.row_encoder.encode(item, "document") for item in DOCUMENTS]
    return (
        model.encode_rows(model.batch(queries, "query"), "query", record=record),
        model.encode_rows(model.batch(documents, "document"), "document", record=record),
    )


def answer(model: Embedder, form: Answers, queries: RawRows, documents: RawRows) -> Tensor:
    assert model.matcher is not None
    return form(
        model.backbone,
        model.matcher,
        model.row_encoder.prompt,
        queries.take(ROWS),
        documents.take(FIRST),
        documents.take(SECOND),
    )


def losses(model: Embedder, form: Answers) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, the matching loss alone, and something that only the vectors see."""
    queries, documents = encoded(model, record=form is shared_answers)
    logits = answer(model, form, queries.raw_rows(), documents.raw_rows())
    prompt = model.row_encoder.prompt
    matching = matching_loss(logits, LABELS, yes_id=prompt.yes, no_id=prompt.no).mean()
    contrast = (queries.vectors.sum(dim=1) @ documents.vectors.sum(dim=1).T).logsumexp(1).mean()
    return logits.detach(), matching, contrast


def gradients(model: Embedder, form: Answers, *, alone: bool) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    logits, matching, contrast = losses(model, form)
    (matching if alone else contrast + 0.1 * matching).backward()
    named = model.named_parameters()
    return logits, {name: p.grad.clone() for name, p in named if p.grad is not None}


MODELS = {
    "full": {},
    "adapters": {"lora": LoraSettings(rank=2)},
    "recomputed": {"gradient_checkpointing": True},
    "recomputed adapters": {"lora": LoraSettings(rank=2), "gradient_checkpointing": True},
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tiny_base: Path) -> Embedder:
    changes = dict(MODELS[request.param])
    model = new_embedder(tiny_base, **changes).train()
    if (lora := changes.get("lora")) is not None:
        model.backbone.add_lora(lora)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # at their start of zero they would hide everything
                torch.nn.init.normal_(parameter, std=0.05)
    if changes.get("gradient_checkpointing"):
        model.backbone.checkpoint_layers()
    return model


@pytest.mark.parametrize("alone", [False, True], ids=["joint", "matching alone"])
def test_shared_equals_packed_in_answers_and_every_gradient(model: Embedder, alone: bool) -> None:
    want_logits, want = gradients(model, packed_answers, alone=alone)
    got_logits, got = gradients(model, shared_answers, alone=alone)
    torch.testing.assert_close(got_logits, want_logits, atol=1e-4, rtol=1e-4)
    assert got.keys() >= want.keys()
    for name, gradient in want.items():
        error = (got[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error < 2e-4, name
    # what the packed form does not reach, the shared one leaves at zero
    for name in got.keys() - want.keys():
        assert got[name].abs().max() == 0, name


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
