"""Every metric of the service: name, kind, what it says, labels. Knows no metrics library.

The dashboard in ``cluster/grafana`` and the table in ``docs/operations.md`` name these and no
others; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
_CANDIDATES = (10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5, 1e6, 1e7)


@dataclass(frozen=True)
class Metric:
    """One family.

    Attributes:
        name: as it is exported; Ray's agents put `ray_` before it, `/metrics` takes that off.
        kind: what it is.
        help: one sentence.
        labels: beside those that Ray adds.
        boundaries: of a histogram's buckets.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()


REQUESTS = Metric("rematch_requests_total", "counter", "Requests answered.", ("route", "code"))
REQUEST_SECONDS = Metric(
    "rematch_request_seconds",
    "histogram",
    "Time from the first byte of a request to the last of its answer.",
    ("route",),
    _SECONDS,
)
STAGE_SECONDS = Metric(
    "rematch_stage_seconds",
    "histogram",
    "Time of one stage of a request: encode, queue, search, rerank, and those of the cascade.",
    ("stage",),
    _SECONDS,
)
SEARCHES = Metric(
    "rematch_searches_total",
    "counter",
    "Searches by the rung that scored their hits, why it was that one, and whether it is exact.",
    ("rung", "reason", "exact"),
)
FAILED = Metric(
    "rematch_failed_searches_total",
    "counter",
    "Searches of a batch that failed while the batch was answered, by the status of each alone.",
    ("code",),
)
CANDIDATES = Metric(
    "rematch_candidates",
    "histogram",
    "Documents that a search scored at its final budget.",
    (),
    _CANDIDATES,
)
DOT_PRODUCTS = Metric(
    "rematch_dot_products_total", "counter", "Dot products spent, by caller.", ("caller",)
)
DEGRADED = Metric(
    "rematch_degraded_total",
    "counter",
    "Searches that got less than they would have: load, deadline, shard_missing.",
    ("reason",),
)
REFUSED = Metric(
    "rematch_refused_total",
    "counter",
    "Requests and searches of batches refused with 401, 403, 413, 429 or 503, by the error's code.",
    ("code",),
)
BATCH_SIZE = Metric(
    "rematch_batch_size",
    "histogram",
    "Items that were worked on together, by stage.",
    ("stage",),
    _COUNTS,
)
ENCODE_SECONDS = Metric(
    "rematch_encode_seconds",
    "histogram",
    "Time of the model for one batch, in the encoder.",
    ("side",),
    _SECONDS,
)
CEILING = Metric(
    "rematch_ceiling_level", "gauge", "Rungs that the ceiling of auto lies below the top."
)
REFUSING = Metric(
    "rematch_refusing", "gauge", "1 while the floor does not keep up and searches are refused."
)
QUEUE_DELAY = Metric(
    "rematch_queue_delay_seconds", "gauge", "Mean wait that the load controller saw last."
)
QUEUE_TARGET = Metric(
    "rematch_queue_target_seconds", "gauge", "Mean wait that the load controller bears."
)
GENERATION = Metric(
    "rematch_generation",
    "gauge",
    "Number of the newest generation that a replica of the shard has opened.",
    ("shard",),
)
DOCUMENTS = Metric("rematch_documents", "gauge", "Live documents of a shard.", ("shard",))
TOMBSTONE_RATIO = Metric(
    "rematch_tombstone_ratio",
    "gauge",
    "Share of a shard's rows that are deleted and not yet merged away.",
    ("shard",),
)
WRITTEN = Metric(
    "rematch_documents_written_total",
    "counter",
    "Documents added, replaced and deleted through the API.",
    ("kind",),
)
COMMIT_SECONDS = Metric(
    "rematch_commit_seconds",
    "histogram",
    "Time of one change of the index: of joined writes, or of a background merge.",
    ("what",),
    _SECONDS,
)
SEGMENTS = Metric(
    "rematch_index_segments", "gauge", "Segments of the index, as the writer left it last."
)
SET_CHANGES = Metric(
    "rematch_set_changes_total",
    "counter",
    "Changes of model and index, and whether they were done.",
    ("done",),
)
RECALL = Metric(
    "rematch_recall",
    "gauge",
    "Share of the exact top hits that live searches at this rung found, by the drift check.",
    ("rung",),
)
RECALL_CHECKS = Metric(
    "rematch_recall_checks_total", "counter", "Searches that the drift check repeated exactly."
)

METRICS: tuple[Metric, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Metric)
)
