"""Metrics of the service: written through Ray, so that no counter lives in one replica.

`Recorder` turns events into the metrics of `serve.metric_table`; `collect` joins what the agents of
all nodes export.
"""

from __future__ import annotations

import asyncio
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from ray.serve.metrics import Counter, Gauge, Histogram

from rematch_ray.serve import metric_table as table
from rematch_ray.serve.backend import WriteResult
from rematch_ray.serve.metric_table import Metric
from rematch_ray.serve.observation import RequestRecord, Searched

FLUSH_S = 1.0
SCRAPE_TIMEOUT_S = 2.0
_OURS = ("rematch_", "serve_")
_NOISE = "event_loop"
_REFUSALS = frozenset({401, 403, 413, 429, 503})
_Series = tuple[Metric, tuple[str, ...]]


class Written(Protocol):
    """One metric of a library, as `Recorder` writes it: labels in the order of the table."""

    def __call__(self, value: float, tags: dict[str, str]) -> None:
        """Adds to a counter, sets a gauge, observes a value."""
        ...


def ray_metric(metric: Metric) -> Written:
    """A metric that Ray exports, labelled with application, deployment and replica."""
    if metric.kind == "counter":
        return Counter(metric.name, metric.help, tag_keys=metric.labels).inc
    if metric.kind == "gauge":
        return Gauge(metric.name, metric.help, tag_keys=metric.labels).set
    boundaries = list(metric.boundaries)
    return Histogram(metric.name, metric.help, boundaries, tag_keys=metric.labels).observe


class Recorder:
    """Counts and measures; created inside a replica.

    What happens is noted here and written once a second by a thread: writing takes Ray 5 to 10 us
    and gives up the interpreter's lock, for which an event loop beside searching threads may then
    wait, some nine times a request.

    Args:
        written: makes a metric.
        flush_s: how often all is written; 0 leaves it to `flush`.
    """

    def __init__(
        self, written: Callable[[Metric], Written] = ray_metric, *, flush_s: float = FLUSH_S
    ) -> None:
        self._make = written
        self._flush_s = flush_s
        self._metrics: dict[str, Written] = {}
        self._sums: dict[_Series, float] = {}
        self._levels: dict[_Series, float] = {}
        self._observed: list[tuple[_Series, float]] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __call__(self, record: RequestRecord) -> None:
        """One answered request, with what its route noted."""
        self._count(table.REQUESTS, record.route, str(record.status))
        self._note(table.REQUEST_SECONDS, record.seconds, record.route)
        facts = record.facts
        self._refused(record.status, facts.code)
        for failed in facts.failed:
            self._count(table.FAILED, str(failed.status))
            self._refused(failed.status, failed.code)
        if facts.encode_s is not None:
            self._note(table.STAGE_SECONDS, facts.encode_s, "encode")
        for search in facts.searches:
            self.searched(search, facts.caller)

    def _refused(self, status: int, code: str) -> None:
        if status in _REFUSALS:
            self._count(table.REFUSED, code or str(status))

    def searched(self, search: Searched, caller: str = "") -> None:
        """One search; `__call__` passes on those of a request."""
        exact = "true" if search.exact else "false"
        self._count(table.SEARCHES, search.rung, search.reason, exact)
        self._note(table.CANDIDATES, search.candidates)
        self._count(table.DOT_PRODUCTS, caller, by=search.dot_products)
        for reason in search.degraded:
            self._count(table.DEGRADED, reason)
        for stage, seconds in search.seconds.items():
            self._note(table.STAGE_SECONDS, seconds, stage)

    def encoded(self, size: int, seconds: float, side: str) -> None:
        """One batch of the encoder."""
        self._note(table.BATCH_SIZE, size, "encode")
        self._note(table.ENCODE_SECONDS, seconds, side)

    def load(self, level: int, refusing: bool, queue_delay_s: float, target_s: float) -> None:
        """The state of the load controller."""
        self._note(table.CEILING, level)
        self._note(table.REFUSING, int(refusing))
        self._note(table.QUEUE_DELAY, queue_delay_s)
        self._note(table.QUEUE_TARGET, target_s)

    def index(self, shard: int, info: Mapping[str, Any]) -> None:
        """The newest state that a replica of a shard has opened, from `SearchIndex.info`."""
        rows, live = int(info["documents"]), int(info["live"])
        self._note(table.DOCUMENTS, live, str(shard))
        self._note(table.TOMBSTONE_RATIO, 1 - live / max(rows, 1), str(shard))
        self._note(table.GENERATION, generation_number(info["generation"]), str(shard))

    def wrote(self, result: WriteResult) -> None:
        """One write of documents."""
        for kind in ("added", "replaced", "deleted"):
            self._count(table.WRITTEN, kind, by=getattr(result, kind))

    def committed(self, what: Literal["write", "merge"], seconds: float, segments: int) -> None:
        """One change of the index, and the segments that it left."""
        self._note(table.COMMIT_SECONDS, seconds, what)
        self._note(table.SEGMENTS, segments)

    def swapped(self, *, done: bool) -> None:
        """One change of model and index."""
        self._count(table.SET_CHANGES, "true" if done else "false")

    def checked(self, rung: str, recall: float) -> None:
        """What the drift check found at one rung."""
        self._note(table.RECALL, recall, rung)
        self._count(table.RECALL_CHECKS)

    def flush(self) -> None:
        """Write all that was noted."""
        with self._lock:
            sums, self._sums = self._sums, {}
            levels, self._levels = self._levels, {}
            observed, self._observed = self._observed, []
        for noted in (sums.items(), levels.items(), observed):
            for series, value in noted:
                self._write(series, value)

    def _note(self, metric: Metric, value: float, *labels: str) -> None:
        series = (metric, labels)
        with self._lock:
            if metric.kind == "counter":
                self._sums[series] = self._sums.get(series, 0) + value
            elif metric.kind == "gauge":
                self._levels[series] = value
            else:
                self._observed.append((series, value))
            if self._thread is None and self._flush_s:
                self._thread = threading.Thread(target=self._flush_often, daemon=True)
                self._thread.start()

    def _count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        if by:
            self._note(metric, by, *labels)

    def _flush_often(self) -> None:
        pause = threading.Event()
        while not pause.wait(self._flush_s):
            self.flush()

    def _write(self, series: _Series, value: float) -> None:
        metric, labels = series
        written = self._metrics.get(metric.name)
        if written is None:
            written = self._metrics[metric.name] = self._make(metric)
        written(value, dict(zip(metric.labels, labels, strict=True)))


def generation_number(name: str) -> int:
    """The number in a generation's name; 0 when it has none.

    >>> generation_number("generation-000012"), generation_number("none")
    (12, 0)
    """
    digits = re.search(r"\d+", name)
    return int(digits[0]) if digits else 0


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
        # a label may hold what else ends a line for Python: U+2028, for one
        for line in text.split("\n"):
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
