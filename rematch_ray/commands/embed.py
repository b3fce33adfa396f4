"""Embed a corpus, or queries, to Parquet shards with a manifest.

Streams rows of any known format through the cluster; bad rows are named in quarantine.parquet. A
run that was interrupted goes on when the same command is given again, and a later one embeds only
what is new or changed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rematch_ray.commands.parser import (
    OneLineParser,
    add_overrides,
    positive_number,
    reader_overrides,
)


def add_arguments(parser: OneLineParser) -> None:
    """Add what ``rematch-ray embed`` takes."""
    parser.add_argument(
        "--model", type=Path, required=True, metavar="CKPT", help="an export, or a run directory"
    )
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="PATH",
        help="a file, a directory or a URI, in any format that is read; repeatable",
    )
    parser.add_argument(
        "--format", metavar="NAME", help="format of the data; default: detected from the files"
    )
    parser.add_argument(
        "--columns",
        metavar="ROLES",
        help="which column is what: text=caption,image=img,id=key (+ between several)",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="directory to write, no URI; on a cluster one that every node sees",
    )
    parser.add_argument(
        "--side",
        choices=("query", "document"),
        default="document",
        help="which of the model's banks the rows are for (document)",
    )
    parser.add_argument(
        "--instruction",
        metavar="TEXT",
        help='default: the one recorded with the model; "" for none',
    )
    parser.add_argument(
        "--dtype", choices=("float16", "int8"), help="type of the stored vectors (store_dtype)"
    )
    parser.add_argument(
        "--num-vectors",
        type=positive_number,
        metavar="N",
        help="store the first N vectors of each item, as many as a rung has (num_vectors)",
    )
    add_overrides(parser, "embed")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Embed; returns counts, paths and timing."""
    from rematch_ray.config import EmbedJobSettings, read_settings
    from rematch_ray.workloads.embed import embed

    reader = reader_overrides(options, "reader.")
    flags = {"store_dtype": options.dtype, "num_vectors": options.num_vectors}
    stored = [f"{key}={value}" for key, value in flags.items() if value]
    settings = read_settings(EmbedJobSettings, None, [*reader, *stored, *options.overrides])
    return embed(
        model=options.model,
        data=options.data,
        out=options.out,
        side=options.side,
        instruction=options.instruction,
        settings=settings,
        reader=settings.reader,
    )
