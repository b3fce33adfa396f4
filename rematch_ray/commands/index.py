"""Build an index from embedding shards, describe one, or verify one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rematch_ray.commands.parser import OneLineParser, add_json_argument
from rematch_ray.errors import UserError

NOT_BUILT = {
    "add": "add documents to an index",
    "delete": "delete documents from an index",
    "merge": "merge the segments of an index",
}


def add_arguments(parser: OneLineParser) -> None:
    """Add what ``rematch-ray index`` takes."""
    parser.has_actions = True
    actions = parser.add_subparsers(dest="action", required=True, metavar="<action>")
    build = actions.add_parser("build", help="embedding shards -> index directory")
    build.add_argument("--embeddings", type=Path, required=True, metavar="DIR")
    build.add_argument("--out", type=Path, required=True, metavar="DIR")
    build.add_argument("--shards", type=int, default=1, metavar="N", help="only 1 in this version")
    for action, claim in (
        ("info", "what an index holds: documents, ladder, model, bytes"),
        ("verify", "read every file of an index and check it against its manifest"),
    ):
        actions.add_parser(action, help=claim).add_argument(
            "--index", type=Path, required=True, metavar="DIR"
        )
    for action, claim in NOT_BUILT.items():
        actions.add_parser(action, help=f"{claim} [not available in this version]", add_help=False)
    for parser_of_action in actions.choices.values():
        add_json_argument(parser_of_action)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run one action; returns what it reports."""
    if options.action == "build":
        return _build(options)
    from rematch_ray.index.search import SearchIndex

    index = SearchIndex.open(options.index)
    if options.action == "verify":
        result = index.verify()
        print(f"{options.index}: every file agrees with its manifest", file=sys.stderr)
        return result
    info = index.info()
    for key, value in info.items():
        print(f"{key:>20}  {value}", file=sys.stderr)
    return info


def refuse(arguments: list[str]) -> None:
    """Refuse an action that is not built yet, by name, whatever its other arguments are."""
    if arguments and arguments[0] in NOT_BUILT:
        raise UserError(
            f"'index {arguments[0]}' is not available in this version; "
            "build a new index from embedding shards: 'rematch-ray index build'"
        )


def _build(options: argparse.Namespace) -> dict[str, Any]:
    if options.shards != 1:
        raise UserError(
            f"--shards {options.shards}: this version builds 1 shard; leave --shards out"
        )
    from rematch_ray.workloads.build_index import build_index

    return build_index(embeddings=options.embeddings, out=options.out)
