"""What a router knows of an index at one state: enough to plan a search without having it open.

Shards tell theirs as plain values; those of several are summed. Chooses plans with the index's own
functions. Knows no Ray and no HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rematch_ray.index.calibration import Calibration, Standing
from rematch_ray.index.choice import Choice, Table
from rematch_ray.index.chooser import Chooser
from rematch_ray.index.coarse.keys import CHOICE_KEYS
from rematch_ray.index.grouping import GroupBy
from rematch_ray.index.plan import Plan
from rematch_ray.scoring.budget import Budget, Ladder

if TYPE_CHECKING:
    from rematch_ray.index.generation import Generation

_SUMMED = ("documents", "live", "segments", "bytes")


@dataclass(frozen=True)
class IndexFacts:
    """One state of an index, or of one of its shards.

    Attributes:
        path: of the index, for messages.
        ladder: rungs as text.
        live: live documents.
        fused_dim: F, or None.
        dim: D.
        default_coarse: coarse choice where nothing else decides.
        coarse_choices: what the coarse stage can go by.
        coarse_dot_products: of one query, by coarse list.
        fields: payload fields that a filter may name, and their types.
        has_originals: whether scores can be exact.
        standing: as far as a calibration depends on it.
        calibration: what the doctor measured, or None.
        void: why that cannot be read, or None.
        info: what ``/v1/info`` says of it.
    """

    path: str
    ladder: tuple[str, ...]
    live: int
    fused_dim: int | None
    dim: int
    default_coarse: str
    coarse_choices: tuple[str, ...]
    coarse_dot_products: Mapping[str, int]
    fields: Mapping[str, str]
    has_originals: bool
    standing: Standing
    calibration: Calibration | None
    void: str | None
    info: Mapping[str, Any]

    @cached_property
    def rungs(self) -> Ladder:
        """The ladder, read."""
        return Ladder.parse(self.ladder)

    @cached_property
    def table(self) -> Table:
        """The calibration, judged against what the index is now; names no place to clients."""
        void = self.void
        if self.calibration is not None and void is None:
            void = self.calibration.void(self.standing)
        return Table("DIR", self.calibration, void)

    @cached_property
    def budgets(self) -> Mapping[str, str]:
        """Every budget that a request may name -> the rung it stands for; `auto` stays `auto`."""
        offered = {"auto": "auto"} | ({} if self.fused_dim is None else {"fused": "fused"})
        offered |= {name: str(rung) for name, rung in self.rungs.names().items()}
        return offered | {rung: rung for rung in self.ladder}

    def choose(
        self,
        *,
        top_k: int,
        filter: Any = None,
        group_by: GroupBy | None = None,
        num_allowed: int | None = None,
        **asked: Any,
    ) -> Choice:
        """The plan that the index itself would run.

        Args:
            top_k: hits.
            filter: as asked.
            group_by: as asked.
            num_allowed: documents that pass the filter; None takes all live ones.
            asked: the rest of a `Wish`: budget, candidates, coarse, target_recall, plan, is_hybrid.

        Raises:
            UserError: something that does not exist here, or that no calibration allows.
        """
        fields = {"budget": None, "candidates": "auto", "coarse": None, "plan": None, **asked}
        return self._chooser.choose(
            full=filter is None and group_by is None,
            num_allowed=self.live if num_allowed is None else num_allowed,
            top_k=top_k,
            **fields,
        )

    @cached_property
    def _chooser(self) -> Chooser:
        return Chooser(
            self.rungs,
            self.table,
            has_fused=self.fused_dim is not None,
            coarse_choices=self.coarse_choices,
            default_coarse=self.default_coarse,
            num_live=self.live,
        )

    def dot_products(self, plan: Plan, num_allowed: int | None = None) -> int:
        """What a plan is expected to cost."""
        lists = CHOICE_KEYS[plan.coarse or self.default_coarse]
        coarse = sum(self.coarse_dot_products.get(key, 0) for key in lists)
        return plan.dot_products(self.live if num_allowed is None else num_allowed, coarse=coarse)

    def measured_ms(self, plan: Plan) -> float | None:
        """95th percentile of a plan as the doctor saw it, where that still holds."""
        if self.calibration is None or self.table.void is not None:
            return None
        return next((row.ms.p95 for row in self.calibration.rows if row.plan == plan), None)

    def lowered(self, below: Budget) -> tuple[Budget, ...]:
        """Rungs that cost less than a budget, the dearest first."""
        rungs = [rung for rung in self.rungs.rungs if rung.dot_products < below.dot_products]
        return tuple(reversed(rungs))


def facts_of(generation: Generation, calibration: Mapping[str, Any] | None) -> IndexFacts:
    """The facts of an open generation.

    Args:
        generation: open.
        calibration: of the index that it is all or a part of, as it is written, or None.
    """
    from rematch_ray.errors import UserError
    from rematch_ray.index.coarse.keys import choices_of
    from rematch_ray.index.info import coarse_dot_products, describe

    manifest = generation.manifest
    read, void = None, None
    if calibration is not None:
        try:
            read = Calibration.from_json(calibration)
        except UserError as broken:
            void = str(broken)
    return IndexFacts(
        path=str(generation.path),
        ladder=manifest.ladder,
        live=manifest.live,
        fused_dim=manifest.fused_dim,
        dim=manifest.dim,
        default_coarse=manifest.default_coarse,
        coarse_choices=choices_of(generation.coarse_keys),
        coarse_dot_products=coarse_dot_products(generation),
        fields=generation.fields(),
        has_originals=generation.has_originals,
        standing=Standing.of(generation),
        calibration=read,
        void=void,
        info=describe(generation),
    )


def summed(parts: Sequence[IndexFacts], name: str) -> IndexFacts:
    """The facts of an index from those of its shards, in their order.

    Args:
        parts: of each shard; one is the whole.
        name: of the state.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    standing = Standing(
        built=sum(part.standing.built for part in parts),
        live=sum(part.standing.live for part in parts),
        changes=sum(part.standing.changes for part in parts),
        coarse=tuple(sorted({kind for part in parts for kind in part.standing.coarse})),
        device=first.standing.device,
    )
    choices = [name for name in first.coarse_choices
               if all(name in part.coarse_choices for part in parts)]  # fmt: skip
    coarse: dict[str, int] = {}
    fields: dict[str, str] = {}
    for part in parts:
        fields.update(part.fields)
        for key, count in part.coarse_dot_products.items():
            coarse[key] = coarse.get(key, 0) + count
    merged = replace(
        first,
        live=standing.live,
        coarse_choices=tuple(choices),
        coarse_dot_products=coarse,
        fields=fields,
        has_originals=all(part.has_originals for part in parts),
        standing=standing,
    )
    return replace(merged, info=_summed_info(parts, merged, name))


def _summed_info(parts: Sequence[IndexFacts], merged: IndexFacts, name: str) -> dict[str, Any]:
    totals = {key: sum(part.info[key] for part in parts) for key in _SUMMED}
    calibration = None
    if merged.calibration is not None or merged.void is not None:
        summary = {} if merged.calibration is None else merged.calibration.summary()
        calibration = {**summary, "void": merged.table.void}
    return {
        **parts[0].info,
        **totals,
        "path": merged.path,
        "generation": name,
        "shards": len(parts),
        "originals": merged.has_originals,
        "coarse_dot_products": dict(merged.coarse_dot_products),
        "fields": dict(merged.fields),
        "calibration": calibration,
    }
