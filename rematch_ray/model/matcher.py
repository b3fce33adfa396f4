"""The matching head: stored fused vectors back in the input space, and the answer from them alone.

Holds the projector. The stage over raw items, which trains it, is in `answers`; this file answers
the embedding/embedding view of pairs, which needs nothing but what an index stores. Middle floor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rematch_ray.losses.matching import VIEWS, yes_log_odds
from rematch_ray.model.matching_tail import (
    S_A,
    S_I,
    S_P,
    S_ZD1,
    S_ZQ,
    embed_tokens,
    reads,
    segment_mask,
)

if TYPE_CHECKING:
    from rematch_ray.data.prompts import PromptTokens
    from rematch_ray.model.backbone import Backbone


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
    fixed = embed_tokens(backbone, [*prompt.header, *prompt.match_instruction], num_rows)
    answer = embed_tokens(backbone, prompt.answer, num_rows)
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
    mask = segment_mask(segment, reads(device)).expand(num_rows, -1, -1, -1)
    hidden = backbone.decode(inputs, position_ids, mask)[:, -1]
    return yes_log_odds(backbone.logits(hidden), yes_id=prompt.yes, no_id=prompt.no)
