"""Find hard negatives for training rows and write the same rows with them.

Searches an index of documents with each row's query and keeps what ranks high and is not right.
The output is Parquet of training rows: name it under data.sources of `rematch-ray train`. A run
that was interrupted goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rematch_ray.commands.parser import OneLineParser, add_overrides


def add_arguments(parser: OneLineParser) -> None:
    """Add what ``rematch-ray mine`` takes."""
    parser.add_argument(
        "--model", type=Path, required=True, metavar="CKPT", help="an export, or a run directory"
    )
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="PATH",
        help="training rows in any format, a file, a directory or a URI; repeatable",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="training rows with their negatives"
    )
    parser.add_argument(
        "--corpus",
        type=Path,
        action="append",
        metavar="PATH",
        help="Parquet of Items to mine from; repeatable; default: the rows' own documents",
    )
    parser.add_argument(
        "--index",
        type=Path,
        metavar="DIR",
        help="an index of --corpus made with --model, so that nothing of it is embedded again",
    )
    add_overrides(parser, "mine")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Mine; returns counts, paths and timing."""
    from rematch_ray.config import MineSettings, read_settings
    from rematch_ray.workloads.mine import mine

    return mine(
        model=options.model,
        data=options.data,
        out=options.out,
        corpus=options.corpus,
        index=options.index,
        settings=read_settings(MineSettings, None, options.overrides),
    )
