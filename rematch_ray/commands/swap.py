"""``rematch-ray serve swap``: tell a running service to change its model and index, and wait.

Speaks HTTP to ``/v1/admin/swap``; knows neither Ray nor indexes.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from rematch_ray.errors import UserError

ROUTE = "/v1/admin/swap"
_POLL_S = 0.5
_TIMEOUT_S = 60.0


def swap(url: str, index: str, model: str | None, key_file: Path | None) -> dict[str, Any]:
    """Change what a service serves; returns once it is done.

    Args:
        url: of the service.
        index: directory, as the service sees it.
        model: export or run directory; None takes the one that the index names.
        key_file: holds the API key, scope admin; None sends none.

    Returns:
        What the service says it serves now.

    Raises:
        UserError: the service does not answer, refuses, or stays with what it served; says why.
    """
    key = None if key_file is None else _read_key(key_file)
    asked = {"index": index} if model is None else {"index": index, "model": model}
    status = _ask(url, key, asked)
    phase = ""
    started = time.monotonic()
    while status["phase"] != "serving":
        if status["phase"] != phase:
            phase = status["phase"]
            seconds = time.monotonic() - started
            print(f"{phase} after {seconds:.0f} s ...", file=sys.stderr, flush=True)
        time.sleep(_POLL_S)
        status = _ask(url, key, None)
    last = status["last"] or {}
    if not last.get("done"):
        raise UserError(f"the service stays with what it served: {last.get('error')}")
    return {**status, "seconds": round(time.monotonic() - started, 1)}


def _ask(url: str, key: str | None, body: dict[str, str] | None) -> dict[str, Any]:
    headers = {"content-type": "application/json"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    address = url.rstrip("/") + ROUTE
    try:
        request = urllib.request.Request(address, data, headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            told: dict[str, Any] = json.load(answer)
            return told
    except urllib.error.HTTPError as refused:
        raise UserError(f"{address}: {_message_of(refused)}") from refused
    except (OSError, ValueError) as silent:
        raise UserError(f"{address} does not answer as a service does: {silent}") from silent


def _message_of(refused: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(refused)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{refused.code} {refused.reason}"


def _read_key(path: Path) -> str:
    try:
        key = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as unreadable:
        raise UserError(f"--api-key-file {path} cannot be read: {unreadable}") from unreadable
    if not key or len(key.split()) != 1:
        raise UserError(f"--api-key-file {path} must hold the key itself, and nothing else")
    return key
