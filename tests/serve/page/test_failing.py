"""What the page does when things go wrong, or are meant to."""

from collections.abc import Callable

import pytest

from rematch_ray.serve.backend import OverloadedError
from tests.serve.gallery import HOSTILE, Gallery
from tests.serve.page.browser import Open, expect, hits

pytestmark = pytest.mark.browser


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
