"""The search page in a real browser, over the real routes and a gallery of drawn pictures.

Runs on the Chromium of the system (`chromium` on the PATH) through Playwright.
"""

import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from rematch_ray.serve.settings import ApiKey
from tests.serve.gallery import Gallery, gallery_api
from tests.serve.page.browser import Open, Page

DESKTOP = {"width": 1280, "height": 860}
PATIENCE_MS = 20_000


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs chromium on the PATH")
    playwright.expect.set_options(timeout=PATIENCE_MS)
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
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
