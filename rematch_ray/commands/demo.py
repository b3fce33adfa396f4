"""Walk the whole path on the shipped corpus: train, embed, index, evaluate, serve three queries.

Call it from the root of a checkout, whose jobs/configs it follows; it writes into demo-run/. Steps
that an earlier run finished are skipped; the last line says how to start the server.
"""

from __future__ import annotations

import argparse
from typing import Any

from rematch_ray.commands.parser import OneLineParser


def add_arguments(parser: OneLineParser) -> None:
    """Add what ``rematch-ray demo`` takes."""
    parser.add_argument("--quick", action="store_true", help="the same path in two minutes")
    parser.add_argument("--fresh", action="store_true", help="redo what an earlier run finished")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the demo; returns its table and where everything lies."""
    from rematch_ray.workloads.demo import demo

    return demo(quick=options.quick, fresh=options.fresh)
