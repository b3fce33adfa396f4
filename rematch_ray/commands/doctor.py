"""Measure recall and time of search plans on your own queries, and write it into the index.

After it `auto` runs the cheapest plan that is sure to find 99 % of what an exhaustive search finds,
and a search may name a target_recall. With --qrels, quality per budget is measured too, and with a
model the gain of its matching head. Interrupted, it leaves the index as it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rematch_ray.commands.parser import (
    OneLineParser,
    picture_file,
    positive_number,
    reader_overrides,
)

if TYPE_CHECKING:
    from rematch_ray.data.item import Item
    from rematch_ray.data.readers.settings import ReaderSettings
    from rematch_ray.evaluation.diagnosis import Diagnosis
    from rematch_ray.evaluation.head import Match
    from rematch_ray.index.query_vectors import NamedQueries
    from rematch_ray.index.search import SearchIndex
    from rematch_ray.model.embedder import Embedder


def add_arguments(parser: OneLineParser) -> None:
    """Add what ``rematch-ray doctor`` takes."""
    parser.add_argument("--index", type=Path, required=True, metavar="DIR", help="what to examine")
    parser.add_argument(
        "--queries",
        type=Path,
        required=True,
        metavar="PATH",
        help="query embeddings, a log of query vectors, or rows in any format that is read; "
        "200 or more",
    )
    parser.add_argument(
        "--model",
        metavar="CKPT",
        help="embeds rows (default: the model the index was built with); its matching head is "
        "measured where there are qrels",
    )
    parser.add_argument(
        "--qrels", type=Path, metavar="FILE", help="what is right: query_id, document_id, score"
    )
    parser.add_argument(
        "--top-k",
        type=positive_number,
        default=10,
        metavar="N",
        help="hits to choose plans for (10)",
    )
    parser.add_argument(
        "--max-queries",
        type=positive_number,
        default=1000,
        metavar="N",
        help="measure on at most so many, chosen by the hash of their ids (1000)",
    )
    parser.add_argument(
        "--instruction",
        metavar="TEXT",
        help='for rows; default: the one recorded with the model; "" for none',
    )
    parser.add_argument("--format", metavar="NAME", help="format of rows; default: detected")
    parser.add_argument(
        "--columns", metavar="ROLES", help="which column of rows is what: text=caption,id=key"
    )
    parser.add_argument(
        "--plot",
        type=picture_file(".png", ".jpg", ".jpeg", ".svg", ".pdf"),
        metavar="out.png",
        help="draw quality against cost",
    )
    parser.add_argument(
        "--device", metavar="cuda", help="measure plans there (default: the CPU's kernel)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="measure and report, leave the index as it is"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Examine; returns the calibration, the advice and the generation that carries it."""
    from rematch_ray.data.readers.judged import read_judgements
    from rematch_ray.evaluation.diagnosis import diagnose
    from rematch_ray.evaluation.figures import figure_class
    from rematch_ray.index.calibration_writer import publish_calibration
    from rematch_ray.index.query_vectors import read_query_vectors
    from rematch_ray.index.search import SearchIndex

    if options.plot is not None:
        figure_class()  # refused before anything is measured
    # a visit takes long, and a service may write meanwhile
    index = SearchIndex.open(options.index, device=options.device, hold=True)
    qrels = None if options.qrels is None else read_judgements(options.qrels)
    queries = read_query_vectors(options.queries, index)
    items = None if queries is not None else _read_rows(options)
    model = _model(options, index, needed=items is not None)
    if queries is None:
        assert items is not None and model is not None
        queries = _embed(items, model, options.instruction)
    found = diagnose(
        index,
        queries,
        top_k=options.top_k,
        qrels=qrels,
        match=_head(model),
        max_queries=options.max_queries,
        progress=_say,
    )
    generation = index.generation
    if not options.dry_run:
        generation = publish_calibration(options.index, found.calibration).generation
    return {**_report(found, index, options), "index": str(options.index), "generation": generation}


def _model(options: argparse.Namespace, index: SearchIndex, *, needed: bool) -> Embedder | None:
    """The model that was named, or the index's own where rows must be embedded."""
    if options.model is None and not needed:
        return None
    from rematch_ray.model.embedder import Embedder
    from rematch_ray.serve.pair import fitting_export

    return Embedder.from_pretrained(fitting_export(index, options.model))


def _read_rows(options: argparse.Namespace) -> list[Item]:
    from rematch_ray.data.readers.judged import read_queries
    from rematch_ray.index.query_vectors import sample_rows

    items = read_queries(options.queries, _reader(options))
    # before they are embedded, which is the dear part
    return [items[row] for row in sample_rows([item.id for item in items], options.max_queries)]


def _reader(options: argparse.Namespace) -> ReaderSettings:
    from rematch_ray.config_file import read_settings
    from rematch_ray.data.readers.settings import ReaderSettings

    return read_settings(ReaderSettings, None, reader_overrides(options))


def _embed(items: Sequence[Item], model: Embedder, instruction: str | None) -> NamedQueries:
    from rematch_ray.index.query_vectors import NamedQueries

    _say(f"embedding {len(items)} queries")
    made = model.encode_query(items, instruction=instruction).cpu()
    fused = None if made.fused is None else made.fused.numpy()
    return NamedQueries([item.id for item in items], made.vectors.numpy(), fused)


def _head(model: Embedder | None) -> Match | None:
    """The model's matching head as a function of arrays."""
    if model is None or model.matcher is None:
        return None
    import numpy as np
    import torch

    head = model

    def match(query_BF: Any, document_BNF: Any) -> Any:
        given = (torch.from_numpy(part).to(head.device) for part in (query_BF, document_BNF))
        return head.match(*given).cpu().numpy().astype(np.float32)

    return match


def _report(found: Diagnosis, index: SearchIndex, options: argparse.Namespace) -> dict[str, Any]:
    from rematch_ray.evaluation.doctor_report import advice, calibration_rows, plot_calibration
    from rematch_ray.evaluation.report import plain_table

    calibration, lines = found.calibration, advice(found.calibration, index.ladder)
    _say(plain_table(calibration_rows(calibration, index.ladder)))
    for line in (*found.notes, *lines):
        _say(f"- {line}")
    plot = None
    if options.plot is not None:
        plot = str(plot_calibration(calibration, index.ladder, options.plot))
    fields = {"advice": lines, "notes": list(found.notes), "plot": plot}
    return {"calibration": calibration.to_json(), **fields}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
