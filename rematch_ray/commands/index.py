"""Build an index from embedding shards, change it, describe it, or verify it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rematch_ray.commands.parser import OneLineParser, add_json_argument, positive_number
from rematch_ray.errors import UserError


def add_arguments(parser: OneLineParser) -> None:
    """Add what ``rematch-ray index`` takes."""
    parser.has_actions = True
    actions = parser.add_subparsers(dest="action", required=True, metavar="<action>")
    build = actions.add_parser("build", help="embedding shards -> index directory")
    build.add_argument("--embeddings", type=Path, required=True, metavar="DIR")
    build.add_argument("--out", type=Path, required=True, metavar="DIR")
    build.add_argument(
        "--shards",
        type=positive_number,
        metavar="N",
        help="split it into N, built on a Ray cluster",
    )
    add = actions.add_parser("add", help="add documents; those whose ids are there are replaced")
    add.add_argument("--index", type=Path, required=True, metavar="DIR")
    add.add_argument("--embeddings", type=Path, required=True, metavar="DIR")
    delete = actions.add_parser("delete", help="delete documents by their ids")
    delete.add_argument("--index", type=Path, required=True, metavar="DIR")
    delete.add_argument("ids", nargs="*", metavar="ID")
    delete.add_argument(
        "--ids-from", metavar="FILE", help="a file with an id on each line; - reads standard input"
    )
    for action, claim in (
        ("merge", "make one segment of many, without deleted documents: smaller and faster"),
        ("info", "what an index holds: documents, ladder, model, bytes"),
        ("verify", "read every file of an index and check it against its manifest"),
    ):
        actions.add_parser(action, help=claim).add_argument(
            "--index", type=Path, required=True, metavar="DIR"
        )
    for parser_of_action in actions.choices.values():
        add_json_argument(parser_of_action)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run one action; returns what it reports."""
    if options.action == "build":
        return _build(options)
    if options.action in ("add", "delete", "merge"):
        return _change(options)
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


def _change(options: argparse.Namespace) -> dict[str, Any]:
    from rematch_ray.index.shard_changes import add_documents, delete_documents, merge_segments

    if options.action == "add":
        change = add_documents(options.index, options.embeddings)
        done = f"{change.added} added, {change.replaced} replaced"
    elif options.action == "delete":
        change = delete_documents(options.index, _ids(options))
        done = f"{change.deleted} deleted, {change.unknown} were not there"
    else:
        change = merge_segments(options.index)
        done = f"{change.merged} segments made one" if change.merged else "nothing to merge"
    live = change.info.documents
    print(f"{options.index}: {done}; {live} documents now", file=sys.stderr)
    return change.to_json()


def _ids(options: argparse.Namespace) -> list[str]:
    """The ids of the command line and of a file, which may hold empty lines.

    Raises:
        UserError: no id, or the file cannot be read.
    """
    ids: list[str] = list(options.ids)
    if options.ids_from is not None:
        try:
            text = (
                sys.stdin.read() if options.ids_from == "-" else Path(options.ids_from).read_text()
            )
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--ids-from {options.ids_from} cannot be read: {error}") from error
        ids += filter(None, text.splitlines())
    if not ids:
        raise UserError("no ids to delete: give them as arguments, or a file with --ids-from")
    return ids


def _build(options: argparse.Namespace) -> dict[str, Any]:
    from rematch_ray.workloads.build_index import build_index

    return build_index(embeddings=options.embeddings, out=options.out, shards=options.shards)
