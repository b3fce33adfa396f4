"""The page for everybody: keyboard, themes, stillness, phones, axe, no network."""

import re
from collections.abc import Callable

import pytest

from tests.serve.page.browser import PHONE, Open, expect, hits

pytestmark = pytest.mark.browser


def test_the_whole_way_can_be_walked_with_the_keyboard(visit: Open) -> None:
    page = visit()
    expect(page.locator("#facts")).to_be_visible()
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.type("a green ring")
    page.keyboard.press("Enter")
    expect(hits(page).first).to_be_visible()
    expect(page.locator("#text")).to_be_focused()
    order = []
    for _ in range(9):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        rings = page.evaluate(
            "[document.activeElement, document.activeElement.closest('.hit')]"
            ".map((element) => element && getComputedStyle(element).outlineStyle)"
        )
        assert "solid" in rings, f"no visible focus on {order[-1]}"
    assert order[0] == "pick"
    assert order[2:5] == ["budget", "deadline", "compare"]
    assert order[6:] == ["answer", "name", "like"] or order[6:8] == ["name", "like"]
    page.keyboard.press("Shift+Tab")
    page.locator(".hit .name").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".heat")).to_be_visible()
    seen = set()
    for _ in range(12):  # round the dialog, the heat map included: nothing holds the focus
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.className"))
        seen.add(page.evaluate("document.activeElement.tagName"))
    assert {"heat", "SUMMARY"} <= seen
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_light_and_dark_follow_the_system_until_one_is_chosen(
    visit: Open, listen: Callable[..., str]
) -> None:
    page = visit(url=listen(), color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(background)
    assert sum(map(int, re.findall(r"\d+", dark))) < 120 < sum(map(int, re.findall(r"\d+", light)))
    theme = page.get_by_role("button", name="Theme")
    theme.click()
    theme.click()
    assert theme.get_attribute("aria-label") == "Theme: dark. Change it"
    assert page.evaluate(background) == dark
    page.reload()
    assert page.evaluate(background) == dark


def test_nothing_moves_for_those_who_ask_for_it(visit: Open) -> None:
    page = visit("/#q=star", reduced_motion="reduce")
    expect(hits(page).first).to_be_visible()
    moving = page.evaluate(
        "[...document.querySelectorAll('*')].filter((element) =>"
        " parseFloat(getComputedStyle(element).transitionDuration) > 0).length"
    )
    assert moving == 0


VIEWS = ["", "#q=a+blue+star&k=6", "#q=a+blue+star&budget=1x1&b=16x64&k=12"]


@pytest.mark.parametrize("view", VIEWS)
def test_a_phone_needs_no_sideways_scrolling(visit: Open, view: str) -> None:
    page = visit(f"/{view}", size=PHONE)
    expect(page.locator(".hit, .row, #intro").first).to_be_visible()
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= PHONE["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", [*VIEWS, "dialog", "facts"])
def test_axe_finds_nothing(visit: Open, view: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    is_view = view in VIEWS
    # axe injects a script, which the page's own policy would rightly refuse
    options = {"color_scheme": scheme, "reduced_motion": "reduce", "bypass_csp": True}
    page = visit(f"/{view if is_view else VIEWS[1]}", **options)
    expect(page.locator("#facts")).to_be_visible()
    if view != "":
        expect(page.locator(".hit, .row").first).to_be_visible()
    if view == "dialog":
        hits(page).first.locator(".name").click()
        expect(page.locator(".heat")).to_be_visible()
        page.get_by_text("As a table").click()
    if view == "facts":
        page.locator("#facts summary").click()
        page.locator("#more summary").click()
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()


def test_nothing_is_fetched_from_elsewhere(visit: Open, listen: Callable[..., str]) -> None:
    url = listen()
    page = visit("/#q=a+blue+star&budget=1x1&b=16x64", url=url)
    expect(page.locator(".row").first).to_be_visible()
    loaded = page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert len(loaded) > 20
    assert all(name.startswith((url, f"blob:{url}")) for name in loaded)


def test_the_api_page_names_every_path_and_axe_finds_nothing(visit: Open) -> None:
    page = visit("/docs", bypass_csp=True)
    for path in ("/v1/search", "/v1/documents/{document_id}", "/v1/info", "/readyz", "/metrics"):
        expect(page.get_by_text(path, exact=True).first).to_be_visible()
    expect(page.get_by_text("SearchRequest", exact=True).first).to_be_visible()
    path = page.get_by_text("/v1/documents/{document_id}/image", exact=True)
    image = page.locator("details", has=path)
    image.locator("summary").click()
    expect(image.get_by_text("document_id *", exact=True)).to_be_visible()
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()


def test_an_api_page_that_cannot_read_its_description_says_so(visit: Open) -> None:
    page = visit("/docs")
    page.route("**/openapi.json", lambda route: route.fulfill(status=502))
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("status 502")
