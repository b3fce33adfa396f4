"""The files of the pages and the headers they come with; what they do is in page/."""

import re
from importlib.resources import files

import pytest
from fastapi.testclient import TestClient

FOLDER = files("rematch_ray.serve") / "web"
ASSETS = sorted(file.name for file in FOLDER.iterdir() if file.name.endswith((".js", ".css")))
PAGES = {"/": "index.html", "/docs": "docs.html"}


def policy(client: TestClient, path: str) -> dict[str, str]:
    said = client.get(path).headers["content-security-policy"].split("; ")
    return dict(directive.split(" ", 1) for directive in said)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_may_run_only_what_the_service_itself_sends(client: TestClient, path: str) -> None:
    said = policy(client, path)
    assert said["default-src"] == "'none'"
    assert said["script-src"] == said["style-src"] == said["connect-src"] == "'self'"
    assert said["require-trusted-types-for"] == "'script'"
    assert said["frame-ancestors"] == said["base-uri"] == "'none'"


@pytest.mark.parametrize("name", PAGES.values())
def test_a_page_holds_no_script_style_or_address_of_elsewhere(name: str) -> None:
    page = (FOLDER / name).read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)", page) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=|https?://|src=\"//", page) == []


@pytest.mark.parametrize("name", ASSETS)
def test_an_asset_is_served_and_reaches_for_nothing_elsewhere(
    client: TestClient, name: str
) -> None:
    answer = client.get(f"/assets/{name}")
    expected = "text/javascript" if name.endswith(".js") else "text/css"
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(expected)
    assert answer.headers["x-content-type-options"] == "nosniff"
    addresses = set(re.findall(r"https?://[^\s\"')]+", answer.text))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, not a place


@pytest.mark.parametrize("name", [name for name in ASSETS if name.endswith(".js")])
def test_no_module_turns_text_into_markup(name: str) -> None:
    risky = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser"
    )
    assert re.findall(risky, (FOLDER / name).read_text()) == []


def test_every_file_that_a_page_or_a_module_names_is_there() -> None:
    named = set()
    for page in PAGES.values():
        named |= set(re.findall(r"assets/([\w.]+)", (FOLDER / page).read_text()))
    for name in ASSETS:
        named |= set(re.findall(r"from \"\./([\w.]+)\"", (FOLDER / name).read_text()))
    assert named == set(ASSETS)


def test_a_file_that_has_not_changed_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/assets/search.js")
    again = client.get("/assets/search.js", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304
    assert again.content == b""
    assert client.get("/assets/search.js", headers={"if-none-match": '"old"'}).status_code == 200
