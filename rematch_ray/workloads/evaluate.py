"""Quality against cost at every budget: tasks of an evaluation over an index.

Reads tables, embeds the queries and hands scores to `rematch_ray.evaluation`, which measures. Runs
in one process; the index was made on the cluster. Top floor.
"""

import random
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rematch_ray.config import EvaluationConfig, TaskSettings
from rematch_ray.data.readers.judged import read_judgements, read_queries
from rematch_ray.data.readers.parquet import list_units, read_unit
from rematch_ray.data.schema import Item, items_from_table
from rematch_ray.errors import UserError
from rematch_ray.evaluation.budgets import evaluate_index
from rematch_ray.evaluation.figures import figure_class
from rematch_ray.evaluation.matching import Triplet, measure_matching
from rematch_ray.evaluation.report import (
    missing_lines,
    plain_table,
    plot_cost,
    table_rows,
    write_reports,
)
from rematch_ray.evaluation.tasks import RetrievalTask
from rematch_ray.index.search import SearchIndex
from rematch_ray.model.embedder import Embedder


def evaluate(config: EvaluationConfig, *, show: bool = True) -> dict[str, Any]:
    """Measure every task at every rung of the index.

    Args:
        config: index, tasks and where to write.
        show: print the tables to stderr.

    Returns:
        `reports` (one per task) and `files`.

    Raises:
        UserError: index, model or a task's files do not fit together.
    """
    if config.out.exists() and not config.out.is_dir():
        raise UserError(f"out: {config.out} is a file; name a directory for the report")
    index = SearchIndex.open(config.index)
    model = Embedder.from_pretrained(_model_path(config, index))
    index.check_model(model.identity)
    reports = [_measure(config, settings, index, model) for settings in config.tasks]
    files = write_reports(reports, config.out)
    for report in reports if show else ():
        lines = [plain_table(table_rows(report)), *missing_lines(report), ""]
        print("\n".join(lines), file=sys.stderr, flush=True)
    if config.plots:
        files |= _plots(config, reports)
    return {"reports": reports, "files": files}


def _plots(config: EvaluationConfig, reports: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Draw what the reports say; without matplotlib a line says so, and the tables stand."""
    costs = ["bytes_per_document", *(["ms_per_query"] if config.timed_queries else [])]
    try:
        figure_class()
    except UserError as missing:
        print(f"no plots: {missing}", file=sys.stderr, flush=True)
        return {}
    return {cost: str(plot_cost(reports, config.out / f"{cost}.png", cost=cost)) for cost in costs}


@dataclass(frozen=True)
class Gallery:
    """The documents of one task, as columns of the index's scores.

    Args:
        ids: C ids.
        filter: what they are chosen by; None = all of the index.
    """

    ids: list[str]
    filter: Mapping[str, Any] | None


def gallery_of(index: SearchIndex, source: str | None) -> Gallery:
    """Return the documents of one source, or all.

    Raises:
        UserError: the index holds no document of that source.
    """
    chosen = None if source is None else {"source": source}
    ids = index.ids(chosen)
    if chosen and not ids:
        raise UserError(f"the index holds no document of source {source!r}; check tasks.N.source")
    return Gallery(ids, chosen)


def read_task(settings: TaskSettings, gallery: Gallery, queries: Sequence[Item]) -> RetrievalTask:
    """Read a task's tables against its gallery.

    Raises:
        UserError: a file is missing, or names what is not there.
    """
    slices: dict[str, list[str]] = {}
    if settings.slice_field is not None:
        for query in queries:
            value = str(query.payload.get(settings.slice_field))
            slices.setdefault(f"{settings.slice_field}={value}", []).append(query.id)
    return RetrievalTask.from_tables(
        settings.name,
        [query.id for query in queries],
        gallery.ids,
        read_judgements(settings.qrels, split=settings.reader.split),
        families=_read_if(settings.families),
        swaps=_read_if(settings.swaps),
        slices=slices,
        listed_only=settings.candidates == "listed",
    )


def queries_of(settings: TaskSettings) -> list[Item]:
    """Read a task's queries, without those that nothing is right for where that is asked.

    Raises:
        UserError: a file that cannot be read, or no query is left.
    """
    queries = read_queries(settings.queries, settings.reader)
    if settings.unjudged == "refuse":
        return queries
    qrels = read_judgements(settings.qrels, split=settings.reader.split)
    judged = set(qrels.filter(pc.field("score") > 0)["query_id"].to_pylist())
    kept = [query for query in queries if query.id in judged]
    if not kept:
        raise UserError(
            f"{settings.qrels} judges none of the {len(queries)} queries of {settings.queries}: "
            "the ids do not match, or it is another split"
        )
    return kept


def _measure(
    config: EvaluationConfig, settings: TaskSettings, index: SearchIndex, model: Embedder
) -> dict[str, Any]:
    queries = queries_of(settings)
    gallery = gallery_of(index, settings.source)
    task = read_task(settings, gallery, queries)
    vectors = model.encode_query(
        queries, instruction=config.instruction, batch_size=config.batch_rows
    )
    report = evaluate_index(
        task,
        index,
        vectors,
        filter=gallery.filter,
        ks=config.ks,
        timed_queries=config.timed_queries,
        seed=config.seed,
    )
    if model.has_fused and config.matching_triplets and settings.swaps and settings.corpus:
        triplets = read_triplets(
            settings, queries, config.matching_triplets, held=frozenset(gallery.ids)
        )
        report["matching"] = measure_matching(model, triplets, batch_size=config.batch_rows)
    return report


def read_triplets(
    settings: TaskSettings,
    queries: Sequence[Item],
    limit: int,
    *,
    held: Collection[str] | None = None,
) -> list[Triplet]:
    """Read (query, right document, swapped document) from a task's tables, drawn at random.

    Drawn and not taken in even steps: kinds of swaps repeat in the tables, and steps of a multiple
    of their number would meet one kind only.

    Args:
        settings: with `swaps` and `corpus`.
        queries: the task's queries.
        limit: most triplets.
        held: ids of the documents that could be read; None = all of them.
    """
    assert settings.swaps is not None
    assert settings.corpus is not None
    asked = {query.id: query for query in queries}
    qrels = read_judgements(settings.qrels, split=settings.reader.split).to_pylist()
    right = {
        line["query_id"]: line["document_id"]
        for line in qrels
        if line["score"] > 0 and (held is None or line["document_id"] in held)
    }
    swaps = [
        line
        for line in _read(settings.swaps).to_pylist()
        if line["query_id"] in asked
        and line["query_id"] in right
        and (held is None or line["document_id"] in held)
    ]
    chosen = random.Random(0).sample(swaps, min(limit, len(swaps)))
    wanted = {line["document_id"] for line in chosen} | {right[line["query_id"]] for line in chosen}
    documents = {
        item.id: item
        for unit in list_units(settings.corpus, rows="items")
        for batch in read_unit(unit)
        for item in items_from_table(batch.filter(pc.field("id").isin(sorted(wanted))))
    }
    return [
        Triplet(
            asked[line["query_id"]],
            documents[right[line["query_id"]]],
            documents[line["document_id"]],
            line["kind"],
        )
        for line in chosen
    ]


def _model_path(config: EvaluationConfig, index: SearchIndex) -> str:
    path = config.model or index.info().get("model_path")
    if path is None:
        raise UserError(f"{config.index} does not say which model made it; set `model`")
    return str(path)


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from error


def _read_if(path: Path | None) -> pa.Table | None:
    return None if path is None else _read(path)
