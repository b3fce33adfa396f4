"""Reading what was found: two budgets side by side, and what one score is made of."""

import numpy as np
import pytest

from rematch_ray.serve.backend import OverloadedError
from tests.serve.gallery import Gallery
from tests.serve.page.browser import Open, expect, hits

pytestmark = pytest.mark.browser


def move_to(by: int | None) -> str:
    if not by:
        return "not in A" if by is None else "="
    return f"{'▲' if by > 0 else '▼'} {abs(by)}"


def test_two_budgets_side_by_side_show_what_is_shared_and_what_moved(
    visit: Open, gallery: Gallery
) -> None:
    page = visit("/#q=a+blue+star&budget=1x1&k=12")
    expect(hits(page)).to_have_count(12)
    page.get_by_role("switch", name="Compare two budgets").check()
    rows = page.locator(".row")
    expect(rows).to_have_count(24)
    assert [plan.budget for plan in gallery.plans] == ["1x1", "1x1", "16x64"]
    first, second = (
        page.locator(f".column >> nth={side} >> .row").evaluate_all(
            "rows => rows.map((row) => [row.dataset.id, row.querySelector('.move').textContent])"
        )
        for side in (0, 1)
    )
    places = {name: place for place, (name, _) in enumerate(first)}
    for place, (name, move) in enumerate(second):
        by = places[name] - place if name in places else None
        assert move == move_to(by)
    shared = len(places.keys() & {name for name, _ in second})
    assert 0 < shared < 12
    expect(page.locator(".gutter path")).to_have_count(shared)
    expect(page.locator(".row.shared")).to_have_count(2 * shared)
    expect(page.get_by_role("status")).to_contain_text(f"{shared} of 12 hits shared")
    expect(page.locator(".costs .stages")).to_have_count(2)
    page.locator(".column").first.locator(".row.shared").first.hover()
    expect(page.locator(".lit")).to_have_count(3)  # both rows and their line


def test_a_side_that_is_refused_says_so_beside_the_one_that_is_not(
    visit: Open, gallery: Gallery
) -> None:
    gallery.failure = OverloadedError("no room for 16x64 now", code="budget_unavailable")
    gallery.failing_budget = "16x64"
    page = visit("/#q=a+blue+star&budget=auto&b=16x64&k=6")
    expect(page.locator(".column").first.locator(".row")).to_have_count(6)
    expect(page.locator(".column").last).to_contain_text("no room for 16x64 now")


def test_the_heat_map_shows_what_the_score_is_made_of(visit: Open, gallery: Gallery) -> None:
    page = visit("/#q=a+blue+star&budget=4x8&k=6")
    hits(page).nth(1).locator(".name").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".heat")).to_be_visible()
    plan = gallery.plans[-1]
    assert (plan.with_explain, plan.top_k, plan.budget) == (True, 6, "4x8")
    assert not gallery.plans[0].with_explain
    dialog.get_by_text("As a table").click()
    cells = dialog.locator(".numbers tbody tr").evaluate_all(
        "rows => rows.map((row) => [...row.cells].slice(2).map((cell) => +cell.innerText))"
    )
    matrix = np.array(cells)
    assert matrix.shape == (4, 8)
    score = float(dialog.locator(".document dd").nth(1).inner_text().split()[0])
    assert matrix.max(axis=1).mean() == pytest.approx(score, abs=0.01)
    assert dialog.locator(".heat g").first.locator("rect").count() == 32
    assert dialog.locator(".best circle").count() == 4


def test_a_cell_is_read_by_pointer_and_by_key_and_the_focus_comes_back(visit: Open) -> None:
    page = visit("/#q=a+blue+star&budget=4x8&k=6")
    hits(page).first.locator(".name").click()
    readout = page.locator(".readout")
    cell = page.locator(".heat g").first.locator("rect").nth(8 + 2)
    cell.hover()
    expect(readout).to_contain_text("query vector 2, document vector 3: ")
    board = page.get_by_role("application")
    board.focus()
    for key in ("Home", "ArrowUp", "ArrowRight"):
        page.keyboard.press(key)
    expect(readout).to_contain_text("query vector 1, document vector 2: ")
    page.keyboard.press("Enter")
    expect(readout).to_contain_text("the best of its row")
    page.keyboard.press("ArrowUp")  # the edge holds
    expect(readout).to_contain_text("query vector 1,")
    page.keyboard.press("Tab")
    expect(board).not_to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(hits(page).first.locator(".name")).to_be_focused()
