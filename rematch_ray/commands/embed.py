"""Embed a corpus, or queries, to Parquet shards with a manifest.

Streams Items from Parquet through the cluster; bad rows are named in quarantine.parquet, and a run
that was interrupted goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rematch_ray.commands.parser import OneLineParser, add_overrides


def add_arguments(parser: OneLineParser) -> None:
    """Add what ``rematch-ray embed`` takes."""
    parser.add_argument(
        "--model", type=Path, required=True, metavar="CKPT", help="an export, or a run directory"
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        action="append",
        metavar="PATH",
        help="Parquet of Items, a file or a directory; repeatable",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--side", choices=("query", "document"), default="document")
    parser.add_argument(
        "--instruction",
        metavar="TEXT",
        help='default: the one recorded with the model; "" for none',
    )
    add_overrides(parser, "embed")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Embed; returns counts, paths and timing."""
    from rematch_ray.config import EmbedSettings, read_settings
    from rematch_ray.workloads.embed import embed

    return embed(
        model=options.model,
        data=options.data,
        out=options.out,
        side=options.side,
        instruction=options.instruction,
        settings=read_settings(EmbedSettings, None, options.overrides),
    )
