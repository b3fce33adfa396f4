"""The doctor's whole visit: truth, trials, table, nDCG per budget and the matching head.

Composes the examination with intervals; writes nothing. Middle floor.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from rematch_ray.errors import UserError
from rematch_ray.evaluation.fitting import Mask, check_queries, fitted_half, make_rows
from rematch_ray.evaluation.head import CANDIDATES, Match, Ranked, fit_head
from rematch_ray.evaluation.judged import Judgements, NdcgMeter
from rematch_ray.index.calibration import Calibration
from rematch_ray.index.doctor import (
    TIMED_QUERIES,
    Progress,
    Trial,
    Truth,
    find_truth,
    try_plan,
    usable_choices,
)
from rematch_ray.index.query_vectors import NamedQueries
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.store import now, software
from rematch_ray.index.trials import CANDIDATE_COUNTS, plans_to_try

_EXTRA_KS = (1, 100)
_TOLD_EVERY = 10


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found.

    Args:
        calibration: to be written into the index.
        notes: what to know about it, in sentences.
    """

    calibration: Calibration
    notes: tuple[str, ...]


def diagnose(
    index: SearchIndex,
    queries: NamedQueries,
    *,
    top_k: int = 10,
    qrels: pa.Table | None = None,
    match: Match | None = None,
    counts: Sequence[int] = CANDIDATE_COUNTS,
    timed_queries: int = TIMED_QUERIES,
    seed: int = 0,
    max_queries: int | None = None,
    progress: Progress = lambda line: None,
) -> Diagnosis:
    """Examines an index with queries.

    Args:
        index: as opened; it is not written to.
        queries: at least 20, better 200; those that repeat others are left out.
        top_k: hits that plans are chosen for.
        qrels: query_id, document_id, score; None measures no nDCG.
        match: the matching head; None, or no qrels, measures no gain of it.
        counts: candidate counts to try.
        timed_queries: queries that every plan is timed on.
        seed: of the bootstrap.
        max_queries: of more that many are taken, by the hash of their ids; None takes all.
        progress: told what is being done.

    Returns:
        The calibration and what to know about it.

    Raises:
        UserError: an empty index, too few queries or such as do not fit, qrels of other queries.
    """
    if not len(index):
        raise UserError("the index holds no live document: there is nothing to search")
    given = len(queries)
    queries = queries.distinct(by_id=qrels is not None)
    repeated = f"{given - len(queries)} of {given} queries repeat others and are left out"
    notes = [repeated] if len(queries) < given else []
    queries = queries if max_queries is None else queries.sample(max_queries)
    notes += [note for note in (check_queries(queries.ids), queries.unchecked) if note]
    choices, left_out = usable_choices(index, queries)
    judgements = None if qrels is None else Judgements.of(qrels, queries.ids, index.ids())
    if judgements is not None and judgements.lost:
        notes.append(f"{judgements.lost} relevant documents of the qrels are not in the index")
    meter = None if judgements is None else NdcgMeter(judgements, index.ids())
    ks = [top_k, *(k for k in _EXTRA_KS if k != top_k)]
    seen, depth = (None if meter is None else meter.see), max(*ks, CANDIDATES)
    truth = find_truth(index, queries, depth=depth, seen=seen, progress=progress)
    trials = _try_all(index, queries, truth, choices, ks, counts, timed_queries, progress)
    fitted = fitted_half(queries.ids)
    matching = None
    if judgements is not None and match is not None and _can_match(index, queries):
        progress("matching head: scoring the best documents of every judged query")
        matching = _measure_head(index, queries, truth, judgements, match, fitted, seed)
    elif judgements is not None and match is not None:
        notes.append("the matching head was not measured: it reads fused vectors, which lack")
    calibration = Calibration(
        generation=index.generation,
        standing=index.standing,
        created=now(),
        k=top_k,
        queries=_describe(queries, fitted),
        machine=describe_machine(),
        rows=make_rows(trials, fitted, k=top_k, seed=seed),
        ndcg=None if meter is None else meter.report(str(index.ladder.top), seed=seed),
        matching=matching,
    )
    return Diagnosis(calibration, (*notes, *left_out))


def _try_all(
    index: SearchIndex,
    queries: NamedQueries,
    truth: Truth,
    choices: Sequence[str],
    ks: Sequence[int],
    counts: Sequence[int],
    timed_queries: int,
    progress: Progress,
) -> list[Trial]:
    plans = plans_to_try(
        index.ladder,
        # three lists at once have not been seen to find what two do not
        coarse_choices=[choice for choice in choices if choice != "all"],
        has_fused="fused" in truth.best,
        live=len(index),
        top_k=ks[0],
        counts=counts,
    )
    lists = index.info()["coarse_dot_products"]
    trials = []
    for number, plan in enumerate(plans, start=1):
        if number % _TOLD_EVERY == 1:
            progress(f"plan {number} of {len(plans)}: {plan}")
        trials.append(
            try_plan(
                index,
                queries,
                truth,
                plan,
                ks=ks,
                coarse_dot_products=lists,
                timed_queries=timed_queries,
            )
        )
    return trials


def _can_match(index: SearchIndex, queries: NamedQueries) -> bool:
    return index.has_fused and queries.fused is not None


def _measure_head(
    index: SearchIndex,
    queries: NamedQueries,
    truth: Truth,
    judgements: Judgements,
    match: Match,
    fitted: Mask,
    seed: int,
) -> dict[str, Any]:
    """The head over the best documents of every judged query, one query at a time."""
    assert queries.fused is not None
    best = truth.best[str(index.ladder.top)]
    ranked = []
    for row in judgements.judged:
        ids, right = best[row][:CANDIDATES], judgements.right[row]
        documents = index.fused_vectors(ids)[None]
        query = np.asarray(queries.fused[row : row + 1], np.float32)
        ranked.append(
            Ranked(
                scores=truth.scores[row, : len(ids)].astype(np.float64),
                odds=np.asarray(match(query, documents), np.float64)[0],
                right={place: right[name] for place, name in enumerate(ids) if name in right},
                missed=[gain for name, gain in right.items() if name not in set(ids)],
            )
        )
    return fit_head(ranked, fitted[judgements.judged], seed=seed)


def _describe(queries: NamedQueries, fitted: Mask) -> dict[str, Any]:
    half = int(fitted.sum())
    return {
        "count": len(queries),
        "fitted": half,
        "reported": len(queries) - half,
        "digest": queries.digest(),
    }


def describe_machine() -> dict[str, Any]:
    """What times were measured on: processor, cores, threads and versions."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": faiss.omp_get_max_threads(),
        "software": software(),
    }
