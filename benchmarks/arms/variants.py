"""Ways to run the same application on Ray Serve 2.60, as variables of its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rematch_ray.serve.tuning import direct


@dataclass(frozen=True)
class Variant:
    """What is set, and what it does."""

    what: str
    environment: Mapping[str, str] = field(default_factory=dict)
    is_direct: bool = False

    def with_ports(self, port: int, metrics: int, stats: int) -> dict[str, str]:
        """The environment of a service at a port, with HAProxy's own ports, which none shares."""
        ports = {"METRICS": metrics, "STATS": stats}
        own = {f"RAY_SERVE_HAPROXY_{name}_PORT": str(port) for name, port in ports.items()}
        return {**_PATIENT, **own, **self.environment, **(direct(port) if self.is_direct else {})}


# a proxy that needs longer than this to start is killed; on two busy cores the default is short
_PATIENT = {
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_raylet_start_wait_time_s": "120",
}
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
    "direct": Variant(
        "the ingress replica listens itself, one loop, gRPC between replicas", is_direct=True
    ),
    "haproxy": Variant("HAProxy in front, straight to the ingress replica", _HAPROXY),
    "haproxy-one-loop": Variant("both of these", {**_HAPROXY, **_ONE_LOOP}),
    "haproxy-throughput": Variant(
        "HAProxy and RAY_SERVE_THROUGHPUT_OPTIMIZED",
        {**_HAPROXY, "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
    ),
}
