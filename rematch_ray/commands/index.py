"""Build an index from embedding shards, change it, describe it, or verify it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rematch_ray.commands.parser import OneLineParser, add_json_argument, positive_number
from rematch_ray.errors import UserError

if TYPE_CHECKING:
    from rematch_ray.index.lexical.settings import LexicalSettings


def add_arguments(parser: OneLineParser) -> None:
    """Add what ``rematch-ray index`` takes."""
    parser.has_actions = True
    actions = parser.add_subparsers(dest="action", required=True, metavar="<action>")
    build = actions.add_parser("build", help="embedding shards -> index directory")
    _add_directory(build, "--embeddings", "what 'rematch-ray embed' wrote")
    _add_directory(build, "--out", "the index; given again, it goes on, or has nothing to do")
    build.add_argument(
        "--shards",
        type=positive_number,
        metavar="N",
        help="split it into N, built on a Ray cluster",
    )
    add_coarse_arguments(build)
    _add_lexical_arguments(build)
    add = actions.add_parser("add", help="add documents; those whose ids are there are replaced")
    _add_directory(add, "--index", "what is changed")
    _add_directory(add, "--embeddings", "what 'rematch-ray embed' wrote, by the same model")
    delete = actions.add_parser("delete", help="delete documents by their ids")
    _add_directory(delete, "--index", "what is changed")
    delete.add_argument("ids", nargs="*", metavar="ID", help="of the documents")
    delete.add_argument(
        "--ids-from",
        metavar="FILE",
        help="a UTF-8 file with an id on each line; - reads standard input",
    )
    for action, claim in (
        ("merge", "make one segment of many, without deleted documents: smaller and faster"),
        ("info", "what an index holds: documents, ladder, model, bytes"),
        ("verify", "read every file of an index and check it against its manifest"),
    ):
        _add_directory(actions.add_parser(action, help=claim), "--index", "an index directory")
    for parser_of_action in actions.choices.values():
        add_json_argument(parser_of_action)


def _add_directory(parser: argparse.ArgumentParser, flag: str, what: str) -> None:
    parser.add_argument(flag, type=Path, required=True, metavar="DIR", help=what)


def add_coarse_arguments(build: OneLineParser) -> None:
    """Add what decides about the coarse stage; the names are checked by the build."""
    build.add_argument(
        "--coarse",
        metavar="CHOICE",
        help="default of searches: fused, first, prefix, both, fused+prefix or all",
    )
    build.add_argument(
        "--coarse-keys",
        type=lambda text: text.split(","),
        metavar="KEYS",
        help="lists to store, for example fused,first,prefix (default: fused,first, and what "
        "--coarse needs)",
    )
    build.add_argument(
        "--coarse-kind",
        default="auto",
        metavar="KIND",
        help="auto (by size), scan, scan4, scan1, flat, sq8, ivf, ivf_sq8, ivf_pq, ivf_rabitq, "
        "hnsw",
    )
    build.add_argument(
        "--no-originals",
        action="store_true",
        help="keep 8-bit vectors only: a third of the bytes, and no exact scores",
    )


def _add_lexical_arguments(build: argparse.ArgumentParser) -> None:
    build.add_argument(
        "--lexical",
        action="append",
        metavar="FIELD",
        help="payload field whose text is indexed for search --hybrid (text, where there is such "
        "a field); may be repeated",
    )
    build.add_argument(
        "--no-lexical", action="store_true", help="index no text, even where there is a text field"
    )
    build.add_argument(
        "--stemmer",
        metavar="LANGUAGE",
        help="cut the endings of this language off the indexed words: english, german, ...",
    )


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
    from rematch_ray.index.sharding.changes import add_documents, delete_documents, merge_segments

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
        ids += _lines_of(options.ids_from)
    if not ids:
        raise UserError("no ids to delete: give them as arguments, or a file with --ids-from")
    return ids


def _lines_of(file: str) -> list[str]:
    """The lines of a file of ids (`-`: of standard input) that are not empty."""
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"--ids-from {file} cannot be read: {error}") from error
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"--ids-from {file} is not UTF-8 ({error}): write it as UTF-8") from error
    # ids may hold what else ends a line for Python: U+2028, form feeds, ...
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [line for line in lines if line]


def _build(options: argparse.Namespace) -> dict[str, Any]:
    from rematch_ray.workloads.build_index import build_index

    return build_index(
        embeddings=options.embeddings,
        out=options.out,
        shards=options.shards,
        coarse=options.coarse,
        coarse_keys=options.coarse_keys,
        coarse_kind=options.coarse_kind,
        originals=not options.no_originals,
        lexical=_lexical(options),
    )


def _lexical(options: argparse.Namespace) -> LexicalSettings | list[str] | None:
    """What of the texts is indexed; None leaves it to the build.

    Raises:
        UserError: both to index and not to index.
    """
    if options.no_lexical:
        if options.lexical or options.stemmer:
            raise UserError("--no-lexical and --lexical or --stemmer exclude each other: give one")
        return []
    if options.stemmer is None:
        return options.lexical or None
    from rematch_ray.index.lexical.settings import DEFAULT_FIELD, LexicalSettings

    fields = options.lexical or [DEFAULT_FIELD]
    return LexicalSettings(fields=tuple(dict.fromkeys(fields)), stemmer=options.stemmer)
