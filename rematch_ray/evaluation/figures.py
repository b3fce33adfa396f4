"""Matplotlib, asked for only by what draws: it is an extra (`eval`; `dev` has it)."""

from __future__ import annotations

from typing import Any

from rematch_ray.errors import UserError


def figure_class() -> Any:
    """Matplotlib's figure.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise UserError("plots need matplotlib: pip install 'rematch-ray[eval]'") from missing
    return Figure
