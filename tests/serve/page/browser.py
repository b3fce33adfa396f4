"""What the tests of the page share: the page as an object, waiting, and files that fall on it."""

import base64
from collections.abc import Callable
from typing import Any

Page = Any
Open = Callable[..., Page]
PHONE = {"width": 360, "height": 740}


def expect(what: Any) -> Any:
    """Playwright's waiting assertions; imported late, so that tests are collected without it."""
    from playwright.sync_api import expect as expected

    return expected(what)


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
