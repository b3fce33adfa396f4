"""The overload measurement as a figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from arms.overload import Overload, Point

COLOURS = {"controller on": "#1b6ca8", "controller off": "#c0392b"}


def plot_overload(found: Overload, file: Path) -> None:
    """Draws latency, results in time, budgets and quality over the rate of arrivals.

    Args:
        found: what was measured.
        file: PNG or SVG, by its suffix.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(2, 2, figsize=(10.5, 7), sharex=True)
    _lines(axes[0, 0], found, lambda point: point.p99, "99th percentile, ms", dashed="p50")
    axes[0, 0].axhline(2 * found.unloaded_p99, color="#888", linestyle=":", linewidth=1)
    axes[0, 0].set_yscale("log")
    # of arrivals by chance a few more, or fewer, may have come
    _lines(
        axes[0, 1],
        found,
        lambda point: min(1.0, point.good_per_s / point.rate),
        "answered in time, share of the rate aimed at",
    )
    _lines(axes[1, 0], found, lambda point: point.ndcg, "nDCG@10 of what was answered")
    _budgets(axes[1, 1], found)
    for axis in axes.flat:
        axis.axvline(found.capacity, color="#888", linewidth=1)
        axis.axvline(found.floor_capacity, color="#888", linewidth=1, linestyle="--")
        axis.grid(alpha=0.25)
    # the steps below capacity are as far apart as those around what the floor bears
    axes[0, 0].set_xscale("log")
    axes[0, 0].xaxis.set_major_locator(ticker.FixedLocator(_ticks(found)))
    axes[0, 0].xaxis.set_major_formatter(ticker.ScalarFormatter())
    axes[0, 0].xaxis.set_minor_locator(ticker.NullLocator())
    for axis in axes[1]:
        axis.set_xlabel("requests/s (line: capacity, dashed: that of the floor)")
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _ticks(found: Overload) -> list[int]:
    """Round rates between the smallest and the largest."""
    rates = [point.rate for point in (*found.on, *found.off)]
    round_ones = [lead * 10**power for power in range(5) for lead in (1, 2, 5)]
    return [rate for rate in round_ones if min(rates) <= rate <= max(rates)]


def _lines(
    axis: Any, found: Overload, value: Callable[[Point], float], label: str, dashed: str = ""
) -> None:
    for (name, colour), points in zip(COLOURS.items(), (found.on, found.off), strict=True):
        rates = [point.rate for point in points]
        axis.plot(rates, [value(point) for point in points], "o-", color=colour, label=name)
        if dashed:
            middle = [getattr(point, dashed) for point in points]
            axis.plot(rates, middle, "--", color=colour, alpha=0.5, label=f"{name}, {dashed}")
    axis.set_ylabel(label)
    axis.legend(fontsize=8)


def _budgets(axis: Any, found: Overload) -> None:
    """Shares of the budgets with the controller on, and of what was refused, stacked."""
    from matplotlib import colormaps

    names = sorted(
        {name for point in found.on for name in point.budgets},
        key=lambda name: -_dot_products(name),
    )
    rates = [point.rate for point in found.on]
    answered = [1 - point.refused - point.failed for point in found.on]
    layers = [
        [point.budgets.get(name, 0.0) * share for point, share in zip(found.on, answered)]
        for name in names
    ]
    layers.append([1 - share for share in answered])
    colours = [colormaps["viridis"](1 - n / max(1, len(names))) for n in range(len(names))]
    axis.stackplot(rates, layers, labels=[*names, "no result"], colors=[*colours, "#c0392b"])
    axis.set_ylabel("budget used, controller on")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _dot_products(name: str) -> int:
    """Of a rung's text; what is no rung comes last."""
    one, times, other = name.partition("x")
    return int(one) * int(other) if times and one.isdigit() and other.isdigit() else 0
