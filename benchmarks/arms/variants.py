"""Ways to run the same application on Ray Serve 2.60, as variables of its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Variant:
    """What is set, and what it does."""

    what: str
    environment: Mapping[str, str] = field(default_factory=dict)


_HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
_ONE_LOOP = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}

VARIANTS: dict[str, Variant] = {
    "default": Variant("Serve as it comes: a proxy in Python, actor calls"),
    "one-loop": Variant("user code and router in the replica's own event loop", _ONE_LOOP),
    "throughput": Variant(
        "RAY_SERVE_THROUGHPUT_OPTIMIZED: one loop, gRPC between replicas",
        {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
    ),
    "haproxy": Variant("HAProxy in front, straight to the ingress replica", _HAPROXY),
    "haproxy-one-loop": Variant("both of these", {**_HAPROXY, **_ONE_LOOP}),
    "haproxy-throughput": Variant(
        "HAProxy and RAY_SERVE_THROUGHPUT_OPTIMIZED",
        {**_HAPROXY, "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
    ),
}
