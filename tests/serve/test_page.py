"""The search page in a real browser, over the real routes and a gallery of drawn pictures.

Runs on the Chromium of the system (`chromium` on the PATH) through Playwright.
"""

import base64
import hashlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

from rematch_ray.serve.backend import OverloadedError
from rematch_ray.serve.settings import ApiKey
from tests.serve.gallery import COLOURS, HOSTILE, Gallery, draw, gallery_api

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
expect = playwright.expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH"),
]
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 360, "height": 740}
PATIENCE_MS = 20_000
Page = Any
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    expect.set_options(timeout=PATIENCE_MS)
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield launched
        launched.close()


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    return Gallery(tmp_path)


@pytest.fixture
def listen(gallery: Gallery, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Serve the gallery on a real port; gives its address."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(*keys: str, **limits: Any) -> str:
        held = [
            ApiKey(name=f"key{n}", sha256=hashlib.sha256(key.encode()).hexdigest())
            for n, key in enumerate(keys)
        ]
        api = gallery_api(gallery, tmp_path, *held, **limits)
        server = uvicorn.Server(uvicorn.Config(api, port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.02)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(timeout=10)


@pytest.fixture
def visit(browser: Any, listen: Callable[..., str]) -> Iterator[Open]:
    """Open the page in a context of its own; complaints of the browser fail the test."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def go(path: str = "/", *, url: str = "", size: Any = DESKTOP, **options: Any) -> Page:
        context = browser.new_context(viewport=size, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: _note(said, complaints))
        page.goto((url or listen()) + path)
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []


def _note(said: Any, complaints: list[str]) -> None:
    # a refusal of the API is an answer, which Chromium logs as a failed resource
    if said.type in ("error", "warning") and "Failed to load resource" not in said.text:
        complaints.append(said.text)


def hits(page: Page) -> Any:
    return page.locator(".hit")


def file_event(page: Page, kind: str, content: bytes) -> None:
    """Drop or paste a PNG on the page."""
    page.evaluate(
        """([kind, text]) => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], "shape.png", { type: "image/png" }));
            const event = kind === "paste"
                ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
                : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
            document.body.dispatchEvent(event);
        }""",
        [kind, base64.b64encode(content).decode()],
    )


# ---- searching


def test_words_are_answered_with_pictures_scores_and_what_was_used(
    visit: Open, gallery: Gallery
) -> None:
    page = visit()
    page.fill("#text", "a blue star")
    page.keyboard.press("Enter")
    expect(hits(page)).to_have_count(24)
    expect(hits(page).first.locator(".name")).to_have_text("a blue star")
    expect(hits(page).first.locator("img")).to_be_visible()
    assert hits(page).first.locator("img").evaluate("image => image.naturalWidth") == 192
    expect(hits(page).first.locator(".score")).to_contain_text(re.compile(r"0\.\d{3}"))
    expect(page.get_by_role("status")).to_contain_text("24 results at 4×8 in")
    used = page.locator(".how")
    for words in ("4×8 (asked: auto)", "24 of 33 documents", "≥ 97.3 %", "gen-000007", "768"):
        expect(used).to_contain_text(words)
    expect(used.get_by_role("row")).to_contain_text(["encode", "filter", "first", "4×8", "total"])
    assert gallery.queries[0].text == "a blue star"


def test_a_document_without_a_picture_is_shown_by_its_words(visit: Open) -> None:
    page = visit("/#q=a+note+on+circles+seldom+alone&budget=16x64")
    note = hits(page).filter(has_text="a note on blue circles").first
    expect(note.locator(".words")).to_contain_text("A note on blue circles: they are seldom")
    expect(note.locator("img")).to_have_count(0)


@pytest.mark.parametrize("way", ["drop", "paste", "pick"])
def test_an_image_is_dropped_pasted_or_picked(visit: Open, gallery: Gallery, way: str) -> None:
    page = visit()
    expect(page.locator("#facts")).to_be_visible()
    content = draw("ring", COLOURS["teal"])
    if way == "pick":
        image = {"name": "ring.png", "mimeType": "image/png", "buffer": content}
        page.set_input_files("#image", files=[image])
    else:
        file_event(page, way, content)
    expect(hits(page).first.locator(".name")).to_contain_text("teal")
    expect(page.get_by_alt_text("The image to search with")).to_be_visible()
    assert gallery.queries[0].images[0].image == content
    page.fill("#text", "square")
    page.keyboard.press("Enter")
    expect(hits(page).first.locator(".name")).to_have_text("a teal square")
    assert (gallery.queries[-1].text, len(gallery.queries[-1].images)) == ("square", 1)


def test_dragging_a_file_over_the_page_says_what_a_drop_would_do(visit: Open) -> None:
    page = visit()
    file_event(page, "dragover", b"")
    expect(page.get_by_text("Drop the image to search with it")).to_be_visible()
    file_event(page, "dragleave", b"")
    expect(page.locator("#veil")).to_be_hidden()


def test_an_image_beyond_the_limits_is_made_smaller_first(
    visit: Open, listen: Callable[..., str], gallery: Gallery
) -> None:
    page = visit(url=listen(max_image_pixels=10_000))
    expect(page.locator("#facts")).to_be_visible()
    file_event(page, "drop", draw("circle", COLOURS["red"], size=400))
    expect(hits(page).first.locator(".name")).to_contain_text("red")
    small = gallery.queries[0].images[0].image
    assert small is not None
    assert small[:2] == b"\xff\xd8"  # a JPEG of the page's making


def test_what_is_no_image_is_named(visit: Open) -> None:
    page = visit()
    file_event(page, "drop", b"nothing to see")
    expect(page.get_by_role("alert")).to_contain_text('"shape.png" cannot be read as an image')


def test_the_slider_sets_the_budget_by_key_and_by_mark(visit: Open, gallery: Gallery) -> None:
    page = visit("/#q=a+red+ring")
    expect(hits(page).first).to_be_visible()
    slider = page.get_by_role("slider", name="Budget", exact=True)
    assert slider.get_attribute("aria-valuetext").startswith("auto: the service chooses")
    slider.focus()
    page.keyboard.press("End")
    expect(page.get_by_role("status")).to_contain_text("at 16×64")
    assert slider.get_attribute("aria-valuetext") == (
        "16×64: 16 query vectors × 64 document vectors"
    )
    page.locator("#budget-a .marks span", has_text="2×4").click()
    expect(page.get_by_role("status")).to_contain_text("at 2×4")
    assert [plan.budget for plan in gallery.plans] == ["auto", "16x64", "2x4"]
    assert page.evaluate("location.hash") == "#q=a+red+ring&budget=2x4"


def test_every_field_reaches_the_search(visit: Open, gallery: Gallery) -> None:
    page = visit("/#q=star")
    expect(hits(page).first).to_be_visible()
    page.get_by_label("Deadline, ms").fill("5000")
    page.get_by_text("More", exact=True).click()
    page.locator("#top-k").select_option("6")
    page.get_by_label("Candidates").select_option("all")
    page.get_by_label("Least score").fill("-0.5")
    page.get_by_label("One hit per").select_option("colour")
    page.get_by_label("Matching head").select_option("off")
    page.get_by_label("Words (BM25)").select_option("weighted")
    page.get_by_label("Weight of words, 0–1").fill("0.3")
    page.get_by_label("Instruction to the model").fill("find the shape")
    page.get_by_label("Filter, as JSON").fill('{"shape": "star"}')
    page.keyboard.press("Enter")
    expect(page.locator(".how")).to_contain_text("33 → 6")
    expect(hits(page)).to_have_count(6)
    expect(page.locator(".badge", has_text="exact")).to_be_visible()
    plan = gallery.plans[-1]
    assert plan.deadline is not None
    assert (plan.candidates, plan.top_k, plan.min_score) == ("all", 6, -0.5)
    assert (plan.group_by, plan.filter) == ("colour", {"shape": "star"})
    assert (plan.text, plan.fusion, plan.lexical_weight) == ("star", "weighted", 0.3)
    assert plan.with_rerank is False
    expect(page.locator(".how")).to_contain_text("find the shape")


def test_a_hit_finds_others_like_it(visit: Open, gallery: Gallery) -> None:
    page = visit("/#q=a+green+circle&budget=16x64")
    hits(page).first.hover()
    hits(page).first.get_by_role("button", name="More like a green circle").click()
    expect(page.locator("#like")).to_contain_text("like a green circle")
    expect(page.get_by_role("status")).to_contain_text("24 results")
    assert gallery.plans[-1].exclude == "shapes/green-circle"
    assert page.evaluate("location.hash") == "#like=shapes%2Fgreen-circle&budget=16x64"


def test_a_link_reproduces_a_search_and_back_returns_to_the_one_before(
    visit: Open, gallery: Gallery
) -> None:
    page = visit("/#q=a+purple+ring&budget=8x16&k=6&filter=%7B%22shape%22%3A%22ring%22%7D")
    expect(hits(page)).to_have_count(6)
    expect(page.locator("#text")).to_have_value("a purple ring")
    expect(page.get_by_label("Filter, as JSON")).to_be_visible()
    assert (gallery.plans[0].budget, gallery.plans[0].top_k) == ("8x16", 6)
    page.fill("#text", "a red ring")
    page.keyboard.press("Enter")
    expect(hits(page).first.locator(".name")).to_have_text("a red ring")
    page.go_back()
    expect(page.locator("#text")).to_have_value("a purple ring")
    expect(hits(page).first.locator(".name")).to_have_text("a purple ring")


# ---- side by side


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


# ---- one hit


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


# ---- what goes wrong


def test_a_refusal_is_shown_in_the_words_of_the_api(visit: Open, gallery: Gallery) -> None:
    gallery.failure = OverloadedError("this key may ask 5 times a second", code="quota_exceeded")
    page = visit("/#q=a+blue+star")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("this key may ask 5 times a second")
    expect(alert).to_contain_text("quota_exceeded")
    expect(alert).to_contain_text("Try again in 1 s.")
    gallery.failure = None
    page.get_by_role("button", name="Search").click()
    expect(hits(page).first).to_be_visible()
    expect(alert).to_be_hidden()


def test_a_service_that_starts_is_waited_for(visit: Open, gallery: Gallery) -> None:
    gallery.waiting_for = "the encoder"
    page = visit("/#q=a+blue+star")
    expect(page.get_by_role("alert")).to_contain_text("the encoder does not answer yet")
    gallery.waiting_for = ""
    expect(hits(page).first).to_be_visible()
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_filter_that_is_no_json_is_explained_before_anything_is_sent(
    visit: Open, gallery: Gallery
) -> None:
    page = visit("/#q=star&filter=%7Bshape")
    expect(page.get_by_role("alert")).to_contain_text("The filter is no JSON")
    assert gallery.plans == []


def test_a_degraded_answer_says_why(visit: Open, gallery: Gallery) -> None:
    gallery.degraded = ("load", "shard_missing")
    page = visit("/#q=star")
    notice = page.locator(".notice.warn")
    expect(notice).to_contain_text("the service is busy, so a smaller budget was used")
    expect(notice).to_contain_text("a shard did not answer")
    expect(page.locator(".badge.warn")).to_have_text("degraded")


def test_a_key_is_asked_for_and_kept_in_this_tab_only(
    visit: Open, listen: Callable[..., str]
) -> None:
    page = visit("/#q=a+red+star", url=listen("secret"))
    expect(page.get_by_label("API key")).to_be_focused()
    expect(page.get_by_role("alert")).to_contain_text("API key")
    page.keyboard.type("secret")
    page.keyboard.press("Enter")
    expect(hits(page).first.locator("img")).to_be_visible()
    expect(page.locator("#key-form")).to_be_hidden()
    stored = page.evaluate("[JSON.stringify(localStorage), document.cookie, location.href]")
    assert not any("secret" in text for text in stored)
    assert page.evaluate("sessionStorage.getItem('api-key')") == "secret"
    page.get_by_role("button", name="API key").click()
    page.get_by_role("button", name="Forget it").click()
    expect(page.get_by_label("API key")).to_be_focused()
    assert page.evaluate("sessionStorage.length") == 0


@pytest.mark.parametrize("view", ["budget=4x8", "budget=1x1&b=16x64"])
def test_a_hostile_payload_stays_text(visit: Open, gallery: Gallery, view: str) -> None:
    payload = {"name": HOSTILE, "text": HOSTILE, HOSTILE: HOSTILE, "uri": "javascript:hacked=1"}
    gallery.add(f"x/{HOSTILE}", payload, "hostile payload")
    page = visit(f"/#q=hostile+payload&{view}&k=6")
    found = page.locator(".hit, .row").first
    expect(found.locator(".name")).to_have_text(HOSTILE)
    found.locator(".name").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".heat")).to_be_visible()
    dialog.get_by_text("Payload", exact=True).click()
    expect(dialog.locator(".payload dd").first).to_have_text(HOSTILE)
    dialog.get_by_role("button", name="More like this").click()
    expect(page.locator("#like-name")).to_have_text(HOSTILE)
    expect(page.get_by_role("status")).to_contain_text("6 ")
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 2  # the page's own
    assert page.locator("img[onerror]").count() == 0
    assert page.locator("[href^='javascript']").count() == 0


# ---- for everybody


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
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()
