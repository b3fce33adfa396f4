"""Measure quality against cost at every budget: a table, a JSON report and plots."""

from __future__ import annotations

import argparse
from typing import Any

from rematch_ray.commands.parser import OneLineParser, add_config_arguments


def add_arguments(parser: OneLineParser) -> None:
    """Add what ``rematch-ray evaluate`` takes."""
    add_config_arguments(parser, "evaluate")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluate; returns the workload's result."""
    from rematch_ray.config import read_evaluation
    from rematch_ray.workloads.evaluate import evaluate

    return evaluate(read_evaluation(options.config, options.overrides))
