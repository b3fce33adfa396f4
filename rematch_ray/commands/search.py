"""Search an index by text, image or both, in this process: no server and no Ray.

The model comes from the index's manifest unless --model names one. Scores are means over the query
vectors (-1..1) and comparable only within one budget.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rematch_ray.commands.parser import (
    OneLineParser,
    existing_directory,
    picture_file,
    positive_number,
)
from rematch_ray.errors import UserError

if TYPE_CHECKING:
    from rematch_ray.data.item import Item
    from rematch_ray.index.search import SearchResult


def add_arguments(parser: OneLineParser) -> None:
    """Add what ``rematch-ray search`` takes."""
    parser.add_argument("query", nargs="?", help="text to search for")
    parser.add_argument("--index", type=Path, required=True, metavar="DIR", help="what to search")
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="image to search for, alone or with text"
    )
    parser.add_argument(
        "--model", metavar="CKPT", help="default: the model the index was built with"
    )
    parser.add_argument(
        "--budget", metavar="RxR", help="a rung such as 8x16, or fast, balanced, full, fused, auto"
    )
    parser.add_argument(
        "--candidates",
        type=_candidates,
        default="auto",
        metavar="auto|N|all",
        help="how many documents are scored at the final budget; all = exact",
    )
    parser.add_argument(
        "--coarse",
        metavar="CHOICE",
        help="where candidates come from: fused, first, prefix, both, fused+prefix or all "
        "(default: the calibration's or the index's)",
    )
    parser.add_argument(
        "--target-recall",
        type=_share,
        metavar="0..1",
        help="the cheapest plan that the calibration promises this of ('rematch-ray doctor')",
    )
    parser.add_argument(
        "--top-k", type=positive_number, default=10, metavar="N", help="hits to return (10)"
    )
    parser.add_argument(
        "--filter", metavar="JSON", help='payload fields to match: \'{"source": "emoji"}\''
    )
    parser.add_argument(
        "--group-by", metavar="FIELD", help="at most one hit per value of this field"
    )
    parser.add_argument(
        "--hybrid",
        choices=("rrf", "weighted"),
        help="find by the words of the query too, and fuse by ranks (rrf) or weighted scores",
    )
    parser.add_argument(
        "--lexical-weight",
        type=_share,
        metavar="0..1",
        help="what the words count in --hybrid (0.5); the vectors count the rest",
    )
    parser.add_argument(
        "--instruction",
        metavar="TEXT",
        help='default: the one recorded with the model; "" for none',
    )
    parser.add_argument(
        "--device",
        metavar="cuda",
        help="hold and score 8-bit vectors there (default: the CPU's kernel), for the same scores; "
        "of the coarse kind scan1 a few more documents are found",
    )
    parser.add_argument(
        "--out",
        type=picture_file(".png", ".jpg", ".jpeg", ".webp"),
        metavar="sheet.png",
        help="write a contact sheet of the hits",
    )
    parser.add_argument(
        "--media-root",
        type=existing_directory,
        metavar="DIR",
        help="where the pictures of --out lie (default: the working directory)",
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Search; returns the hits and what was used to find them."""
    condition = _parse_filter(options.filter)
    query = _read_query(options.query, options.image)
    if options.lexical_weight is not None and not options.hybrid:
        raise UserError("--lexical-weight weighs the words of --hybrid: give --hybrid rrf as well")
    if options.hybrid and not options.query:
        raise UserError('--hybrid needs words: give a text ("an otter") beside --image')
    from rematch_ray.index.search import SearchIndex

    index = SearchIndex.open(
        options.index, device=options.device
    )  # before the libraries of a model load
    from rematch_ray.model.embedder import Embedder
    from rematch_ray.serve.pair import fitting_export

    model = Embedder.from_pretrained(fitting_export(index, options.model))
    embeddings = model.encode_query(query, instruction=options.instruction)
    [found] = index.search(
        embeddings,
        budget=options.budget,
        candidates=options.candidates,
        coarse=options.coarse,
        target_recall=options.target_recall,
        top_k=options.top_k,
        filter=condition,
        group_by=options.group_by,
        text=options.query if options.hybrid else None,
        fusion=options.hybrid,
        lexical_weight=0.5 if options.lexical_weight is None else options.lexical_weight,
    )
    print_hits(found)
    if options.out:
        _write_sheet(found, options)
    instruction = options.instruction
    if instruction is None:
        instruction = model.instruction_for("query")
    return {**_as_json(found), "instruction": instruction, "index": str(options.index)}


def print_hits(found: SearchResult) -> None:
    """Print a result as a table, and what it took, to stderr."""
    for rank, hit in enumerate(found.hits, start=1):
        print(f"{rank:>3}  {hit.score:+.4f}  {title(hit.payload) or hit.id}", file=sys.stderr)
    if not found.hits:
        print("no document matches", file=sys.stderr)
    spent = sum(stage["ms"] for stage in found.stages)
    certainty = "exact" if found.exact else "approximate"
    print(
        f"budget {found.budget}, {found.candidates} candidates, {found.scored} of {found.live} "
        f"documents scored, {certainty}, {spent:.1f} ms",
        file=sys.stderr,
    )
    if found.plan.get("groups_short"):
        print("there may be more groups: ask for more --candidates, or all", file=sys.stderr)


def title(payload: Mapping[str, Any]) -> str:
    """The first of the payload's fields that reads like a title; "" when there is none."""
    for field in ("name", "title", "caption", "text"):
        if isinstance(value := payload.get(field), str) and value:
            return value
    return ""


def _as_json(found: SearchResult) -> dict[str, Any]:
    """The result as the HTTP API words it."""
    fields = asdict(found)
    for hit in fields["hits"]:
        if hit["parts"] is None:
            del hit["parts"]
    return {"results": fields.pop("hits"), "reduce": "mean", **fields}


def _read_query(text: str | None, image: Path | None) -> Item:
    if not text and image is None:
        raise UserError('nothing to search for: give a text ("an otter"), --image FILE, or both')
    parts: list[str | bytes] = []
    if image is not None:
        try:
            parts.append(image.read_bytes())
        except OSError as unreadable:
            raise UserError(f"--image {image}: {unreadable.strerror or unreadable}") from unreadable
    if text:
        parts.append(text)
    from rematch_ray.data.item import Item

    return Item.of(*parts, id="query")


def _parse_filter(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        condition = json.loads(text)
    except json.JSONDecodeError as bad:
        raise UserError(
            f'--filter is not JSON ({bad}): write it like \'{{"source": "emoji"}}\''
        ) from bad
    if not isinstance(condition, dict):
        raise UserError('--filter must be a JSON object: write it like \'{"source": "emoji"}\'')
    return condition


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return share


def _candidates(text: str) -> int | str:
    return text if text in ("auto", "all") else positive_number(text)


def _write_sheet(found: SearchResult, options: argparse.Namespace) -> None:
    from rematch_ray.evaluation.sheet import contact_sheet

    title = options.query or str(options.image)
    contact_sheet(found, options.out, title=title, media_root=options.media_root)
    print(f"contact sheet: {options.out}", file=sys.stderr)
