"""Generative pretraining: captions, paraphrases and Yes/No questions about pictures.

What the tiny base learns before any retrieval. A picture is captioned in the same `[P][S][E]` frame
in which it will later be embedded, and a question is asked in the matching stage's layout: picture
and caption stand apart, the answer block reads both. Knows no corpus and no files. Middle floor.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rematch_ray.data.collate import CONTENT, HEADER, PAD, Batch, collate
from rematch_ray.data.rows import EncodedRow, RowEncoder
from rematch_ray.data.schema import Item
from rematch_ray.model.backbone import Backbone
from rematch_ray.model.deep_features import DeepFeatures, join_features
from rematch_ray.model.matching_tail import segment_mask

_P, _PICTURE, _I, _FIRST = 0, 1, 2, 3  # then one text and one answer segment per question
_TRIES = 1000


@dataclass(frozen=True)
class Picture:
    """One training picture and what may be said of it.

    Attributes:
        row: the picture encoded on the document side.
        source: corpus; one batch holds one corpus.
        captions: texts to generate from it, the first one preferred for evaluation.
        truths: statements that deserve Yes.
        lies: hard statements that deserve No (swaps, siblings).
    """

    row: EncodedRow
    source: str
    captions: tuple[str, ...]
    truths: tuple[str, ...]
    lies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Written:
    """Rows with a text to generate behind them; label_mask (B, T) bool marks its columns."""

    batch: Batch
    label_mask: Tensor


@dataclass(frozen=True)
class GenerativeBatch:
    """One step's rows.

    Attributes:
        captioned: picture rows `[P][S][E]` + caption + end token.
        paraphrased: text rows `[P][S][E]` + the caption they mean + end token.
        asked: one Batch of text rows per question, a row per picture.
        truths: (pictures, questions) bool, the right answers.
    """

    captioned: Written
    paraphrased: Written
    asked: tuple[Batch, ...]
    truths: Tensor


@dataclass(frozen=True)
class GenerativeLoss:
    """Scalars with gradient, and counts of right answers without."""

    total: Tensor
    caption: Tensor
    paraphrase: Tensor
    question: Tensor
    caption_exact: Tensor
    question_right: Tensor


def build_batch(
    pictures: Sequence[Picture],
    pool: Sequence[Picture],
    encoder: RowEncoder,
    draw: random.Random,
    *,
    num_questions: int = 4,
    fixed: bool = False,
) -> GenerativeBatch:
    """Draws captions, paraphrases and questions for some pictures.

    Args:
        pictures: of one step.
        pool: pictures of the same corpus, where random lies come from.
        encoder: the model's row encoder.
        draw: seeded source of every choice.
        num_questions: per picture; half of them, on average, deserve Yes.
        fixed: evaluate: the first caption, no paraphrases of images.

    Returns:
        GenerativeBatch.
    """
    captions, said = [], []
    for picture in pictures:
        captions.append(picture.captions[0] if fixed else draw.choice(picture.captions))
        said.append(encoder.encode(Item.of(draw.choice(picture.truths), id="text"), "query"))
    asked, truths = [], []
    for _ in range(num_questions):
        rows, answers = [], []
        for picture in pictures:
            truth = draw.random() < 0.5
            text = draw.choice(picture.truths) if truth else _lie(picture, pool, draw)
            rows.append(encoder.encode(Item.of(text, id="text"), "query"))
            answers.append(truth)
        asked.append(collate(rows, num_meta=0, pad_id=encoder.prompt.pad))
        truths.append(answers)
    return GenerativeBatch(
        captioned=_written([picture.row for picture in pictures], captions, encoder),
        paraphrased=_written(said, [picture.captions[0] for picture in pictures], encoder),
        asked=tuple(asked),
        truths=torch.tensor(truths).T,
    )


def generative_loss(
    backbone: Backbone, encoder: RowEncoder, batch: GenerativeBatch, *, question_weight: float = 1.0
) -> GenerativeLoss:
    """Next-token loss of the written texts plus the cross-entropy of the Yes/No answers.

    Args:
        backbone: the model.
        encoder: for the template's tokens.
        batch: as `build_batch` made it.
        question_weight: weight of the Yes/No part.
    """
    captioned, paraphrased = batch.captioned.batch, batch.paraphrased.batch
    embeds, deep = backbone.embed(
        captioned.input_ids, captioned.pixel_values, captioned.image_grid_thw
    )
    caption, exact = _next_token(backbone, batch.captioned, embeds, deep)
    texts, _ = backbone.embed(paraphrased.input_ids, None, None)
    paraphrase, _ = _next_token(backbone, batch.paraphrased, texts)
    answers = _answers(backbone, encoder, batch, embeds, deep)
    yes, no = encoder.prompt.yes, encoder.prompt.no
    targets = torch.where(batch.truths, yes, no)
    question = F.cross_entropy(answers.flatten(0, 1).float(), targets.flatten())
    right = (answers[..., yes] > answers[..., no]) == batch.truths
    return GenerativeLoss(
        total=caption + 0.5 * paraphrase + question_weight * question,
        caption=caption,
        paraphrase=paraphrase,
        question=question,
        caption_exact=exact,
        question_right=right.float().mean(),
    )


def _next_token(
    backbone: Backbone, written: Written, embeds: Tensor, deep: DeepFeatures | None = None
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the written tokens, and the share of rows with every token right."""
    hidden = backbone.decode(embeds, written.batch.position_ids, deep=deep)
    rows, columns = written.label_mask.nonzero(as_tuple=True)
    logits = backbone.logits(hidden[rows, columns - 1]).float()
    labels = written.batch.input_ids[rows, columns]
    wrong = logits.detach().argmax(dim=-1) != labels
    exact = torch.ones(len(written.batch), device=rows.device).index_fill(0, rows[wrong], 0.0)
    return F.cross_entropy(logits, labels), exact.mean()


def _answers(
    backbone: Backbone,
    encoder: RowEncoder,
    batch: GenerativeBatch,
    embeds: Tensor,
    deep: DeepFeatures | None,
) -> Tensor:
    """(m, questions, V) logits: all questions about a picture in one forward, apart."""
    pictures, prompt, device = batch.captioned.batch, encoder.prompt, embeds.device
    num_pictures = len(pictures)
    parts: list[tuple[DeepFeatures | None, Tensor]] = []
    positions, segments, ends = [], [], []

    def add(
        part: Tensor, place: Tensor, segment: Tensor, features: DeepFeatures | None = None
    ) -> None:
        parts.append((features, part))
        positions.append(place.expand(3, num_pictures, -1))
        segments.append(segment.expand(num_pictures, -1))

    def add_content(
        rows: Batch,
        row_embeds: Tensor,
        name: int,
        start: int,
        features: DeepFeatures | None = None,
    ) -> None:
        stop = int((rows.segment == CONTENT).long().cumsum(dim=1).argmax(dim=1).max()) + 1
        part = slice(start, stop)
        segment = _named(rows.segment[:, part], name)
        cut = features and features.columns(start, stop)
        add(row_embeds[:, part], rows.position_ids[:, :, part], segment, cut)

    add_content(pictures, embeds, _PICTURE, 0, deep)
    for number, texts in enumerate(batch.asked):
        text_embeds, _ = backbone.embed(texts.input_ids, None, None)
        add_content(texts, text_embeds, _FIRST + 2 * number, len(prompt.header))
        ends.append(torch.maximum(_content_end(pictures), _content_end(texts)))
    fixed = torch.tensor(prompt.match_instruction, device=device)
    instruction = backbone.word_embeddings(fixed).expand(num_pictures, -1, -1)
    places = torch.arange(len(fixed), device=device)
    add(instruction, places + len(prompt.header), torch.full_like(places, _I))
    answer = torch.tensor(prompt.answer, device=device)
    answer_embeds = backbone.word_embeddings(answer).expand(num_pictures, -1, -1)
    places = torch.arange(len(answer), device=device)
    for number, end in enumerate(ends):
        add(answer_embeds, end[:, None] + places, torch.full_like(places, _FIRST + 2 * number + 1))

    mask = segment_mask(torch.cat(segments, dim=1), _table(len(batch.asked), device))
    hidden = backbone.decode(
        torch.cat([part for _, part in parts], dim=1),
        torch.cat(positions, dim=2),
        mask,
        deep=join_features(parts, dim=1),
    )
    stop = len(answer) * len(batch.asked)
    return backbone.logits(hidden[:, -stop:][:, len(answer) - 1 :: len(answer)])


def _table(num_questions: int, device: torch.device) -> Tensor:
    table = torch.eye(_FIRST + 2 * num_questions, dtype=torch.bool, device=device)
    table[:, _P] = True
    for number in range(num_questions):
        text = _FIRST + 2 * number
        table[text + 1, [_PICTURE, _I, text]] = True
    return table


def _named(segment: Tensor, name: int) -> Tensor:
    named = torch.full_like(segment, PAD, dtype=torch.int64)
    named[segment == HEADER] = _P
    named[segment == CONTENT] = name
    return named


def _content_end(batch: Batch) -> Tensor:
    content = batch.segment == CONTENT
    return batch.position_ids.masked_fill(~content, -1).amax(dim=(0, 2)) + 1


def _answered(row: EncodedRow, text: str, encoder: RowEncoder) -> EncodedRow:
    """The row with a text to be generated behind it."""
    ids = np.array([*encoder.prompt.user_text(text), encoder.prompt.end[0]], dtype=np.int32)
    after = int(row.positions.max()) + 1
    places = np.tile(np.arange(after, after + len(ids), dtype=np.int32), (3, 1))
    return replace(
        row,
        input_ids=np.concatenate([row.input_ids, ids]),
        positions=np.concatenate([row.positions, places], axis=1),
    )


def _written(rows: Sequence[EncodedRow], texts: Sequence[str], encoder: RowEncoder) -> Written:
    longer = [_answered(row, text, encoder) for row, text in zip(rows, texts, strict=True)]
    batch = collate(longer, num_meta=0, pad_id=encoder.prompt.pad)
    columns = torch.arange(batch.input_ids.shape[1])
    lengths = torch.tensor([len(row.input_ids) for row in rows])
    return Written(batch, batch.mask & (columns >= lengths[:, None]))


def _lie(picture: Picture, pool: Sequence[Picture], draw: random.Random) -> str:
    """A hard lie when the picture has one (two times in three), else what another picture shows."""
    if picture.lies and draw.random() < 2 / 3:
        return draw.choice(picture.lies)
    for _ in range(_TRIES):
        text = draw.choice(draw.choice(pool).truths)
        if text not in picture.truths:
            return text
    raise ValueError(
        f"nothing that is said of the pool's {len(pool)} pictures is untrue of picture "
        f"{picture.row.id!r}: give a larger pool, or lies of its own"
    )
