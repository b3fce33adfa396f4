"""Train an embedder from a run configuration; writes a run directory (best/, last/, checkpoints).

A run that was interrupted goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
from typing import Any

from rematch_ray.commands.parser import OneLineParser, add_config_arguments


def add_arguments(parser: OneLineParser) -> None:
    """Add what ``rematch-ray train`` takes."""
    add_config_arguments(parser, "run")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train; returns the workload's result."""
    from rematch_ray.config import read_run
    from rematch_ray.workloads.train import train

    return train(read_run(options.config, options.overrides))
