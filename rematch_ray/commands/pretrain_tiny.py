"""Make the tiny generative base model again: captioning and Yes/No questions, training split."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rematch_ray.commands.parser import OneLineParser


def add_arguments(parser: OneLineParser) -> None:
    """Add what ``rematch-ray pretrain-tiny`` takes."""
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the base model; given again, an interrupted run in it goes on",
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Pretrain; returns the measured captioning and Yes/No accuracy."""
    from rematch_ray.workloads.pretrain_tiny import pretrain_tiny

    return pretrain_tiny(out=options.out)
