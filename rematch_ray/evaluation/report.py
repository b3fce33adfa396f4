"""Reports for people and programs: tables, JSON and plots of quality against cost.

Takes the plain reports of `evaluate_index`; measures nothing. Middle floor; matplotlib is asked for
only by `plot_cost` (extras `eval` and `dev`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rematch_ray.evaluation.figures import figure_class
from rematch_ray.index.manifest import write_durably

PERCENT_COLUMNS = {
    "recall@1": "R@1",
    "recall@10": "R@10",
    "hit@1": "Hit@1",
    "hit@10": "Hit@10",
    "ndcg@10": "nDCG@10",
    "family_accuracy": "in family",
    "worst_swap": "worst swap",
}
COST_COLUMNS = {"bytes_per_document": "bytes/doc", "ms_per_query": "ms/query"}
# how what the index lacks is counted
_COUNTED = {
    "relevant documents": "never found",
    "candidates": "not ranked",
    "swaps": "left out",
}
DEFAULT_METRICS = ("recall@1", "recall@10", "ndcg@10", "family_accuracy", "worst_swap")


def table_rows(
    report: Mapping[str, Any], metrics: Sequence[str] = DEFAULT_METRICS
) -> list[list[str]]:
    """One report as rows of text, the header first: every rung, then chance and the blind ceiling.

    Args:
        report: of `evaluate_index` or `evaluate_scores`.
        metrics: quality columns; one that the task does not have is left out.

    Returns:
        Rows of equal length; quality in percent.
    """
    lines = dict(report["rungs"])
    lines["chance"] = report["chance"]
    if report.get("blind") is not None:
        lines["blind ceiling"] = report["blind"]
    shown = [name for name in metrics if any(line.get(name) is not None for line in lines.values())]
    costs = [name for name in COST_COLUMNS if any(name in line for line in lines.values())]
    header = [
        report["task"],
        *(PERCENT_COLUMNS.get(name, name) for name in shown),
        *(COST_COLUMNS[name] for name in costs),
    ]
    rows = [header]
    for name, line in lines.items():
        quality = [_percent(line.get(metric)) for metric in shown]
        rows.append([name, *quality, *(_number(line.get(cost)) for cost in costs)])
    return rows


def plain_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned text, for a terminal.

    >>> print(plain_table([["a", "R@1"], ["1x1", "7.5"]]))
    a    R@1
    1x1  7.5
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table, for files.

    >>> print(markdown_table([["a", "R@1"], ["1x1", "7.5"]]))
    | a | R@1 |
    |---|--:|
    | 1x1 | 7.5 |
    """
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    rule = "|---" + "|--:" * (len(rows[0]) - 1) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def difference_lines(report: Mapping[str, Any]) -> list[str]:
    """The paired differences between rungs as sentences, in points, with their intervals."""
    lines = []
    for pair, metrics in report["differences"].items():
        for metric, interval in metrics.items():
            low, high = 100 * interval["low"], 100 * interval["high"]
            lines.append(
                f"{report['task']}: {pair}, {PERCENT_COLUMNS.get(metric, metric)}: "
                f"{100 * interval['mean']:+.1f} points "
                f"({100 * interval['level']:.0f} % interval {low:+.1f} to {high:+.1f})"
            )
    return lines


def missing_lines(report: Mapping[str, Any]) -> list[str]:
    """What the task names and the index lacks, as sentences; none where it has all."""
    lines = []
    for what, found in report["missing"].items():
        more = ", ..." if found["number"] > len(found["ids"]) else ""
        lines.append(
            f"{report['task']}: {found['number']} {what} not in the index, "
            f"{_COUNTED[what]}: {', '.join(map(repr, found['ids']))}{more}"
        )
    return lines


def coarse_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Recall of each coarse choice as rows of text, the header first; none for a small corpus."""
    coarse = report.get("coarse")
    if coarse is None:
        return []
    best = f"best {coarse['k']} at {coarse['truth']} among {coarse['candidates']} candidates"
    rows = [[best, "kept", "95 % interval"]]
    for name, interval in coarse["recall"].items():
        ends = f"{_percent(interval['low'])} to {_percent(interval['high'])}"
        rows.append([name, _percent(interval["mean"]), ends])
    return rows


def write_reports(reports: Sequence[Mapping[str, Any]], out: Path) -> dict[str, str]:
    """Writes `report.json` and `report.md` into a directory.

    Args:
        reports: one per task.
        out: directory, made when absent.

    Returns:
        Kind of file -> its path.
    """
    out.mkdir(parents=True, exist_ok=True)
    sections = []
    for report in reports:
        title = f"## {report['task']}: {report['queries']} queries, {report['documents']} documents"
        lines = "\n".join(f"- {line}" for line in missing_lines(report) + difference_lines(report))
        tables = [
            markdown_table(rows) for rows in (table_rows(report), coarse_rows(report)) if rows
        ]
        sections.append("\n\n".join([title, *tables, lines]))
    files = {"json": out / "report.json", "markdown": out / "report.md"}
    write_durably(files["json"], json.dumps(list(reports), indent=1) + "\n")
    write_durably(files["markdown"], "# Quality against cost\n\n" + "\n\n".join(sections) + "\n")
    return {kind: str(path) for kind, path in files.items()}


def plot_cost(
    reports: Sequence[Mapping[str, Any]],
    out: Path,
    *,
    metric: str = "ndcg@10",
    cost: str = "bytes_per_document",
) -> Path:
    """Plots quality against cost, one line per task through the rungs, one mark for `fused`.

    Args:
        reports: of `evaluate_index`.
        out: image file; the ending chooses the format.
        metric: quality, a metric of the reports.
        cost: `bytes_per_document`, `ms_per_query` or `dot_products`.

    Returns:
        `out`.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure = figure_class()(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for report in reports:
        rungs = {name: line for name, line in report["rungs"].items() if name != "fused"}
        costs = [line[cost] for line in rungs.values()]
        quality = [100 * line[metric] for line in rungs.values()]
        (drawn,) = axes.plot(costs, quality, marker="o", label=report["task"])
        for name, x, y in zip(rungs, costs, quality):
            axes.annotate(name, (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7)
        if "fused" in report["rungs"]:
            fused = report["rungs"]["fused"]
            axes.plot([fused[cost]], [100 * fused[metric]], marker="*", color=drawn.get_color())
    axes.set_xscale("log", base=2)
    axes.set_xlabel(f"{COST_COLUMNS.get(cost, cost)} (log scale); star: fused vector")
    axes.set_ylabel(f"{PERCENT_COLUMNS.get(metric, metric)} (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    return out


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
