"""The doctor's findings for people: a table, plain advice, and a plot of quality against cost.

Reads a calibration; measures nothing. Middle floor; matplotlib is asked for only by
`plot_calibration` (extras `eval` and `dev`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rematch_ray.evaluation.figures import figure_class
from rematch_ray.index.calibration import Calibration, Row
from rematch_ray.index.choice import AUTO_RECALL, Choice, Table, choose_plan
from rematch_ray.index.wish import Wish
from rematch_ray.scoring.budget import Budget, Ladder

# coarse choices are compared at this many candidates, or the next count below that was measured
COMPARED_AT = 1000
# differences below this are not worth a sentence
_WORTH = 0.01


def auto_choice(calibration: Calibration, ladder: Ladder) -> Choice:
    """What an unfiltered `auto` search of the calibrated index runs."""
    return choose_plan(
        Wish(budget=None, candidates="auto", coarse=None, top_k=calibration.k),
        ladder,
        Table("", calibration, None),
        num_allowed=calibration.standing.live,
        default_coarse="first",
    )


def calibration_rows(calibration: Calibration, ladder: Ladder) -> list[list[str]]:
    """The plans worth having as rows of text, the header first; `auto` marks what it runs."""
    k, chosen = calibration.k, auto_choice(calibration, ladder).plan
    ks = list(calibration.rows[0].recall)
    header = ["plan", *(f"R@{at}" for at in ks), f"R@{k} low", "dot products", "ms", "p95", ""]
    rows = [header]
    front = [row for row in calibration.rows if row.front or row.plan == chosen]
    for row in sorted(front, key=lambda row: row.ms.median):
        recalls = [f"{100 * row.recall[at].mean:.1f}" for at in ks]
        low = f"{100 * row.recall[k].low:.1f}"
        cost = [f"{row.dot_products:,}", f"{row.ms.median:.2f}", f"{row.ms.p95:.2f}"]
        mark = "auto" if row.plan == chosen else ""
        rows.append([str(row.plan), *recalls, low, *cost, mark])
    return rows


def advice(calibration: Calibration, ladder: Ladder) -> list[str]:
    """What follows from the numbers, in sentences."""
    return [
        *_auto_lines(calibration, ladder),
        *_coarse_lines(calibration, ladder.top),
        *_budget_lines(calibration, ladder.top),
        *_matching_lines(calibration),
    ]


def _auto_lines(calibration: Calibration, ladder: Ladder) -> list[str]:
    choice, k = auto_choice(calibration, ladder), calibration.k
    row = next((row for row in calibration.rows if row.plan == choice.plan), None)
    if row is None:
        return ["no measured plan fits: 'auto' goes by counts, as without a calibration"]
    everything = _find(calibration, ladder.top, None)
    exhaustive = (
        f"; scoring everything takes {everything[0].ms.median:.1f} ms" if everything else ""
    )
    found = f"recall@{k} {_percent(row.recall[k].mean)}, at least {_percent(row.recall[k].low)}"
    lines = [f"by this table 'auto' runs {row.plan}: {found}, {row.ms.median:.1f} ms{exhaustive}"]
    if row.recall[k].low < AUTO_RECALL:
        lines.append(
            f"no plan short of scoring everything is sure to reach {_percent(AUTO_RECALL)}: a "
            "target_recall above what was measured scores everything; more queries narrow the "
            "interval"
        )
    return lines


def _coarse_lines(calibration: Calibration, top: Budget) -> list[str]:
    k = calibration.k
    direct = [
        row
        for row in calibration.rows
        if row.plan.budget == top and row.plan.coarse is not None and not row.plan.narrowing
    ]
    counts = {row.plan.coarse_candidates or 0 for row in direct}
    if not counts:
        return []
    count = max((c for c in counts if c <= COMPARED_AT), default=min(counts))
    at = {str(r.plan.coarse): r.recall[k].mean for r in direct if r.plan.coarse_candidates == count}
    best = max(at, key=lambda name: at[name])
    where = f"at {count:,} candidates"
    lines = [
        f"coarse '{name}' misses {_percent(1 - found)} of the best {k} {where}, '{best}' "
        f"{_percent(1 - at[best])}: use '{best}'"
        for name, found in at.items()
        if found < at[best] - _WORTH
    ]
    if len(at) > 1 and not lines:
        lines.append(f"coarse choices differ by less than {_percent(_WORTH)} of recall {where}")
    if at[best] < AUTO_RECALL:
        most = max(row.recall[k].mean for row in direct)
        lines.append(
            f"the best coarse choice misses {_percent(1 - at[best])} {where} and "
            f"{_percent(1 - most)} at the most candidates tried"
        )
    return lines


def _budget_lines(calibration: Calibration, top: Budget) -> list[str]:
    if calibration.ndcg is None:
        return []
    lines = []
    at = calibration.ndcg["k"]
    for name, measured in calibration.ndcg["rungs"].items():
        if name == str(top):
            continue
        share = _percent(Budget.parse(name).dot_products / top.dot_products)
        loss = measured["loss"]
        ends = f"95 % interval {100 * loss['low']:+.1f} to {100 * loss['high']:+.1f}"
        if loss["low"] > 0:
            verdict = f"loses {100 * loss['mean']:.1f} points of nDCG@{at} against {top} ({ends})"
        elif loss["high"] < 0:
            verdict = f"gains {-100 * loss['mean']:.1f} points of nDCG@{at} over {top} ({ends})"
        else:
            verdict = f"loses nothing measurable of nDCG@{at} against {top} ({ends})"
        lines.append(f"{name} {verdict} at {share} of the dot products")
    return lines


def _matching_lines(calibration: Calibration) -> list[str]:
    measured = calibration.matching
    if measured is None:
        return []
    gain = measured["gain"]
    if gain is None or measured["lambda"] == 0 or gain["low"] <= 0:
        return ["matching head: no measured gain, leave it off"]
    ends = f"{100 * gain['low']:+.1f} to {100 * gain['high']:+.1f}"
    return [
        f"matching head: {100 * gain['mean']:+.1f} points of nDCG@{measured['k']} (95 % interval "
        f"{ends}) at lambda {measured['lambda']:g} over the best {measured['candidates']}"
    ]


def plot_calibration(calibration: Calibration, ladder: Ladder, out: Path) -> Path:
    """Plots recall against time for every plan, and nDCG against cost per budget where measured.

    Args:
        calibration: what was measured.
        ladder: the index's.
        out: image file; the ending chooses the format.

    Returns:
        `out`.

    Raises:
        UserError: matplotlib is not installed.
    """
    panels = 1 if calibration.ndcg is None else 2
    figure = figure_class()(figsize=(6.4 * panels, 4.4), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _draw_recall(axes[0], calibration, ladder)
    if calibration.ndcg is not None:
        _draw_ndcg(axes[1], calibration)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    return out


def _draw_recall(axes: Any, calibration: Calibration, ladder: Ladder) -> None:
    k = calibration.k
    for coarse in dict.fromkeys(row.plan.coarse for row in calibration.rows):
        rows = [row for row in calibration.rows if row.plan.coarse == coarse]
        where = [[row.ms.median for row in rows], [100 * row.recall[k].low for row in rows]]
        label = "all documents" if coarse is None else f"coarse {coarse}"
        axes.scatter(*where, s=14, alpha=0.6, label=label, marker="s" if coarse is None else "o")
    front = sorted((row for row in calibration.rows if row.front), key=lambda row: row.ms.median)
    ends = [100 * row.recall[k].low for row in front]
    axes.plot([row.ms.median for row in front], ends, color="grey", linewidth=1, label="fitted")
    chosen = auto_choice(calibration, ladder).plan
    for row in calibration.rows:
        if row.plan == chosen:
            star = ([row.ms.median], [100 * row.recall[k].low])
            axes.plot(*star, marker="*", markersize=13, color="black", linestyle="", label="auto")
    axes.axhline(100 * AUTO_RECALL, color="grey", linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("ms per query (median, log scale)")
    axes.set_ylabel(f"recall@{k}, lower end of the 95 % interval (%)")
    axes.set_title(f"plans: {calibration.queries['reported']} queries reported", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw_ndcg(axes: Any, calibration: Calibration) -> None:
    assert calibration.ndcg is not None
    rungs = calibration.ndcg["rungs"]
    ladder = {name: rung for name, rung in rungs.items() if name != "fused"}
    fused = [name for name in rungs if name == "fused"]
    for names, style, lift in ((list(ladder), "o-", 5), (fused, "*", -11)):
        costs = [Budget.parse(name).dot_products for name in names]
        means = [100 * rungs[name]["mean"] for name in names]
        spread = [
            [100 * (rungs[name]["mean"] - rungs[name]["low"]) for name in names],
            [100 * (rungs[name]["high"] - rungs[name]["mean"]) for name in names],
        ]
        if names:
            axes.errorbar(costs, means, yerr=spread, fmt=style, capsize=2)
        for name, x, y in zip(names, costs, means, strict=True):
            axes.annotate(name, (x, y), textcoords="offset points", xytext=(5, lift), fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("dot products per document (log scale)")
    axes.set_ylabel(f"nDCG@{calibration.ndcg['k']} (%)")
    axes.set_title(f"budgets: {calibration.ndcg['queries']} judged queries", fontsize=10)
    axes.grid(alpha=0.3)


def _find(calibration: Calibration, budget: Budget, coarse: str | None) -> Sequence[Row]:
    return [r for r in calibration.rows if r.plan.budget == budget and r.plan.coarse == coarse]


def _percent(share: float) -> str:
    """A share for a sentence.

    >>> _percent(0.0712), _percent(0.9951)
    ('7.1 %', '99.5 %')
    """
    return f"{100 * share:.1f} %"
