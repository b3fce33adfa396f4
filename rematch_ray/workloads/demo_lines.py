"""What the demo prints at its end, as lines of text.

Formats plain results; measures and decides nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rematch_ray.evaluation.checks import demo_checks
from rematch_ray.evaluation.report import difference_lines, plain_table, table_rows

SHOWN_HITS = 3
SHOWN_DIFFERENCE = "hit@1"
SKILLS = {"caption_loss": "{:.2f}", "caption_exact": "{:.1%}", "question_accuracy": "{:.1%}"}


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """One task: every rung beside chance and the blind ceiling, then differences and parts.

    Of the differences between rungs only the best hit's is shown; report.md has all of them.
    """
    pairs = report["differences"].items()
    first = {pair: {SHOWN_DIFFERENCE: metrics[SHOWN_DIFFERENCE]} for pair, metrics in pairs}
    return [
        plain_table(table_rows(report)),
        *difference_lines({**report, "differences": first}),
        *_slice_lines(report),
        *_matching_lines(report),
        "",
    ]


def _slice_lines(report: Mapping[str, Any]) -> list[str]:
    rung = next(reversed(report["rungs"]))
    return [
        f"{report['task']}, {name} ({part['queries']} queries), {rung}: "
        f"R@1 {100 * part['recall@1']:.1f}  R@10 {100 * part['recall@10']:.1f}"
        for name, part in report["rungs"][rung].get("slices", {}).items()
    ]


def _matching_lines(report: Mapping[str, Any]) -> list[str]:
    if "matching" not in report:
        return []
    rows = [["matching stage: view", "Yes/No right", "ranked right", "worst swap"]]
    rows += [
        [name, *(f"{100 * view[key]:.1f}" for key in ("accuracy", "ranked", "worst_kind"))]
        for name, view in report["matching"]["views"].items()
    ]
    return ["", plain_table(rows)]


def check_lines(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the demo promises: how much of it was reached, and every promise that was missed."""
    checks = demo_checks(reports)
    missed = [f"  {check}" for check in checks if not check.passed]
    return [f"targets reached: {len(checks) - len(missed)} of {len(checks)}", *missed, ""]


def skill_lines(skill: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """What the base could write and answer, and what is left of it after training."""
    rows = [["generative skill", "caption loss", "captions exact", "Yes/No right"]]
    for part, measured in skill.items():
        for when, values in measured.items():
            rows.append(
                [f"{part}, {when}", *(form.format(values[n]) for n, form in SKILLS.items())]
            )
    return [plain_table(rows), ""]


def answer_lines(question: Mapping[str, Any], answer: Mapping[str, Any]) -> list[str]:
    """One question and its first hits; the right one carries a mark."""
    lines = [
        f'"{question["text"]}" ({question["what"]}): budget {answer["budget"]}, '
        f"{answer['scored']} documents scored, {answer['http_ms']:.0f} ms over HTTP"
    ]
    for place, hit in enumerate(answer["results"][:SHOWN_HITS], start=1):
        mark = "  <- right" if hit["id"] in question["right"] else ""
        lines.append(
            f"  {place}. {hit['score']:.3f}  {hit['payload'].get('name', hit['id'])}{mark}"
        )
    return lines


def time_line(seconds: Mapping[str, float]) -> str:
    """How long every stage took, and all together."""
    parts = "  ".join(f"{stage} {value:.0f}" for stage, value in seconds.items())
    return f"seconds: {parts}  (together {sum(seconds.values()):.0f})"


def server_lines(index: str, media: str, sheet: str) -> Sequence[str]:
    """Where the picture is, and how to serve what was built."""
    return [
        f"pictures of the answers: {sheet}",
        f"serve it: rematch-ray serve --index {index} --media-root {media}",
    ]
