"""Variables that Ray Serve reads when it is imported: how requests reach the ingress, and how fast.

Measured in `benchmarks/results/serving.md`. Plain text: imports no Ray.
"""

from __future__ import annotations

# one event loop in a replica and gRPC between them; the ingress listens itself, too
_THROUGHPUT = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


def proxied() -> dict[str, str]:
    """Serve's own proxy in front."""
    return dict(_THROUGHPUT)


def direct(port: int) -> dict[str, str]:
    """The one ingress replica itself listens on a port, and Serve's proxy stays unused.

    Args:
        port: of the service. Serve's proxy has to be given another one.

    >>> direct(8000)["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"]
    '8000'
    """
    return {
        **_THROUGHPUT,
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port + 1),
        # a replica that is started in the place of one that died gets its port at once
        "RAY_SERVE_PORT_QUARANTINE_S": "0",
    }


def haproxy(metrics_port: int, stats_port: int) -> dict[str, str]:
    """HAProxy in front of the ingress replicas.

    Args:
        metrics_port: of HAProxy's own, on every address.
        stats_port: likewise.
    """
    return {
        **_THROUGHPUT,
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
    }
