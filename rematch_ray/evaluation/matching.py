"""How well the matching stage's own Yes/No tells a right document from a wrong one, view by view.

Reads items and a model; knows nothing of indexes or corpora. Middle floor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rematch_ray.data.prompts import Side
from rematch_ray.data.schema import Item
from rematch_ray.errors import UserError
from rematch_ray.losses.matching import VIEW_NAMES, VIEWS, view_kind, yes_log_odds
from rematch_ray.model.answers import shared_answers
from rematch_ray.model.embedder import Embedder, Encoded, evaluating


@dataclass(frozen=True)
class Triplet:
    """A query, a right and a wrong document, and in what they differ."""

    query: Item
    right: Item
    wrong: Item
    kind: str = ""


def measure_matching(
    model: Embedder, triplets: Sequence[Triplet], *, batch_size: int = 16
) -> dict[str, Any]:
    """Asks the matching stage about both documents of every triplet in all eight views.

    Args:
        model: an embedder trained with matching.
        triplets: at least one.
        batch_size: triplets per forward pass.

    Returns:
        `triplets` (count) and `views`: view name -> `accuracy` (Yes for the right and No for the
        wrong document; chance 0.5), `ranked` (share of triplets whose right document gets the
        higher log p(Yes) - log p(No); a tie counts half), `ranked_by_kind` and `worst_kind`.

    Raises:
        UserError: no triplets, or a model without a fused vector.
    """
    if model.matcher is None:
        raise UserError("this model was trained without a fused vector, so it cannot match")
    if not triplets:
        raise UserError("there are no triplets to match: pass at least one")
    with evaluating(model), torch.inference_mode():
        odds_m8 = torch.cat(
            [
                _log_odds(model, triplets[start : start + batch_size])
                for start in range(0, len(triplets), batch_size)
            ]
        ).cpu()
    kinds = [triplet.kind for triplet in triplets]
    views = {name: _view_report(odds_m8, kind, kinds) for kind, name in enumerate(VIEW_NAMES)}
    return {"triplets": len(triplets), "views": views}


def _log_odds(model: Embedder, triplets: Sequence[Triplet]) -> Tensor:
    """(m, 8) log-odds of Yes; the right document stands in slot 1, the wrong one in slot 2."""
    matcher, prompt = model.matcher, model.row_encoder.prompt
    assert matcher is not None
    queries = _encode(model, [triplet.query for triplet in triplets], "query")
    documents = [triplet.right for triplet in triplets] + [triplet.wrong for triplet in triplets]
    rows = _encode(model, documents, "document").raw_rows()
    first = torch.arange(len(triplets), device=model.device)
    logits = shared_answers(
        model.backbone,
        matcher,
        prompt,
        queries.raw_rows(),
        rows.take(first),
        rows.take(first + len(triplets)),
    )
    return yes_log_odds(logits, yes_id=prompt.yes, no_id=prompt.no)


def _encode(model: Embedder, items: Sequence[Item], side: Side) -> Encoded:
    rows = [
        model.row_encoder.encode(item, side, model.instruction_for(side, item.source))
        for item in items
    ]
    return model.encode_rows(model.batch(rows, side).to(model.device), side, record=True)


def _view_report(odds_m8: Tensor, kind: int, kinds: Sequence[str]) -> dict[str, Any]:
    columns = {VIEWS[view][1]: view for view in range(len(VIEWS)) if view_kind(view) == kind}
    right, wrong = odds_m8[:, columns[0]], odds_m8[:, columns[1]]
    won = (right > wrong).float() + 0.5 * (right == wrong).float()
    by_kind: dict[str, list[float]] = defaultdict(list)
    for name, value in zip(kinds, won.tolist(), strict=True):
        by_kind[name].append(value)
    shares = {name: sum(values) / len(values) for name, values in sorted(by_kind.items())}
    return {
        "accuracy": float(((right > 0).float() + (wrong < 0).float()).mean() / 2),
        "ranked": float(won.mean()),
        "ranked_by_kind": shares,
        "worst_kind": min(shares.values()),
    }
