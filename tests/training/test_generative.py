"""Captions and questions: what is labelled, what is asked, and that no question sees another."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rematch_ray.data.collate import CONTENT, END
from rematch_ray.data.rows import RowEncoder
from rematch_ray.data.schema import Item
from rematch_ray.model.backbone import Backbone
from rematch_ray.training import generative
from rematch_ray.training.generative import GenerativeBatch, Picture, build_batch, generative_loss
from tests.tiny import COLOURS, png


@pytest.fixture(scope="module")
def backbone(tiny_base: Path) -> Backbone:
    return Backbone.load(tiny_base).eval()


@pytest.fixture(scope="module")
def pictures(tiny_encoder: RowEncoder) -> list[Picture]:
    """Coloured squares of two sizes, each with two names and one lie."""
    return [
        Picture(
            row=tiny_encoder.encode(
                Item.of(png(colour, 32, 32 + 16 * (n % 2)), id=colour), "document"
            ),
            source="squares",
            captions=(f"a {colour} square",),
            truths=(f"a {colour} square", f"this is {colour}"),
            lies=(f"no {colour} here",) if n % 2 else (),
        )
        for n, colour in enumerate(COLOURS[:4])
    ]


def made(pictures: list[Picture], encoder: RowEncoder, *, seed: int = 0) -> GenerativeBatch:
    return build_batch(pictures, pictures, encoder, random.Random(seed), num_questions=3)


def test_labels_are_exactly_the_text_and_its_end(
    pictures: list[Picture], tiny_encoder: RowEncoder
) -> None:
    batch = made(pictures, tiny_encoder)
    prompt = tiny_encoder.prompt
    for picture, ids, mask, segment, row in zip(
        pictures,
        batch.captioned.batch.input_ids,
        batch.captioned.label_mask,
        batch.captioned.batch.segment,
        range(len(pictures)),
        strict=True,
    ):
        want = [*prompt.user_text(picture.captions[0]), prompt.end[0]]
        assert ids[mask].tolist() == want, row
        first = int(mask.nonzero()[0])
        assert ids[first - len(prompt.end) : first].tolist() == prompt.end
        assert (segment[mask] == END).all()
        # what is written stands right behind the frame in which the picture will be embedded
        positions = batch.captioned.batch.position_ids[:, row, mask]
        start = int(picture.row.positions.max()) + 1
        assert positions.tolist() == [list(range(start, start + len(want)))] * 3


def test_paraphrases_lead_from_a_truth_to_the_caption(
    pictures: list[Picture], tiny_encoder: RowEncoder
) -> None:
    batch = made(pictures, tiny_encoder)
    prompt = tiny_encoder.prompt
    for index, picture in enumerate(pictures):
        mask = batch.paraphrased.label_mask[index]
        ids = batch.paraphrased.batch.input_ids[index]
        assert ids[mask].tolist() == [*prompt.user_text(picture.captions[0]), prompt.end[0]]
        content = ids[batch.paraphrased.batch.segment[index] == CONTENT].tolist()
        marker = prompt.text(prompt.template.query_marker)
        assert content in [marker + prompt.user_text(truth) for truth in picture.truths]


def test_the_caption_loss_is_that_of_the_written_tokens_alone(
    backbone: Backbone, pictures: list[Picture], tiny_encoder: RowEncoder
) -> None:
    batch = made(pictures, tiny_encoder)
    rows = batch.captioned.batch
    with torch.no_grad():
        loss = generative_loss(backbone, tiny_encoder, batch)
        embeds, deep = backbone.embed(rows.input_ids, rows.pixel_values, rows.image_grid_thw)
        hidden = backbone.decode(embeds, rows.position_ids, deep=deep)
        log_p = backbone.logits(hidden).log_softmax(dim=-1)
    terms, exact = [], []
    for index in range(len(pictures)):
        columns = batch.captioned.label_mask[index].nonzero()[:, 0].tolist()
        labels = rows.input_ids[index]
        terms += [-log_p[index, column - 1, labels[column]] for column in columns]
        exact.append(all(log_p[index, c - 1].argmax() == labels[c] for c in columns))
    torch.testing.assert_close(loss.caption, torch.stack(terms).mean(), atol=1e-5, rtol=1e-5)
    assert float(loss.caption_exact) == pytest.approx(sum(exact) / len(exact))


def answers(backbone: Backbone, encoder: RowEncoder, batch: GenerativeBatch) -> Tensor:
    rows = batch.captioned.batch
    with torch.no_grad():
        embeds, deep = backbone.embed(rows.input_ids, rows.pixel_values, rows.image_grid_thw)
        return generative._answers(backbone, encoder, batch, embeds, deep)


def test_no_question_sees_another(
    backbone: Backbone, pictures: list[Picture], tiny_encoder: RowEncoder
) -> None:
    batch = made(pictures, tiny_encoder)
    before = answers(backbone, tiny_encoder, batch)
    other = made(pictures, tiny_encoder, seed=9).asked[0]
    assert not torch.equal(other.input_ids, batch.asked[0].input_ids)
    after = answers(backbone, tiny_encoder, replace(batch, asked=(other, *batch.asked[1:])))
    difference = (after - before).abs().amax(dim=-1)
    assert difference[:, 0].max() > 1e-3
    assert difference[:, 1:].max() < 1e-4


def test_a_question_is_answered_alike_alone(
    backbone: Backbone, pictures: list[Picture], tiny_encoder: RowEncoder
) -> None:
    batch = made(pictures, tiny_encoder)
    together = answers(backbone, tiny_encoder, batch)
    assert together.shape[:2] == (4, 3)
    for number, asked in enumerate(batch.asked):
        alone = answers(backbone, tiny_encoder, replace(batch, asked=(asked,)))
        torch.testing.assert_close(alone[:, 0], together[:, number], atol=1e-4, rtol=1e-4)


def test_an_answer_sees_neither_the_caption_nor_other_pictures(
    backbone: Backbone, pictures: list[Picture], tiny_encoder: RowEncoder
) -> None:
    batch = made(pictures, tiny_encoder)
    before = answers(backbone, tiny_encoder, batch)
    ids = batch.captioned.batch.input_ids.clone()
    ids[batch.captioned.label_mask] = tiny_encoder.prompt.yes
    rewritten = replace(batch.captioned, batch=replace(batch.captioned.batch, input_ids=ids))
    after = answers(backbone, tiny_encoder, replace(batch, captioned=rewritten))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_the_question_loss_is_the_cross_entropy_of_yes_and_no(
    backbone: Backbone, pictures: list[Picture], tiny_encoder: RowEncoder
) -> None:
    batch = made(pictures, tiny_encoder)
    logits = answers(backbone, tiny_encoder, batch)
    prompt = tiny_encoder.prompt
    labels = torch.where(batch.truths, prompt.yes, prompt.no)
    with torch.no_grad():
        loss = generative_loss(backbone, tiny_encoder, batch, question_weight=0.3)
    want = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(loss.question, want, atol=1e-5, rtol=1e-5)
    total = loss.caption + 0.5 * loss.paraphrase + 0.3 * loss.question
    torch.testing.assert_close(loss.total, total)


def test_truths_deserve_yes_and_everything_else_no(
    pictures: list[Picture], tiny_encoder: RowEncoder
) -> None:
    prompt, yes = tiny_encoder.prompt, []
    marker = prompt.text(prompt.template.query_marker)
    hard = 0
    for seed in range(30):
        batch = made(pictures, tiny_encoder, seed=seed)
        for index, picture in enumerate(pictures):
            truths = [marker + prompt.user_text(text) for text in picture.truths]
            lies = [marker + prompt.user_text(text) for text in picture.lies]
            for number, asked in enumerate(batch.asked):
                said = asked.input_ids[index, asked.segment[index] == CONTENT].tolist()
                assert (said in truths) == bool(batch.truths[index, number])
                hard += said in lies
                yes.append(bool(batch.truths[index, number]))
    assert 0.42 < sum(yes) / len(yes) < 0.58
    # two pictures of four have a hard lie, told two times in three
    assert 0.2 < hard / (len(yes) - sum(yes)) < 0.5


def test_draws_follow_the_seed(pictures: list[Picture], tiny_encoder: RowEncoder) -> None:
    first, same, other = (made(pictures, tiny_encoder, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.truths, same.truths)
    for ours, theirs in zip(first.asked, same.asked, strict=True):
        assert torch.equal(ours.input_ids, theirs.input_ids)
    asked = [batch.asked[0].input_ids.tolist() for batch in (first, other)]
    assert asked[0] != asked[1] or not torch.equal(first.truths, other.truths)


def test_a_pool_without_any_lie_is_refused(
    pictures: list[Picture], tiny_encoder: RowEncoder
) -> None:
    alone = pictures[:1]
    with pytest.raises(ValueError, match="larger pool"):
        # ten questions: some deserve No
        build_batch(alone, alone, tiny_encoder, random.Random(0), num_questions=10)


def test_every_weight_learns_from_one_batch(
    tiny_base: Path, pictures: list[Picture], tiny_encoder: RowEncoder
) -> None:
    backbone = Backbone.load(tiny_base).train()
    generative_loss(backbone, tiny_encoder, made(pictures, tiny_encoder)).total.backward()
    still = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    # a key's bias shifts all its scores alike and cancels in the softmax, up to rounding
    assert [name for name in still if not name.endswith(("k_proj.bias", "qkv.bias"))] == []
