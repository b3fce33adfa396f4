"""Metrics of the service: written through Ray, so that no counter lives in one replica.

`Recorder` counts what the ingress answers; `collect` joins what the agents of all nodes export.
Names are ``rematch_*``, in seconds and bytes.
"""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

from ray.util.metrics import Counter, Histogram

from rematch_ray.serve.observation import RequestRecord

_BOUNDARIES_S = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
_PREFIXES = ("rematch_", "ray_rematch_", "serve_", "ray_serve_")
SCRAPE_TIMEOUT_S = 2.0


class Recorder:
    """Counts requests and measures them; created inside a replica."""

    def __init__(self) -> None:
        self._requests = Counter(
            "rematch_requests_total", "Requests answered.", tag_keys=("route", "code")
        )
        self._seconds = Histogram(
            "rematch_request_seconds",
            "Time from the first byte of a request to the last of its answer.",
            boundaries=_BOUNDARIES_S,
            tag_keys=("route",),
        )

    def __call__(self, record: RequestRecord) -> None:
        """Counts one answered request."""
        self._requests.inc(tags={"route": record.route, "code": str(record.status)})
        self._seconds.observe(record.seconds, tags={"route": record.route})


async def collect() -> str:
    """What the metrics agents of all living nodes export of this service and of Serve.

    Returns:
        Prometheus text; a node that does not answer is named in a comment.
    """
    import ray

    nodes = [node for node in await asyncio.to_thread(ray.nodes) if node["Alive"]]
    addresses = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes]
    texts = await asyncio.gather(*(asyncio.to_thread(_scrape, address) for address in addresses))
    return "\n".join(join(texts)) + "\n"


def join(texts: list[str]) -> list[str]:
    r"""The lines about this service, each heading once.

    >>> join(["# HELP rematch_a b\\nrematch_a 1", "# HELP rematch_a b\\nrematch_a 2\\nother 3"])
    ['# HELP rematch_a b', 'rematch_a 1', 'rematch_a 2']
    """
    lines: list[str] = []
    seen: set[str] = set()
    for text in texts:
        for line in text.splitlines():
            heading = line.startswith("# ")
            name = line.split(" ", 3)[2] if heading and line.count(" ") > 1 else line
            if (name.startswith(_PREFIXES) and line not in seen) or line.startswith("# node "):
                lines.append(line)
                if heading:
                    seen.add(line)
    return lines


def _scrape(address: str) -> str:
    try:
        with urllib.request.urlopen(
            f"http://{address}/metrics", timeout=SCRAPE_TIMEOUT_S
        ) as answer:
            return str(answer.read(), "utf-8")
    except (urllib.error.URLError, OSError) as silent:
        return f"# node {address} does not answer: {silent}"
