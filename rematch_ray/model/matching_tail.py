"""The layout of the matching stage: its segments, who reads whom, and the tail of tokens.

`[I][Zq][Zd1][Zd2][A1..A8]`: the instruction, one token per embedding, eight answer blocks. Both
forms of the stage and search over an index share it. Runs no model. Middle floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rematch_ray.data.collate import CONTENT, HEADER, PAD
from rematch_ray.data.prompts import PromptTokens
from rematch_ray.losses.matching import VIEWS
from rematch_ray.model.backbone import Backbone
from rematch_ray.model.raw_rows import RawRows

if TYPE_CHECKING:
    from rematch_ray.model.matcher import Matcher

# Segments of a triplet's row, then one answer segment per view.
S_P, S_Q, S_D1, S_D2, S_I, S_ZQ, S_ZD1, S_ZD2, S_A = range(9)
_DOCUMENTS = ((S_D1, S_ZD1), (S_D2, S_ZD2))


@dataclass(frozen=True)
class Tail:
    """`[I][Zq][Zd1][Zd2][A1..A8]` of m triplets.

    Attributes:
        embeds: (m, n, H).
        position_ids: (3, m, n).
        segment: (m, n).
    """

    embeds: Tensor
    position_ids: Tensor
    segment: Tensor


def segment_mask(segment: Tensor, reads: Tensor, *, last: int | None = None) -> Tensor:
    """Who may attend to whom, from segment ids alone.

    Args:
        segment: (m, L) segment of every column, `PAD` (-1) for padding.
        reads: (S, S) bool, True = the row's segment reads the column's.
        last: only the last so many rows; None = all L.

    Returns:
        (m, 1, last, L) bool: causal, by the table, and every column sees itself (so that no padding
        row is empty).
    """
    length = segment.shape[1]
    first = 0 if last is None else length - last
    causal = torch.ones(length, length, dtype=torch.bool, device=segment.device).tril()[first:]
    index = segment.long().clamp(min=0)
    allowed = reads[index[:, first:, None], index[:, None, :]]
    real = segment != PAD
    allowed = allowed & real[:, first:, None] & real[:, None, :] & causal
    itself = torch.eye(length, dtype=torch.bool, device=segment.device)[first:]
    return (allowed | itself)[:, None]


def reads(device: torch.device) -> Tensor:
    """The table of the stage: content reads P and itself, A_k also I and its two views."""
    table = torch.eye(S_A + len(VIEWS), dtype=torch.bool, device=device)
    table[:, S_P] = True
    for view, (query_view, slot, document_view) in enumerate(VIEWS):
        seen = [S_I, (S_Q, S_ZQ)[query_view], _DOCUMENTS[slot][document_view]]
        table[S_A + view, seen] = True
    return table


def raw_segments(
    query: RawRows, first: RawRows, second: RawRows
) -> list[tuple[RawRows, int, int, Tensor]]:
    """The columns of P and the raw items that the stage reads, per item of the triplet.

    Every row starts with its own copy of P; the query's serves all three, the others are cut off.

    Returns:
        (rows, start column, stop column, (m, stop - start) segments) of query and documents.
    """
    parts = []
    for rows, name in ((query, S_Q), (first, S_D1), (second, S_D2)):
        start = 0 if name == S_Q else int((rows.segment[0] == HEADER).sum())
        stop = rows.content_width
        kept = rows.segment[:, start:stop].long()
        segment = torch.full_like(kept, PAD)
        segment[kept == HEADER] = S_P
        segment[kept == CONTENT] = name
        parts.append((rows, start, stop, segment))
    return parts


def build_tail(
    backbone: Backbone,
    matcher: Matcher,
    prompt: PromptTokens,
    query: RawRows,
    first: RawRows,
    second: RawRows,
) -> Tail:
    """The tail of m triplets, every token at the position that its views give it."""
    num_rows, device = len(query), query.fused.device
    start = len(prompt.header) + prompt.template.match_gap
    instruction = embed_tokens(backbone, prompt.match_instruction, num_rows)
    answer = embed_tokens(backbone, prompt.answer, num_rows)
    z_tokens = [
        matcher.z(rows.fused, role=role)[:, None].to(instruction.dtype)
        for rows, role in ((query, 0), (first, 1), (second, 1))
    ]
    z_end = torch.full((num_rows,), start + 1, device=device)
    query_end = (query.content_end, z_end)
    document_end = ((first.content_end, z_end), (second.content_end, z_end))
    steps = torch.arange(len(prompt.answer), device=device)
    answer_positions = [
        torch.maximum(query_end[query_view], document_end[slot][document_view])[:, None] + steps
        for query_view, slot, document_view in VIEWS
    ]
    fixed = torch.arange(len(prompt.match_instruction), device=device) + len(prompt.header)
    fixed = torch.cat([fixed, z_end.new_full((3,), start)])
    positions = torch.cat([fixed.expand(num_rows, -1), *answer_positions], dim=1)
    names = [S_I] * len(prompt.match_instruction) + [S_ZQ, S_ZD1, S_ZD2]
    for view in range(len(VIEWS)):
        names += [S_A + view] * len(prompt.answer)
    return Tail(
        torch.cat([instruction, *z_tokens, *[answer] * len(VIEWS)], dim=1),
        positions.expand(3, -1, -1),
        torch.tensor(names, device=device).expand(num_rows, -1),
    )


def embed_tokens(backbone: Backbone, ids: list[int], num_rows: int) -> Tensor:
    """Word embeddings of fixed tokens for every row, (num_rows, len(ids), H)."""
    table = backbone.word_embeddings
    tokens = torch.tensor(ids, device=table.weight.device)
    return table(tokens)[None].expand(num_rows, -1, -1)
