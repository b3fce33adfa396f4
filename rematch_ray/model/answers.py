"""The generative matching stage over triplets: all eight Yes/No views at once, in two forms.

`packed_answers` reads the raw items a second time, in one forward over
`[P][S_q][S_d1][S_d2]` and the tail; it is the reference. `shared_answers` forwards the tail alone,
which attends to the keys and values that the embedding pass already computed: no raw token is read
twice, and gradients flow through them. Same positions, same mask, same answers to rounding.
Draws no negatives and computes no loss. Middle floor.

Source: ReMatch (arXiv 2511.19278), matching stage; the strict segment mask, the parallel positions
and the shared keys and values are ours (the paper gives none of them).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rematch_ray.data.prompts import PromptTokens
from rematch_ray.model.backbone import Backbone
from rematch_ray.model.deep_features import DeepFeatures, join_features
from rematch_ray.model.keys_values import KeysValues, KeyValueReader
from rematch_ray.model.matcher import Matcher
from rematch_ray.model.matching_tail import build_tail, raw_segments, reads, segment_mask
from rematch_ray.model.raw_rows import RawRows


def packed_answers(
    backbone: Backbone,
    matcher: Matcher,
    prompt: PromptTokens,
    query: RawRows,
    first: RawRows,
    second: RawRows,
) -> Tensor:
    """Answers all eight views of m triplets in one forward that reads the raw items again.

    Args:
        backbone: the MLLM that also made the rows.
        matcher: projector and roles.
        prompt: the template's tokens.
        query: m query rows, with `inputs_embeds`.
        first: m document rows in slot 1.
        second: m document rows in slot 2.

    Returns:
        (m, 8, V) logits at the position that predicts the answer, views as in `losses.matching`.
    """
    tail = build_tail(backbone, matcher, prompt, query, first, second)
    raw = raw_segments(query, first, second)
    parts: list[tuple[DeepFeatures | None, Tensor]] = []
    for rows, start, stop, _ in raw:
        assert rows.inputs_embeds is not None
        deep = rows.deep and rows.deep.columns(start, stop)
        parts.append((deep, rows.inputs_embeds[:, start:stop]))
    parts.append((None, tail.embeds))
    positions = [rows.position_ids[:, :, start:stop] for rows, start, stop, _ in raw]
    segment = torch.cat([*(segment for *_, segment in raw), tail.segment], dim=1)
    hidden = backbone.decode(
        torch.cat([embeds for _, embeds in parts], dim=1),
        torch.cat([*positions, tail.position_ids], dim=2),
        segment_mask(segment, reads(segment.device)),
        deep=join_features(parts, dim=1),
    )
    return _answer_logits(backbone, prompt, hidden)


def shared_answers(
    backbone: Backbone,
    matcher: Matcher,
    prompt: PromptTokens,
    query: RawRows,
    first: RawRows,
    second: RawRows,
) -> Tensor:
    """As `packed_answers`, from the keys and values that the embedding pass recorded.

    Raises:
        RuntimeError: the rows carry no keys and values, or some that no gradient flows through
            though the vectors have one. Answers would be right and gradients silently wrong, as
            under reentrant checkpointing.
    """
    parts, segments = [], []
    for rows, start, stop, segment in raw_segments(query, first, second):
        parts.append(_recorded(rows).columns(start, stop))
        segments.append(segment)
    tail = build_tail(backbone, matcher, prompt, query, first, second)
    segment = torch.cat([*segments, tail.segment], dim=1)
    hidden = backbone.decode(
        tail.embeds,
        tail.position_ids,
        segment_mask(segment, reads(segment.device), last=tail.segment.shape[1]),
        cache=KeyValueReader(parts),
    )
    return _answer_logits(backbone, prompt, hidden)


def _recorded(rows: RawRows) -> KeysValues:
    if rows.keys_values is None:
        raise RuntimeError(
            "the embedding pass recorded no keys and values: encode with record=True"
        )
    if torch.is_grad_enabled() and rows.fused.requires_grad and not rows.keys_values.has_gradient:
        raise RuntimeError(
            "the recorded keys and values are detached from the embedding pass, so the matching "
            "stage could not train it: record with gradients on and checkpoint layers with "
            "use_reentrant=False"
        )
    return rows.keys_values


def _answer_logits(backbone: Backbone, prompt: PromptTokens, hidden: Tensor) -> Tensor:
    """(m, 8, V) logits at the last token of each answer block, which end the row."""
    length = len(prompt.answer)
    return backbone.logits(hidden[:, -8 * length :][:, length - 1 :: length])
