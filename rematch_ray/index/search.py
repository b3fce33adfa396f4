"""`SearchIndex`: search at any budget over the published generation of an index.

Checks what a caller asks against what the index holds, plans, and hands over to the cascade. Scores
are exact and ties are broken by id, so budget, candidates and generation give the same hits bit for
bit. Knows nothing of models (it takes query vectors) or of serving. Middle floor.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rematch_ray.errors import UserError, did_you_mean
from rematch_ray.index.calibration import Standing
from rematch_ray.index.cascade import Request, ms_since, stage
from rematch_ray.index.choice import Table
from rematch_ray.index.chooser import Chooser
from rematch_ray.index.exact import Float32
from rematch_ray.index.execution import find_groups, search_vectors
from rematch_ray.index.generation import Generation
from rematch_ray.index.grouping import GroupBy, field_of
from rematch_ray.index.hits import Hit, SearchResult
from rematch_ray.index.lexical.hybrid import Hybrid, search_hybrid
from rematch_ray.index.plan import Plan
from rematch_ray.index.planner import Candidates
from rematch_ray.index.queries import Queries, QueryVectors
from rematch_ray.index.reader import IndexReader
from rematch_ray.index.stages import require_fused, score_documents, similarity_matrix
from rematch_ray.index.wish import is_open
from rematch_ray.scoring.budget import Budget

__all__ = ["Hit", "SearchIndex", "SearchResult"]


class SearchIndex(IndexReader):
    """An open index; safe to search from several threads.

    Args:
        generation: what to search.
    """

    def __init__(self, generation: Generation) -> None:
        super().__init__(generation)
        self.standing = Standing.of(generation)
        self._chooser = Chooser(
            self.ladder,
            Table.of(generation),
            has_fused=self.has_fused,
            coarse_choices=self.coarse_choices,
            default_coarse=self._manifest.default_coarse,
            num_live=len(self),
        )

    def search(
        self,
        query: QueryVectors,
        *,
        budget: str | Budget | None = None,
        candidates: Candidates = "auto",
        top_k: int = 10,
        filter: Mapping[str, Any] | None = None,
        group_by: GroupBy | None = None,
        coarse: str | None = None,
        nprobe: int | None = None,
        text: str | Sequence[str] | None = None,
        fusion: str | None = None,
        lexical_weight: float = 0.5,
        target_recall: float | None = None,
        cost_limit: int | None = None,
        max_ms: float | None = None,
        plan: Plan | None = None,
        groups_within_s: float | None = None,
        groups_among: int | None = None,
    ) -> list[SearchResult]:
        """Finds the best documents of each query.

        Args:
            query: B queries: `vectors` (B, R, D) and `fused` (B, F) or None, unit norm.
            budget: how candidates are scored: a rung, its text or name; None and `auto` mean the
                calibration's choice, the top rung where there is none.
            candidates: which documents are scored: `all`, the so many best of the coarse stage, or
                `auto`: the planner's choice, narrowed through smaller budgets.
            top_k: hits per query; fewer when fewer documents pass.
            filter: payload field -> value, or list of allowed values; all fields must hold.
            group_by: payload field, or `source`, of which each value gives at most one hit, its
                best; a `Grouping` sets one document apart. A plan that was left open is widened
                until there are `top_k` groups, or no more; where one that was not gives fewer,
                `plan["groups_short"]` says that there may be others.
            coarse: one of `coarse_choices`; None takes the calibration's or the index's default.
            nprobe: inverted lists that the coarse stage looks through; None: the stored number, the
                only calibrated one: with another no recall is promised, and no goal can be given.
            text: of each query, for hybrid search: BM25 over the payload, fused with the vectors.
            fusion: `rrf` (by ranks; None) or `weighted` (by scores).
            lexical_weight: of the lexical list when fused, 0..1.
            target_recall: recall that the calibration must promise; this and the next three choose
                budget, candidates and coarse: give one of them, and none of those.
            cost_limit: most dot products per query.
            max_ms: most milliseconds.
            plan: the stages themselves.
            groups_within_s: seconds from now within which a pass for missing groups must be
                expected to end, or it is not begun; None: no limit.
            groups_among: documents that such a pass may score at the final budget; None: no limit.

        Returns:
            One result per query.

        Raises:
            UserError: a value that does not fit, or a goal without a valid calibration.
        """
        self._check_group(group_by)
        queries = self._check_queries(query)
        hybrid = Hybrid.check(text, fusion, lexical_weight, len(queries))
        started = time.perf_counter()
        allowed = self._generation.select(filter)
        num_allowed = int(np.count_nonzero(allowed)) if filter else len(self)
        chosen = self._chooser.choose(
            full=filter is None and group_by is None,
            num_allowed=num_allowed,
            budget=budget,
            candidates=candidates,
            coarse=coarse,
            top_k=top_k,
            target_recall=target_recall,
            cost_limit=cost_limit,
            max_ms=max_ms,
            plan=plan,
            nprobe=nprobe,
            is_hybrid=hybrid is not None,
        )
        if chosen.plan.budget.is_fused:
            require_fused(queries, "budget 'fused'")
        spent_ms = ms_since(started) / max(1, len(queries))
        request = Request(
            plan=chosen.plan,
            coarse=chosen.plan.coarse or self._manifest.default_coarse,
            allowed=allowed,
            # more than all are all: kernels count in 64 bits
            top_k=min(top_k, max(1, len(self))),
            group_by=group_by,
            filter_stage=stage("filter", len(self), num_allowed, spent_ms),
            nprobe=nprobe,
            filter=filter,
        )
        if hybrid:
            results = search_hybrid(self._generation, queries, request, hybrid)
        else:
            results = search_vectors(self._generation, queries, request)
            if group_by is not None:
                until = None if groups_within_s is None else started + groups_within_s
                found = find_groups(
                    self._generation,
                    queries,
                    request,
                    chosen,
                    results,
                    until=until,
                    most=groups_among,
                )
                return [passes.marked(self.ladder.top) for passes in found]
        return [chosen.mark(r, self.ladder.top, is_hybrid=bool(hybrid)) for r in results]

    def score_all(
        self,
        query: QueryVectors,
        budgets: Sequence[str | Budget] | None = None,
        *,
        filter: Mapping[str, Any] | None = None,
    ) -> dict[str, Float32]:
        """Scores every live document at several budgets in one pass: brute force.

        Args:
            query: B queries.
            budgets: rungs; None takes all, the fused one too where index and queries have it.
            filter: as in `search`; None scores all.

        Returns:
            Rung as text -> (B, documents) float32, columns in the order of `ids(filter)`.

        Raises:
            UserError: a budget, filter field or query vector that does not fit.
        """
        queries = self._check_queries(query)
        if budgets is None:
            budgets = self.budgets if queries.fused is not None else self.ladder.rungs
        rungs = [self._resolve(budget) for budget in budgets]
        rows = np.flatnonzero(self._generation.select(filter))
        return score_documents(self._generation, queries, rows, rungs)

    def explain(
        self, query: QueryVectors, document_id: str, *, budget: str | Budget | None = None
    ) -> Float32:
        """Shows what a score is made of: query vectors against document vectors.

        Args:
            query: one query.
            document_id: of the document.
            budget: a rung; None takes the top one.

        Returns:
            (r_q, r_d) float32 similarities; the score is the mean of the rows' maxima. (1, 1) at
            the fused rung.

        Raises:
            UserError: no such document or budget, or not one query that fits.
        """
        queries = self._check_queries(query)
        if len(queries) != 1:
            raise UserError(f"explain takes one query, not {len(queries)}")
        row = self._generation.rows_of([document_id]).get(document_id)
        if row is None:
            raise UserError(f"document '{document_id}' is not in the index")
        return similarity_matrix(self._generation, queries, row, self._resolve(budget))

    def _check_queries(self, query: QueryVectors) -> Queries:
        manifest = self._manifest
        return Queries.check(
            query,
            num_vectors=self.ladder.num_query_vectors,
            dim=manifest.dim,
            fused_dim=manifest.fused_dim,
        )

    def _resolve(self, budget: str | Budget | None) -> Budget:
        return self.ladder.resolve(None if is_open(budget) else budget, has_fused=self.has_fused)

    def _check_group(self, group_by: GroupBy | None) -> None:
        if group_by is None:
            return
        field = field_of(group_by)
        if field not in (fields := self._generation.fields()):
            raise UserError(f"group_by '{field}' is not there; {did_you_mean(field, fields)}")
