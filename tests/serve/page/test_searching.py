"""Asking the page: words, images, budgets, fields, likeness, links."""

import re
from collections.abc import Callable

import pytest

from tests.serve.gallery import Gallery
from tests.serve.page.browser import Open, expect, file_event, hits
from tests.serve.shapes import COLOURS, draw

pytestmark = pytest.mark.browser


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
