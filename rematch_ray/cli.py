"""The command line: ``rematch-ray <verb>``.

Finds the verb, runs it and turns its outcome into what a shell expects: human text on stderr, with
``--json`` one JSON object as the last line of stdout, exit code 0 (done), 2 (the user's mistake),
1 (anything else) or 130 (Ctrl-C). What a verb takes and does stands in ``rematch_ray.commands``;
a verb's module is loaded only when it is called.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from rematch_ray import __version__
from rematch_ray.commands import interruption
from rematch_ray.commands.closing import end_descendants
from rematch_ray.commands.parser import EXIT_MISTAKE, OneLineParser, add_json_argument
from rematch_ray.errors import UserError

EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130

# libraries read these once, at import; whoever sets them keeps their own value
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Verb:
    """One verb of the command line.

    Attributes:
        claim: what it does, in one line of ``--help``.
        module: its module under ``rematch_ray.commands``.
    """

    claim: str
    module: str


VERBS = {
    "demo": Verb(
        "walk the whole path on the shipped corpus, ending with a table and a query", "demo"
    ),
    "pretrain-tiny": Verb("make the tiny generative base model again", "pretrain_tiny"),
    "train": Verb("train an embedder from a run configuration", "train"),
    "mine": Verb("find hard negatives for training rows", "mine"),
    "embed": Verb("embed a corpus, or queries, to shards with a manifest", "embed"),
    "index": Verb("build, change, describe or verify an index", "index"),
    "search": Verb("search an index by text, image or both, without a server", "search"),
    "evaluate": Verb("measure quality against cost at every budget", "evaluate"),
    "doctor": Verb("measure recall and latency of search plans on your queries", "doctor"),
    "plan": Verb("bytes, machines and latency per budget, before anything is built", "plan"),
    "serve": Verb("serve an index over HTTP, with a search page", "serve"),
}


def top_parser() -> OneLineParser:
    """The parser of ``rematch-ray`` itself: it knows the verbs by name only."""
    width = max(map(len, VERBS)) + 2
    lines = [f"  {name:<{width}}{verb.claim}" for name, verb in VERBS.items()]
    parser = OneLineParser(
        prog="rematch-ray",
        description="Multi-vector multimodal retrieval on Ray, from pairs to a search endpoint.",
        epilog="verbs:\n"
        + "\n".join(lines)
        + "\n\n'rematch-ray <verb> --help' lists what a verb takes.\n"
        + "Exit codes: 0 done, 2 a mistake in what was given, 1 anything else, 130 interrupted.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="rematch-ray [--version] <verb> [arguments]",
    )
    parser.add_argument("--version", action="version", version=f"rematch-ray {__version__}")
    parser.add_argument("verb", choices=VERBS, metavar="<verb>", help="one of the verbs below")
    return parser


def verb_parser(name: str, command: ModuleType) -> OneLineParser:
    """The parser of one verb, with ``--json`` added to what its module takes."""
    parser = OneLineParser(
        prog=f"rematch-ray {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_json_argument(parser)
    command.add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: arguments after the program's name; None reads ``sys.argv``.

    Returns:
        The exit code: 0 done, 2 the user's mistake, 1 anything else, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    interruption.install()
    try:
        return _dispatch(arguments)
    except SystemExit as leaving:
        if leaving.code in (EXIT_DONE, EXIT_MISTAKE):  # argparse, after --help or a mistake
            return int(leaving.code)
        return _interrupted()  # while Ray is connected it handles SIGTERM itself, by leaving
    except KeyboardInterrupt:
        return _interrupted()
    except UserError as mistake:
        return _report(mistake, EXIT_MISTAKE)
    # The outermost frame: whatever is left is reported here, named, with exit code 1.
    except Exception as failure:  # noqa: BLE001
        return _report(failure, EXIT_FAILED)


def _dispatch(arguments: list[str]) -> int:
    name = top_parser().parse_args(arguments[:1]).verb
    verb = VERBS[name]
    command = import_module(f"rematch_ray.commands.{verb.module}")
    parser = verb_parser(name, command)
    # overrides may stand anywhere; sub-actions (index) cannot be parsed that way
    parse = parser.parse_args if parser.has_actions else parser.parse_intermixed_args
    options = parse(arguments[1:])
    result = command.run(options)
    if options.json:
        print(json.dumps(result, ensure_ascii=False), flush=True)
    return EXIT_DONE


def _interrupted() -> int:
    """Close Ray if it was started or starting, say one line, leave no traceback."""
    interruption.ignore()
    if ray := sys.modules.get("ray"):
        end_descendants(getattr(ray, "shutdown", _nothing))
    kept = "what was finished is kept, run the same command again to go on"
    print(f"interrupted: {kept}", file=sys.stderr, flush=True)
    return EXIT_INTERRUPTED


def _nothing() -> None:
    """What closes a Ray that was interrupted while it was imported."""


def _report(error: BaseException, code: int) -> int:
    if os.environ.get("REMATCH_RAY_DEBUG") == "1":
        traceback.print_exception(error)
        return code
    text = " ".join(str(error).split())
    label = "error" if code == EXIT_MISTAKE else f"failed: {type(error).__name__}"
    print(f"rematch-ray: {label}: {text}", file=sys.stderr, flush=True)
    if code == EXIT_FAILED:
        print(
            "rematch-ray: set REMATCH_RAY_DEBUG=1 for the stack trace", file=sys.stderr, flush=True
        )
    return code
