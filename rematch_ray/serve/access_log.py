"""The access log: one line of JSON per answered request, without what was searched for.

Knows records of requests and where lines go; nothing of HTTP or Ray.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from typing import Any

from rematch_ray.errors import UserError
from rematch_ray.serve.observation import RequestRecord, Searched
from rematch_ray.serve.settings import AccessLogSettings


class AccessLog:
    """Writes a line per record; one lives in each ingress replica.

    Args:
        settings: where to, and whether queries are written out.
        now: the time of a line.

    Raises:
        UserError: the directory cannot be written to.
    """

    def __init__(
        self,
        settings: AccessLogSettings,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._with_queries = settings.queries
        self._now = now
        self._handler = _handler(settings) if settings.enabled else None

    def __call__(self, record: RequestRecord) -> None:
        """Write one line."""
        if self._handler is None:
            return
        line = json.dumps(self.line(record), ensure_ascii=False, separators=(",", ":"))
        # a bare record: the line is finished, no logger need look at it
        self._handler.handle(logging.LogRecord("access", logging.INFO, "", 0, line, None, None))

    def line(self, record: RequestRecord) -> dict[str, Any]:
        """What is written of a request, in this order; fields that do not apply are left out."""
        facts = record.facts
        line: dict[str, Any] = {
            "time": self._now().isoformat(timespec="milliseconds"),
            "request_id": record.request_id,
            "caller": facts.caller or None,
            "method": record.method,
            "route": record.route,
            "status": record.status,
            "code": facts.code or None,
            "ms": round(1e3 * record.seconds, 3),
            "encode_ms": None if facts.encode_s is None else round(1e3 * facts.encode_s, 3),
        }
        if facts.searches:
            line |= _searches(facts.searches)
        if facts.failed:
            line["failed"] = dict(Counter(failed.code for failed in facts.failed))
        if self._with_queries:
            line |= {"query": facts.query, "documents": facts.documents or None}
        return {key: value for key, value in line.items() if value is not None}

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._handler:
            self._handler.close()


def _searches(searches: list[Searched]) -> dict[str, Any]:
    """One search, or several as sums and sets."""
    degraded = sorted({reason for search in searches for reason in search.degraded})
    return {
        "searches": len(searches) if len(searches) > 1 else None,
        "budget": ",".join(sorted({search.rung for search in searches})),
        "reason": ",".join(sorted({search.reason for search in searches})),
        "candidates": sum(search.candidates for search in searches),
        "dot_products": sum(search.dot_products for search in searches),
        "queue_ms": round(1e3 * sum(s.seconds.get("queue", 0.0) for s in searches), 3),
        "search_ms": round(1e3 * sum(s.seconds.get("search", 0.0) for s in searches), 3),
        "degraded": degraded or None,
        "generation": searches[0].generation,
    }


def _handler(settings: AccessLogSettings) -> logging.Handler:
    handler: logging.Handler
    if settings.directory is None:
        handler = logging.StreamHandler(sys.stdout)
    else:
        name = f"access-{platform.node()}-{os.getpid()}.jsonl"
        try:
            settings.directory.mkdir(parents=True, exist_ok=True)
            handler = RotatingFileHandler(
                settings.directory / name,
                maxBytes=settings.max_bytes,
                backupCount=settings.num_files - 1,
                encoding="utf-8",
            )
        except OSError as refused:
            raise UserError(
                f"access_log.directory {settings.directory} cannot be written to: {refused}"
            ) from refused
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler
