"""Cached gradients equal uncached ones with dropout on: every term, both passes, recomputed layers.

The reference encodes each chunk once, with gradients, and holds all of them: keys and values for
the matching stage too, whose tail draws its random numbers right behind the chunk's encoding.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rematch_ray.data.prompts import Side
from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.losses.joint import Answers, matching_term, orthogonality_term
from rematch_ray.model.embeddings import Embeddings, Encoded
from rematch_ray.model.raw_rows import RawRows
from rematch_ray.model.settings import LoraSettings
from rematch_ray.training import gradient_cache
from rematch_ray.training.candidates import build_contrast, equal_documents
from rematch_ray.training.chunks import Chunk, plan_chunks, plan_sides
from rematch_ray.training.objective import JointModel
from rematch_ray.training.pairs import ChunkPairs, Pairs, document_uses, draw_pairs
from rematch_ray.training.random_state import RandomState
from tests.training.cached import CHUNK, assert_equal, build, gradients, of_weights, rows

ALONE = {"w_match": 1000.0, "match_mined": 1.0, "match_temperature": 10.0}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no matching": ({"w_match": 0}, {}),
    "joint, recomputed": ({}, {"gradient_checkpointing": True}),
    "mined pairs, pooled": (
        {"match_mined": 1.0, "match_temperature": 10.0, "hard_negatives": "pooled"},
        {},
    ),
    # its gradient is a small part of the whole; here it is most of it
    "matching alone": (ALONE, {}),
    "matching alone, recomputed": (ALONE, {"gradient_checkpointing": True}),
    "packed": ({"match_form": "packed"}, {}),
}


def dropout_model(base: Path, name: str, device: str = "cpu") -> JointModel:
    settings, model = CASES[name]
    lora = LoraSettings(rank=2, dropout=0.3)
    return build(base, settings, {**model, "lora": lora}, device=device)


@dataclass(frozen=True)
class Held:
    """A chunk that was encoded, and what the next random number was drawn from."""

    chunk: Chunk
    queries: Encoded | None
    documents: Encoded | None
    after: RandomState

    def side(self, side: Side) -> tuple[Encoded, list[int]] | None:
        """What the chunk holds of a side, unless it only keeps the shape."""
        if side == "query":
            given, rows, counts = self.queries, self.chunk.queries, self.chunk.counts_queries
        else:
            given, rows, counts = self.documents, self.chunk.documents, self.chunk.counts_documents
        return (given, list(rows)) if given is not None and counts else None


def uncached_by_chunks(model: JointModel, batch: TrainBatch) -> dict[str, Tensor]:
    """The reference: gradients of one loss over chunks that are all held."""
    model.zero_grad(set_to_none=True)
    batch = equal_documents(batch)
    matches = model.settings.w_match > 0
    held = []
    for chunk in (plan_chunks if matches else plan_sides)(batch, CHUNK):
        queries = encoded(model, batch, "query", chunk.queries)
        documents = encoded(model, batch, "document", chunk.documents)
        held.append(Held(chunk, queries, documents, RandomState.now(batch.valid.device)))

    queries, documents = together(held, "query"), together(held, "document")
    contrast = build_contrast(batch, queries, documents, model.settings)
    pairs = None
    if matches:
        assert queries.fused is not None and documents.fused is not None
        pairs = draw_pairs(batch, (queries.fused @ documents.fused.T).detach(), model.settings)
    counts = model.counts(batch, 0 if pairs is None else len(pairs))
    total = model.contrast_loss(contrast, counts, model.temperatures()).total
    states = [
        (model._orthogonal_states(given), uses[given_rows])
        for side, uses in (
            ("query", batch.valid.float()),
            ("document", document_uses(batch).sum(dim=0)),
        )
        for given, given_rows in of_side(held, side)  # type: ignore[arg-type]
    ]
    weights = model.settings.weights
    total = total + weights["orthogonality"] * orthogonality_term(states, counts)
    for one in held if pairs is not None else []:
        with one.after.restored():
            answers = matched(model, batch, one, pairs)
        if answers is not None:
            total = total + weights["matching"] * matching_term(answers, counts, {})
    total.backward()
    return of_weights(model)


def encoded(
    model: JointModel, batch: TrainBatch, side: Side, chosen: tuple[int, ...]
) -> Encoded | None:
    if not chosen:
        return None
    return model.embedder.encode_rows(batch.batch(side, chosen), side, record=model.records)


def of_side(held: list[Held], side: Side) -> list[tuple[Encoded, list[int]]]:
    return [found for one in held if (found := one.side(side)) is not None]


def together(held: list[Held], side: Side) -> Embeddings:
    """The vectors of all rows of a side, in their order."""
    parts = of_side(held, side)
    order = torch.tensor([row for _, chosen in parts for row in chosen]).argsort()
    whole = Embeddings.concatenate([part.embeddings for part, _ in parts])
    assert whole.fused is not None
    return Embeddings(whole.vectors[order], whole.fused[order])


def matched(model: JointModel, batch: TrainBatch, one: Held, pairs: Pairs) -> Answers | None:
    """The tail over a chunk's triplets, and over documents of other chunks that they read."""
    mine = ChunkPairs.of(pairs, one.chunk)
    if not len(mine.pairs):
        return None
    assert one.queries is not None and one.documents is not None
    raw = one.documents.raw_rows()
    further = encoded(model, batch, "document", mine.extra)
    if further is not None:
        raw = RawRows.stacked(raw, further.raw_rows())
    return model._answers(mine.pairs, one.queries.raw_rows(), raw)


@pytest.mark.parametrize("name", CASES)
def test_dropout_is_drawn_alike_in_both_passes(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, device: str, name: str
) -> None:
    model = dropout_model(tiny_base, name, device)
    batch = rows(model.embedder)
    torch.manual_seed(5)
    want = uncached_by_chunks(model, batch)
    torch.manual_seed(5)
    _, got = gradients(model, batch, chunk_tokens=CHUNK)
    assert_equal(got, want)
    # without the replay the same comparison fails
    monkeypatch.setattr(gradient_cache.RandomState, "restored", lambda self: nullcontext())
    torch.manual_seed(5)
    _, other = gradients(model, batch, chunk_tokens=CHUNK)
    with pytest.raises(AssertionError):
        assert_equal(other, want)


def test_pairs_reach_over_chunks_and_the_tail_has_dropout(tiny_base: Path) -> None:
    """What the comparison above relies on."""
    model = dropout_model(tiny_base, "matching alone")
    batch = equal_documents(rows(model.embedder))
    chunks = plan_chunks(batch, CHUNK)
    assert len(chunks) > 3
    with torch.no_grad():
        queries = model.embedder.encode_rows(batch.queries, "query", record=True)
        documents = model.embedder.encode_rows(batch.documents, "document", record=True)
        assert queries.fused is not None and documents.fused is not None
        pairs = draw_pairs(batch, queries.fused @ documents.fused.T, model.settings)
        assert any(ChunkPairs.of(pairs, chunk).extra for chunk in chunks)
        twice = [
            model._answers(pairs, queries.raw_rows(), documents.raw_rows()).logits for _ in range(2)
        ]
    assert (twice[0] - twice[1]).abs().max() > 1e-2


def test_a_step_leaves_the_random_numbers_where_its_first_pass_did(
    tiny_base: Path, device: str
) -> None:
    model = dropout_model(tiny_base, "no matching", device)
    batch = rows(model.embedder)
    torch.manual_seed(1)
    gradients(model, batch, chunk_tokens=CHUNK)
    after = torch.rand(1, device=device)
    torch.manual_seed(1)
    gradients(model, batch, chunk_tokens=CHUNK)
    assert torch.equal(torch.rand(1, device=device), after)
    torch.manual_seed(1)
    assert not torch.equal(torch.rand(1, device=device), after)
