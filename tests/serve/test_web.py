"""The pages in a real browser, against the real routes and a fake backend."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient

pytestmark = pytest.mark.browser


@contextmanager
def listening(client: TestClient) -> Iterator[str]:
    """The application of a test client behind a real port."""
    server = uvicorn.Server(uvicorn.Config(client.app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=10)


@pytest.fixture
def dom(tmp_path: Path) -> Callable[[str], str]:
    """The document of a page once its script has run."""

    def dump(url: str) -> str:
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
            "--disable-background-networking --disable-component-update --disable-sync "
            f"--user-data-dir={tmp_path / 'profile'} --virtual-time-budget=8000 --dump-dom"
        )
        done = subprocess.run(
            ["chromium", *flags.split(), url],
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        )
        return done.stdout

    return dump


def test_a_query_in_the_address_is_answered_with_pictures_and_scores(
    client: TestClient, backend: Any, dom: Callable[[str], str]
) -> None:
    with listening(client) as url:
        page = dom(f"{url}/?q=an+otter&budget=1x1")
    assert backend.items[0].text == "an otter"
    assert backend.plans[0].budget == "1x1"
    assert page.count('<li class="hit">') == 1 + 5  # the template and the hits
    assert "0.900" in page
    assert 'alt="shape 0"' in page
    assert "5 results</b> at budget 1×1" in page
    for rung in ("fused", "1×1", "4×8"):
        assert f"<span>{rung}" in page


def test_an_error_is_shown_in_words(
    client: TestClient, backend: Any, dom: Callable[[str], str]
) -> None:
    backend.failure = RuntimeError("broken")
    with listening(client) as url:
        page = dom(f"{url}/?q=an+otter")
    assert "the server failed; its log says why" in page


def test_a_key_is_asked_for(connect: Callable[..., TestClient], dom: Callable[[str], str]) -> None:
    with listening(connect("secret")) as url:
        page = dom(url)
    assert '<form id="key-form" class="notice">' in page


def test_the_api_page_names_every_path(client: TestClient, dom: Callable[[str], str]) -> None:
    with listening(client) as url:
        page = dom(f"{url}/docs")
    for path in ("/v1/search", "/v1/documents/{document_id}", "/v1/info", "/readyz", "/metrics"):
        assert f"<code>{path}</code>" in page
    assert "SearchRequest" in page
