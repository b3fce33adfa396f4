"""The joint loss of a rank: each paper alone by hand, masks, gradients, rows that count nothing."""

import copy
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rematch_ray.data.schema import Item, Part, Positive, Sample
from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.losses.joint import Contrast
from rematch_ray.losses.matching import matching_loss, view_labels
from rematch_ray.losses.orthogonality import orthogonality
from rematch_ray.model.answers import packed_answers
from rematch_ray.model.embedder import Embedder
from rematch_ray.training.candidates import build_contrast, equal_documents
from rematch_ray.training.objective import JointModel
from rematch_ray.training.pairs import draw_pairs
from tests.tiny import new_embedder, objective, picture, text_sample, train_batch

SAMPLES = [text_sample(number, negatives=number % 3, image=number == 1) for number in range(4)]
BAD = Sample(
    Item.of("broken", id="q9"),
    (Positive(Item("d9", (Part("image", image=b"no image"),))),),
    source="notes",
)


def joint(embedder: Embedder, **changes: Any) -> JointModel:
    return JointModel(embedder, objective(**changes)).train()


def contrast_of(model: JointModel, batch: TrainBatch) -> Contrast:
    encode = model.embedder.encode_rows
    queries = encode(batch.queries, "query").embeddings
    documents = encode(batch.documents, "document").embeddings
    return build_contrast(batch, queries, documents, model.settings)


def names(batch: TrainBatch, slots: Tensor) -> list[str]:
    return [batch.documents.ids[slot] for slot in slots if slot >= 0]


def info_nce(score: Callable[[int, int], Tensor], batch: TrainBatch, *, pooled: bool) -> Tensor:
    """Mean over queries of -log of the positive's share, document rows by hand.

    `score(query, document)` divides by the temperature already.
    """
    positives, losses = batch.positive_slot.tolist(), []
    for row, positive in enumerate(positives):
        hard = batch.negative_slot if pooled else batch.negative_slot[row : row + 1]
        rivals = {*positives, *hard.flatten().tolist()} - {-1, positive}
        logits = torch.stack([score(row, positive), *(score(row, slot) for slot in sorted(rivals))])
        losses.append(-logits.log_softmax(dim=0)[0])
    return torch.stack(losses).mean()


def late(query: Tensor, document: Tensor, r_q: int, r_d: int, reduce: str = "mean") -> Tensor:
    best = (query[:r_q] @ document[:r_d].T).amax(dim=1)
    return best.mean() if reduce == "mean" else best.sum()


def test_the_metaembed_preset_is_the_mean_over_budgets_of_summed_maxsim(tiny_base: Path) -> None:
    embedder = new_embedder(tiny_base, has_fused=False)
    batch = train_batch(embedder, [SAMPLES])
    settings = objective(preset="metaembed", w_match=0, temperature_maxsim=0.5)
    got = JointModel(embedder, settings)(batch)
    queries = embedder.encode_rows(batch.queries, "query").vectors
    documents = embedder.encode_rows(batch.documents, "document").vectors
    losses = []
    for r_q, r_d in ((1, 1), (2, 3), (4, 6)):
        losses.append(
            info_nce(
                lambda q, d, r_q=r_q, r_d=r_d: (
                    late(queries[q], documents[d], r_q, r_d, "sum") / 0.5
                ),
                batch,
                pooled=False,
            )
        )
    torch.testing.assert_close(got.groups, torch.stack(losses), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.total, torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)


def test_the_rematch_preset_is_fused_orthogonality_and_matching(embedder: Embedder) -> None:
    batch = train_batch(embedder, [SAMPLES], step=5)
    settings = objective(preset="rematch", w_match=0.1)
    got = JointModel(embedder, settings)(batch)

    queries = embedder.encode_rows(batch.queries, "query")
    documents = embedder.encode_rows(batch.documents, "document")
    assert queries.fused is not None and documents.fused is not None
    cosine = queries.fused @ documents.fused.T
    fused = info_nce(lambda q, d: cosine[q, d] / 0.2, batch, pooled=True)
    torch.testing.assert_close(got.parts["fused"], fused, atol=1e-5, rtol=1e-5)

    items = torch.cat([queries.states[:, :3], documents.states[:, :3]])
    orthogonal = orthogonality(items).mean()
    torch.testing.assert_close(got.parts["orthogonality"], orthogonal)

    pairs = draw_pairs(batch, cosine.detach(), settings)
    assert len(pairs) == 4
    prompt, matcher = embedder.row_encoder.prompt, embedder.matcher
    assert matcher is not None
    raw = documents.raw_rows()
    logits = packed_answers(
        embedder.backbone, matcher, prompt, queries.raw_rows().take(pairs.query_rows),
        raw.take(pairs.first_rows), raw.take(pairs.second_rows),
    )  # fmt: skip
    labels = view_labels(pairs.positive_slot)
    matching = matching_loss(logits, labels, yes_id=prompt.yes, no_id=prompt.no).mean()
    torch.testing.assert_close(got.parts["matching"], matching, atol=1e-5, rtol=1e-5)

    want = fused + 0.5 * orthogonal + 0.1 * matching
    torch.testing.assert_close(got.total, want, atol=1e-5, rtol=1e-5)
    assert got.parts["groups"] == 0


def test_the_fused_term_alone_is_a_single_vector_embedder(embedder: Embedder) -> None:
    batch = train_batch(embedder, [SAMPLES])
    got = joint(embedder, w_groups=0, w_orth=0, w_match=0)(batch)
    queries = embedder.encode_rows(batch.queries, "query").fused
    documents = embedder.encode_rows(batch.documents, "document").fused
    assert queries is not None and documents is not None
    want = info_nce(lambda q, d: queries[q] @ documents[d] / 0.2, batch, pooled=False)
    torch.testing.assert_close(got.total, want, atol=1e-5, rtol=1e-5)
    assert set(got.accuracy) == {"fused"}


def test_terms_add_up_with_their_weights(embedder: Embedder) -> None:
    batch = train_batch(embedder, [SAMPLES])
    weights = {"w_fused": 0.3, "w_groups": 2.0, "w_orth": 0.7, "w_match": 0.4}
    got = joint(embedder, **weights)(batch)
    want = sum(
        weight * got.parts[term]
        for weight, term in zip(
            weights.values(), ("fused", "groups", "orthogonality", "matching"), strict=True
        )
    )
    torch.testing.assert_close(got.total, torch.as_tensor(want))
    assert all(float(part.detach()) > 0 for part in got.parts.values())


def test_orthogonality_reads_what_the_settings_name(embedder: Embedder) -> None:
    batch = train_batch(embedder, [SAMPLES])
    queries = embedder.encode_rows(batch.queries, "query")
    documents = embedder.encode_rows(batch.documents, "document")
    for tokens, space in (("fused", "state"), ("all", "state"), ("fused", "vector")):
        got = joint(embedder, orth_tokens=tokens, orth_space=space, w_match=0)(batch)
        sides = []
        for encoded in (queries, documents):
            values = encoded.states if space == "state" else encoded.vectors
            sides.append(orthogonality(values[:, :3] if tokens == "fused" else values))
        torch.testing.assert_close(got.parts["orthogonality"], torch.cat(sides).mean())


def gradients(model: JointModel) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_matching_alone_trains_everything_it_reads(embedder: Embedder) -> None:
    model = joint(embedder)
    model(train_batch(embedder, [SAMPLES])).parts["matching"].backward()
    reached = {name for name, grad in gradients(model).items() if grad is not None and grad.any()}
    for name in (
        "embedder.banks.query",
        "embedder.banks.document",
        "embedder.fused_projection.weight",
        "embedder.matcher.roles",
        "embedder.matcher.projector.0.weight",
        "embedder.matcher.projector.1.weight",
        "embedder.matcher.projector.3.weight",
    ):
        assert name in reached, name
    for part in ("visual.blocks", "visual.merger", "language_model.layers.0", "embed_tokens"):
        assert any(part in name for name in reached), part
    # no retrieval vector is touched
    assert "embedder.vector_projection.weight" not in reached


SHARED = SAMPLES[0].positives
NO_PAIRS = [replace(text_sample(number), positives=SHARED) for number in (0, 2)]
BATCHES: dict[str, Sequence[Sample]] = {
    "pictures": SAMPLES,
    "texts": [SAMPLES[0], SAMPLES[2]],
    "no pair to match": NO_PAIRS,
    "nothing valid": [BAD, BAD],
}


@pytest.mark.parametrize("rows", list(BATCHES))
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hard_negatives": "pooled", "margin": 0.1, "learn_temperatures": True},
        {"preset": "rematch"},
        {"preset": "metaembed", "w_match": 0},
        {"w_groups": 0, "w_orth": 0, "w_match": 0},
        {"w_groups": 0, "orth_space": "vector"},
    ],
    ids=str,
)
def test_every_trained_weight_gets_a_gradient_whatever_a_rank_holds(
    tiny_base: Path, embedder: Embedder, changes: dict[str, Any], rows: str
) -> None:
    """Other ranks wait for the gradient of every trained weight: none may be left out."""
    settings = objective(**changes)
    if not settings.w_fused:
        embedder = new_embedder(tiny_base, has_fused=False)
    model = JointModel(embedder, settings).train()
    loss = model(train_batch(embedder, [BATCHES[rows]]))
    loss.total.backward()
    assert math.isfinite(loss.total.item())
    missing = [name for name, grad in gradients(model).items() if grad is None]
    assert missing == []
    assert all(grad.isfinite().all() for grad in gradients(model).values() if grad is not None)


def test_weights_that_no_term_reads_are_not_trained(embedder: Embedder) -> None:
    single = joint(copy.deepcopy(embedder), w_groups=0, w_orth=0, w_match=0)
    assert not single.embedder.vector_projection.weight.requires_grad
    assert single.embedder.matcher is not None
    assert not any(p.requires_grad for p in single.embedder.matcher.parameters())
    assert not single.log_temperatures.requires_grad
    whole = joint(embedder, learn_temperatures=True)
    assert all(p.requires_grad for p in whole.parameters())


def test_a_sample_that_failed_changes_neither_loss_nor_gradient(embedder: Embedder) -> None:
    other = copy.deepcopy(embedder)
    clean, dirty = joint(embedder), joint(other)
    first = clean(train_batch(embedder, [[SAMPLES[0], SAMPLES[1], SAMPLES[2]]]))
    second = dirty(train_batch(other, [[SAMPLES[0], BAD, SAMPLES[1], SAMPLES[2]]]))
    torch.testing.assert_close(first.total, second.total, atol=1e-5, rtol=1e-5)
    for name, part in first.parts.items():
        torch.testing.assert_close(part, second.parts[name], atol=1e-5, rtol=1e-5, msg=name)
    first.total.backward()
    second.total.backward()
    for name, grad in gradients(clean).items():
        torch.testing.assert_close(grad, gradients(dirty)[name], atol=1e-4, rtol=1e-4, msg=name)


def test_a_private_hard_negative_is_seen_by_its_own_query_alone(embedder: Embedder) -> None:
    rows = [text_sample(0, negatives=2), text_sample(1)]
    bare = [text_sample(0), text_sample(1)]
    changes: dict[str, Any] = {"w_groups": 0, "w_orth": 0, "w_match": 0}

    def of_query(samples: list[Sample], row: int, mode: str) -> float:
        batch = train_batch(embedder, [samples])
        only = torch.zeros(2, dtype=torch.bool)
        only[row] = True
        model = joint(copy.deepcopy(embedder), hard_negatives=mode, **changes)
        return float(model(replace(batch, valid=only)).total.detach())

    # the second query's loss knows nothing of the first one's negatives, unless they are pooled;
    # the row that is not valid lends no positive, hence the comparison with itself
    assert of_query(rows, 1, "private") == pytest.approx(of_query(bare, 1, "private"), abs=1e-5)
    assert of_query(rows, 1, "pooled") > of_query(bare, 1, "private") + 1e-3
    assert of_query(rows, 0, "private") > of_query(bare, 0, "private") + 1e-3


def test_the_margin_is_one_mask_for_every_term(embedder: Embedder) -> None:
    """What it drops from the fused term it drops from every budget, whatever the budget says."""
    batch = train_batch(embedder, [[text_sample(number) for number in range(4)]])
    with torch.no_grad():
        queries = embedder.encode_rows(batch.queries, "query").fused
        documents = embedder.encode_rows(batch.documents, "document").fused
    assert queries is not None and documents is not None
    cosine = queries @ documents.T
    gap = cosine.diagonal()[:, None] - cosine
    # a margin that drops some candidates and keeps others
    margin = float(gap[~torch.eye(4, dtype=torch.bool)].median())
    kept = (gap > margin) | torch.eye(4, dtype=torch.bool)
    assert 4 < kept.sum() < 16
    model = joint(embedder, margin=margin, w_match=0)
    contrast = contrast_of(model, batch)
    assert torch.equal(contrast.mask, kept)
    loss = model(batch)
    logits = (cosine / 0.2).masked_fill(~kept, -torch.inf)
    want = torch.nn.functional.cross_entropy(logits, torch.arange(4))
    torch.testing.assert_close(loss.parts["fused"].detach(), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["private", "pooled"])
def test_the_margin_spares_the_rows_own_hard_negatives(embedder: Embedder, mode: str) -> None:
    batch = train_batch(embedder, [[text_sample(0, negatives=1), text_sample(1, negatives=1)]])
    model = joint(embedder, margin=5.0, hard_negatives=mode, w_match=0)
    contrast = contrast_of(model, batch)
    own = [[True], [True]] if mode == "private" else [[True, False], [False, True]]
    want = torch.cat([torch.eye(2, dtype=torch.bool), torch.tensor(own)], dim=1)
    assert torch.equal(contrast.mask, want)


@pytest.mark.parametrize("mode", ["private", "pooled"])
def test_the_margin_may_drop_what_a_miner_found(embedder: Embedder, mode: str) -> None:
    batch = train_batch(embedder, [[text_sample(0, negatives=1), text_sample(1, negatives=1)]])
    batch = replace(batch, negative_mined=torch.tensor([[True], [False]]))
    model = joint(embedder, margin=5.0, hard_negatives=mode, w_match=0)
    own = [[False], [True]] if mode == "private" else [[False, False], [False, True]]
    want = torch.cat([torch.eye(2, dtype=torch.bool), torch.tensor(own)], dim=1)
    assert torch.equal(contrast_of(model, batch).mask, want)
    # nor is it ever a pair of the matching stage, whose draw obeys the same margin
    cosine = torch.zeros(batch.num_queries, batch.num_documents)
    for share in (0.0, 0.5, 1.0):
        drawn = draw_pairs(batch, cosine, joint(embedder, margin=5.0, match_mined=share).settings)
        assert drawn.query_rows.tolist() == [1]


def test_two_files_of_one_picture_are_one_document(embedder: Embedder) -> None:
    """Neither is a negative of the other's query, and a listed one stands for both."""

    def picture_of(number: int, format: str) -> Sample:
        buffer = io.BytesIO()
        picture("red").save(buffer, format)
        item = Item.of(buffer.getvalue(), id=f"d{number}")
        return replace(text_sample(number), positives=(Positive(item),))

    samples = [picture_of(0, "PNG"), picture_of(1, "BMP"), text_sample(2)]
    batch = train_batch(embedder, [samples])
    same = equal_documents(batch)
    first, second, third = same.document_ids[same.positive_slot].tolist()
    assert first == second != third
    assert (same.listed_ids[:, 0] == same.document_ids[same.positive_slot]).all()
    model = joint(embedder, w_match=0)
    assert contrast_of(model, batch).mask.all()
    want = torch.tensor([[True, False, True], [False, True, True], [True, False, True]])
    assert torch.equal(contrast_of(model, same).mask, want)
    torch.testing.assert_close(model(batch).total, model(same).total)


def test_fixed_temperatures_are_used_as_given(embedder: Embedder) -> None:
    model = joint(embedder, temperature_fused=0.5, temperature_maxsim=0.005)
    fused, maxsim = model.temperatures()
    assert (float(fused), float(maxsim)) == pytest.approx((0.5, 0.005))


@pytest.mark.parametrize("temperatures", [(0.1, 0.1), (0.01, 0.2), (0.2, 0.01)])
def test_learned_temperatures_train_inside_their_range_and_at_its_bounds(
    embedder: Embedder, temperatures: tuple[float, float]
) -> None:
    fused, maxsim = temperatures
    model = joint(
        embedder, learn_temperatures=True, temperature_fused=fused, temperature_maxsim=maxsim
    )
    model(train_batch(embedder, [SAMPLES])).total.backward()
    assert model.log_temperatures.grad is not None
    assert (model.log_temperatures.grad != 0).all()


def test_a_repeated_document_is_no_negative_of_its_own_query(embedder: Embedder) -> None:
    """Two queries with one positive, and a query that lists another's positive as right."""
    twin = replace(text_sample(7), positives=SAMPLES[0].positives)
    batch = train_batch(embedder, [[SAMPLES[0], twin]])
    got = joint(embedder, w_match=0, w_orth=0)(batch)
    assert float(got.total.detach()) == pytest.approx(0, abs=1e-6)
    assert float(got.accuracy["fused"]) == 1


def test_the_gradient_of_each_budget_at_the_vectors_is_measured_only_when_asked(
    embedder: Embedder,
) -> None:
    batch = train_batch(embedder, [[text_sample(number) for number in range(4)]])
    model = joint(embedder, w_match=0.0)
    plain = model(batch)
    assert not plain.vector_gradients
    model.probe_vectors = True
    probed = model(batch)
    assert list(probed.vector_gradients) == embedder.ladder.texts()
    assert all(float(value) > 0 for value in probed.vector_gradients.values())
    plain.total.backward()
    expected = gradients(model)
    model.zero_grad()
    probed.total.backward()
    for name, gradient in gradients(model).items():
        wanted = expected[name]
        assert (gradient is None) == (wanted is None)
        assert gradient is None or wanted is None or torch.equal(gradient, wanted)
