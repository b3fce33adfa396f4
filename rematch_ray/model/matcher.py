"""The generative matching stage: the same MLLM answers Yes or No over raw and embedding views.

Holds the projector from a stored fused vector back to the input space. `packed_answers` is the
reference form: one extra forward over `[P][S_q][S_d1][S_d2]` and the tail
`[I][Zq][Zd1][Zd2][A1..A8]` under a segment mask. It draws no negatives and computes no loss.
Middle floor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rematch_ray.data.collate import CONTENT, HEADER, PAD
from rematch_ray.data.prompts import PromptTokens
from rematch_ray.losses.matching import VIEWS, yes_log_odds
from rematch_ray.model.backbone import Backbone

# Segments of the packed row, then one answer segment per view.
S_P, S_Q, S_D1, S_D2, S_I, S_ZQ, S_ZD1, S_ZD2, S_A = range(9)
_DOCUMENTS = ((S_D1, S_ZD1), (S_D2, S_ZD2))


@dataclass(frozen=True)
class RawRows:
    """What the embedding pass leaves for the raw views of one side.

    Attributes:
        inputs_embeds: (B, T, H) with image features in place.
        position_ids: (3, B, T).
        segment: (B, T) int8 as in `Batch`.
        fused: (B, F) stored fused vectors, with gradient in training.
    """

    inputs_embeds: Tensor
    position_ids: Tensor
    segment: Tensor
    fused: Tensor

    def take(self, rows: Tensor) -> RawRows:
        """The named rows, (m,) indices."""
        return RawRows(
            self.inputs_embeds[rows],
            self.position_ids[:, rows],
            self.segment[rows],
            self.fused[rows],
        )


class Matcher(nn.Module):
    """Projector and role vectors that turn a stored fused vector into an input token.

    Z = scale * normalise(MLP(RMSNorm(fused))) + role, with scale the mean norm of the word
    embeddings. Only what an index stores enters Z, so the stage runs over an index.

    Args:
        fused_dim: F.
        hidden_dim: H.
        scale: mean norm of the word embeddings.
    """

    def __init__(self, fused_dim: int, hidden_dim: int, scale: float) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            nn.RMSNorm(fused_dim),
            nn.Linear(fused_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
        )
        self.roles = nn.Parameter(torch.randn(2, hidden_dim) * scale / hidden_dim**0.5)
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(scale))

    def z(self, fused: Tensor, *, role: int) -> Tensor:
        """Input tokens of stored fused vectors, (..., F) -> (..., H); role 0 query, 1 document."""
        return F.normalize(self.projector(fused.float()), dim=-1) * self.scale + self.roles[role]


def packed_answers(
    backbone: Backbone,
    matcher: Matcher,
    prompt: PromptTokens,
    query: RawRows,
    first: RawRows,
    second: RawRows,
) -> Tensor:
    """Answers all eight views of m triplets in one forward.

    Args:
        backbone: the MLLM that also made the rows.
        matcher: projector and roles.
        prompt: the template's tokens.
        query: m query rows.
        first: m document rows in slot 1.
        second: m document rows in slot 2.

    Returns:
        (m, 8, V) logits at the position that predicts the answer, views as in `losses.matching`.

    Source: ReMatch (arXiv 2511.19278), matching stage; the strict segment mask and the parallel
    positions are ours (the paper gives neither).
    """
    embeds, positions, segments = _raw_part(query, first, second)
    tail, tail_positions, tail_segments = _tail(backbone, matcher, prompt, query, first, second)
    inputs = torch.cat([*embeds, tail], dim=1)
    position_ids = torch.cat([*positions, tail_positions], dim=2)
    segment = torch.cat([*segments, tail_segments], dim=1)
    hidden = backbone.decode(inputs, position_ids, segment_mask(segment, _reads(inputs.device)))
    answer_length = len(prompt.answer)
    return backbone.logits(hidden[:, -8 * answer_length :][:, answer_length - 1 :: answer_length])


def embedding_log_odds(
    backbone: Backbone,
    matcher: Matcher,
    prompt: PromptTokens,
    query_bF: Tensor,
    document_bF: Tensor,
) -> Tensor:
    """log p(Yes) - log p(No) of query-document pairs from their stored fused vectors alone.

    The row `[P][I][Zq][Zd][A]` puts every token where the packed form puts it, so the answer is the
    embedding/embedding view of training.

    Args:
        backbone: the MLLM.
        matcher: projector and roles.
        prompt: the template's tokens.
        query_bF: (b, F).
        document_bF: (b, F), one document per query row.

    Returns:
        (b,) float32.
    """
    num_rows, device = query_bF.shape[0], query_bF.device
    header, gap = len(prompt.header), prompt.template.match_gap
    fixed = _embed_tokens(backbone, [*prompt.header, *prompt.match_instruction], num_rows)
    answer = _embed_tokens(backbone, prompt.answer, num_rows)
    z_query = matcher.z(query_bF, role=0)[:, None].to(fixed.dtype)
    z_document = matcher.z(document_bF, role=1)[:, None].to(fixed.dtype)
    inputs = torch.cat([fixed, z_query, z_document, answer], dim=1)
    start = header + gap
    row_positions = [*range(fixed.shape[1]), start, start]
    row_positions += range(start + 1, start + 1 + len(prompt.answer))
    row_segments = [S_P] * header + [S_I] * len(prompt.match_instruction) + [S_ZQ, S_ZD1]
    row_segments += [S_A + VIEWS.index((1, 0, 1))] * len(prompt.answer)
    position_ids = torch.tensor(row_positions, device=device).expand(3, num_rows, -1)
    segment = torch.tensor(row_segments, device=device)[None]
    mask = segment_mask(segment, _reads(device)).expand(num_rows, -1, -1, -1)
    hidden = backbone.decode(inputs, position_ids, mask)[:, -1]
    return yes_log_odds(backbone.logits(hidden), yes_id=prompt.yes, no_id=prompt.no)


def segment_mask(segment: Tensor, reads: Tensor) -> Tensor:
    """Who may attend to whom, from segment ids alone.

    Args:
        segment: (m, L) segment of every column, `PAD` (-1) for padding.
        reads: (S, S) bool, True = the row's segment reads the column's.

    Returns:
        (m, 1, L, L) bool: causal, by the table, and every column sees itself (so that no padding
        row is empty).
    """
    length = segment.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment.device).tril()
    index = segment.long().clamp(min=0)
    allowed = reads[index[:, :, None], index[:, None, :]]
    real = segment != PAD
    allowed = allowed & real[:, :, None] & real[:, None, :] & causal
    itself = torch.eye(length, dtype=torch.bool, device=segment.device)
    return (allowed | itself)[:, None]


def _reads(device: torch.device) -> Tensor:
    """The table of the packed row: content reads P and itself, A_k also I and its two views."""
    table = torch.eye(S_A + len(VIEWS), dtype=torch.bool, device=device)
    table[:, S_P] = True
    for view, (query_view, slot, document_view) in enumerate(VIEWS):
        seen = [S_I, (S_Q, S_ZQ)[query_view], _DOCUMENTS[slot][document_view]]
        table[S_A + view, seen] = True
    return table


def _raw_part(
    query: RawRows, first: RawRows, second: RawRows
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Embeddings, positions and segments of P and the raw items; order inside a row is kept.

    Every row starts with its own copy of P; the query's serves all three, the others are cut off.
    """
    embeds, positions, segments = [], [], []
    names = ((query, S_Q), (first, S_D1), (second, S_D2))
    for rows, name in names:
        start = 0 if name == S_Q else int((rows.segment[0] == HEADER).sum())
        width = int((rows.segment <= CONTENT).logical_and(rows.segment >= 0).sum(dim=1).max())
        kept = rows.segment[:, start:width].long()
        segment = torch.full_like(kept, PAD)
        segment[kept == HEADER] = S_P
        segment[kept == CONTENT] = name
        embeds.append(rows.inputs_embeds[:, start:width])
        positions.append(rows.position_ids[:, :, start:width])
        segments.append(segment)
    return embeds, positions, segments


def _tail(
    backbone: Backbone,
    matcher: Matcher,
    prompt: PromptTokens,
    query: RawRows,
    first: RawRows,
    second: RawRows,
) -> tuple[Tensor, Tensor, Tensor]:
    """`[I][Zq][Zd1][Zd2][A1..A8]`: embeddings (m, n, H), positions (3, m, n), segments (m, n)."""
    num_rows, device = query.fused.shape[0], query.fused.device
    start = len(prompt.header) + prompt.template.match_gap
    instruction = _embed_tokens(backbone, prompt.match_instruction, num_rows)
    answer = _embed_tokens(backbone, prompt.answer, num_rows)
    z_tokens = [
        matcher.z(rows.fused, role=role)[:, None].to(instruction.dtype)
        for rows, role in ((query, 0), (first, 1), (second, 1))
    ]
    embeds = torch.cat([instruction, *z_tokens, *[answer] * len(VIEWS)], dim=1)

    z_end = torch.full((num_rows,), start + 1, device=device)
    query_end = (_content_end(query), z_end)
    document_end = ((_content_end(first), z_end), (_content_end(second), z_end))
    steps = torch.arange(len(prompt.answer), device=device)
    answer_positions = [
        torch.maximum(query_end[query_view], document_end[slot][document_view])[:, None] + steps
        for query_view, slot, document_view in VIEWS
    ]
    first_positions = torch.arange(len(prompt.match_instruction), device=device)
    first_positions = torch.cat([first_positions + len(prompt.header), z_end.new_full((3,), start)])
    positions = torch.cat([first_positions.expand(num_rows, -1), *answer_positions], dim=1)

    names = [S_I] * len(prompt.match_instruction) + [S_ZQ, S_ZD1, S_ZD2]
    for view in range(len(VIEWS)):
        names += [S_A + view] * len(prompt.answer)
    segments = torch.tensor(names, device=device).expand(num_rows, -1)
    return embeds, positions.expand(3, -1, -1), segments


def _content_end(rows: RawRows) -> Tensor:
    """(m,) first position after each row's content, over all three axes."""
    content = rows.segment == CONTENT
    return rows.position_ids.masked_fill(~content, -1).amax(dim=(0, 2)) + 1


def _embed_tokens(backbone: Backbone, ids: list[int], num_rows: int) -> Tensor:
    """Word embeddings of fixed tokens for every row, (num_rows, len(ids), H)."""
    table = backbone.word_embeddings
    tokens = torch.tensor(ids, device=table.weight.device)
    return table(tokens)[None].expand(num_rows, -1, -1)
