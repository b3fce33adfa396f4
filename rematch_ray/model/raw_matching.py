"""The matching stage's answer over raw items: the query and each document are read token by token.

Two documents share a forward pass, one in each slot; neither sees the other. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rematch_ray.errors import UserError
from rematch_ray.losses.matching import VIEWS, yes_log_odds
from rematch_ray.model.answers import shared_answers

if TYPE_CHECKING:
    from rematch_ray.data.rows import EncodedRow
    from rematch_ray.model.embedder import Embedder

_RAW_VIEWS = [VIEWS.index((0, slot, 0)) for slot in (0, 1)]


@torch.inference_mode()
def raw_log_odds(
    model: Embedder, query: EncodedRow, documents: Sequence[EncodedRow], *, pairs: int = 2
) -> Tensor:
    """log p(Yes) - log p(No) of a query with each document, in the raw/raw view.

    Args:
        model: an embedder trained with matching, in evaluation mode.
        query: a row of the query side.
        documents: N rows of the document side.
        pairs: pairs of documents per forward pass.

    Returns:
        (N,) float32.

    Raises:
        UserError: the model has no fused vector.
    """
    if model.matcher is None:
        raise UserError("this model was trained without a fused vector, so it cannot match")
    if not documents:
        return torch.zeros(0)
    batch = model.batch([query], "query").to(model.device)
    asked = model.encode_rows(batch, "query", record=True).raw_rows()
    prompt, parts = model.row_encoder.prompt, []
    for start in range(0, len(documents), 2 * pairs):
        some = documents[start : start + 2 * pairs]
        batch = model.batch(some, "document").to(model.device)
        rows = model.encode_rows(batch, "document", record=True).raw_rows()
        first = torch.arange(0, len(some), 2, device=model.device)
        # the last of an odd number stands in both slots
        second = (first + 1).clamp(max=len(some) - 1)
        logits = shared_answers(
            model.backbone,
            model.matcher,
            prompt,
            asked.take(torch.zeros_like(first)),
            rows.take(first),
            rows.take(second),
        )
        odds = yes_log_odds(logits[:, _RAW_VIEWS], yes_id=prompt.yes, no_id=prompt.no)
        parts.append(odds.flatten()[: len(some)])
    return torch.cat(parts)
