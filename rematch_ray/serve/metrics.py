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
_OURS = ("rematch_", "serve_")
_NOISE = "event_loop"
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
    r"""The metrics of this service and of Serve, each family once with the samples of all texts.

    Ray's prefix is taken off: the names are ours wherever they are read.

    >>> join(
    ...     [
    ...         '# TYPE ray_rematch_a counter\nray_rematch_a{n="1"} 1',
    ...         '# TYPE ray_rematch_a counter\nray_rematch_a{n="2"} 2\nray_other 3',
    ...     ]
    ... )
    ['# TYPE rematch_a counter', 'rematch_a{n="1"} 1', 'rematch_a{n="2"} 2']
    """
    headings: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    remarks: list[str] = []
    for text in texts:
        family = ""
        for line in text.splitlines():
            if line.startswith("# node "):
                remarks.append(line)
            elif line.startswith(("# HELP ", "# TYPE ")):
                line = line.replace(" ray_", " ", 1)
                family = line.split(" ", 3)[2]
                seen = headings.setdefault(family, [])
                if line not in seen:
                    seen.append(line)
            elif family and (sample := line.removeprefix("ray_")).startswith(family):
                samples.setdefault(family, []).append(sample)
    ours = [name for name in headings if name.startswith(_OURS) and _NOISE not in name]
    return remarks + [line for name in ours for line in headings[name] + samples.get(name, [])]


def _scrape(address: str) -> str:
    try:
        with urllib.request.urlopen(
            f"http://{address}/metrics", timeout=SCRAPE_TIMEOUT_S
        ) as answer:
            return str(answer.read(), "utf-8")
    except (urllib.error.URLError, OSError) as silent:
        return f"# node {address} does not answer: {silent}"
