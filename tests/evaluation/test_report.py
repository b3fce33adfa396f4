"""Tables, files and pictures of a report."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rematch_ray.evaluation.budgets import evaluate_scores
from rematch_ray.evaluation.report import (
    coarse_rows,
    difference_lines,
    markdown_table,
    plain_table,
    plot_cost,
    table_rows,
    write_reports,
)
from rematch_ray.evaluation.sheet import TILE, contact_sheet
from rematch_ray.index.hits import Hit, SearchResult
from tests.evaluation.made_task import make_task


@pytest.fixture
def report() -> dict:
    generator = np.random.default_rng(0)
    scores = {name: generator.random((12, 40)) for name in ("fused", "1x1", "4x8")}
    made = evaluate_scores(make_task(), scores)
    for cost, measured in enumerate(made["rungs"].values(), start=1):
        measured |= {"bytes_per_document": 1024 * cost, "ms_per_query": 0.5 * cost}
    return made


def result(hits: list[Hit]) -> SearchResult:
    return SearchResult(hits, "4x8", 10, [], 10, 10, "float", True, "generation-000001")


def test_the_table_has_a_line_per_rung_and_ends_with_chance_and_the_ceiling(report: dict) -> None:
    rows = table_rows(report)
    assert [row[0] for row in rows] == ["toy", "fused", "1x1", "4x8", "chance", "blind ceiling"]
    assert rows[0][1:] == [
        "R@1", "R@10", "nDCG@10", "in family", "worst swap", "bytes/doc", "ms/query",
    ]  # fmt: skip
    assert rows[3][-2:] == ["3,072", "1.50"]
    assert rows[4][1:3] == ["2.5", "25.0"]
    assert rows[4][-2:] == ["-", "-"]


def test_plain_and_markdown_tables_hold_the_same_cells(report: dict) -> None:
    rows = table_rows(report)
    plain = [line.split("  ") for line in plain_table(rows).splitlines()]
    markdown = markdown_table(rows).splitlines()
    assert len(plain) == len(rows) == len(markdown) - 1
    for row, line in zip(rows[1:], markdown[2:]):
        assert [cell.strip() for cell in line.strip("|").split("|")] == row


def test_differences_are_told_with_their_intervals(report: dict) -> None:
    lines = difference_lines(report)
    assert any(line.startswith("toy: 4x8 - 1x1, Hit@1: ") for line in lines)
    assert all("95 % interval" in line for line in lines)


def test_coarse_choices_are_listed_where_the_corpus_is_large_enough(report: dict) -> None:
    assert coarse_rows(report) == []
    interval = {"mean": 0.8, "low": 0.75, "high": 0.85, "level": 0.95, "queries": 9}
    coarse = {"truth": "16x64", "k": 10, "candidates": 100, "recall": {"fused": interval}}
    assert coarse_rows({**report, "coarse": coarse}) == [
        ["best 10 at 16x64 among 100 candidates", "kept", "95 % interval"],
        ["fused", "80.0", "75.0 to 85.0"],
    ]


def test_reports_are_written_for_programs_and_people(report: dict, tmp_path: Path) -> None:
    files = write_reports([report], tmp_path / "out")
    assert json.loads(Path(files["json"]).read_text()) == [report]
    assert "| toy | R@1 |" in Path(files["markdown"]).read_text()


def test_the_plot_is_a_picture(report: dict, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = plot_cost([report], tmp_path / "plots" / "cost.png")
    with Image.open(out) as picture:
        assert picture.width > 500


def test_the_sheet_shows_pictures_where_there_are_any(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "red.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    hits = [
        Hit("a", 0.9, {"name": "red", "media": "red.png"}),
        Hit("b", 0.5, {"name": "broken", "media": "broken.png"}),
        Hit("c", 0.1, {"uri": "https://example.org/c.png"}),
    ]
    out = contact_sheet(
        [result(hits), result([])],
        tmp_path / "sheet.png",
        title=["an otter\nwith a very long name " * 20, "nothing"],
        media_root=tmp_path,
        highlight=[frozenset({"a"}), frozenset()],
    )
    with Image.open(out) as sheet:
        assert sheet.mode == "RGB"
        assert sheet.height > 2 * TILE
        assert sheet.getpixel((220 + TILE // 2, 8 + TILE // 2)) == (255, 0, 0)
        assert sheet.getpixel((221, 9)) == (42, 157, 58)


def test_one_result_takes_one_title(tmp_path: Path) -> None:
    assert contact_sheet(result([Hit("a", 1.0, {})]), tmp_path / "one.png", title="one").is_file()
    with pytest.raises(ValueError, match="2 titles for 1 results"):
        contact_sheet(result([]), tmp_path / "two.png", title=["one", "two"])
