"""How callers reach the service that `rematch-ray serve` starts, and that they go on to reach it.

Knows what Serve 2.60 does with ports, and nothing of what is served.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from rematch_ray.errors import UserError
from rematch_ray.serve import tuning

_POLL_S = 0.25
_LOOK_S = 1.0
_GONE_S = 3.0


def keep_up(host: str, port: int, reached_as: str, start_again: Callable[[], None]) -> NoReturn:
    """Start the service again whenever its ingress is gone for good.

    Serve starts another replica, but that cannot listen while connections of the one that crashed
    wind down, and then counts the port as taken for ever (2.60): with a range of one port none of
    them comes up.

    Args:
        host: that the service listens on.
        port: of it.
        reached_as: the host as a caller on this machine names it.
        start_again: ends what is left of the service, starts it, and waits until it is ready.
    """
    seen = time.monotonic()
    while True:
        time.sleep(_LOOK_S)
        if _is_listening((reached_as, port)):
            seen = time.monotonic()
        elif time.monotonic() - seen > _GONE_S:
            _say("the ingress is gone, starting the service again ...")
            while not _is_free(host, port):
                time.sleep(_LOOK_S)
            start_again()
            _say("ready again")
            seen = time.monotonic()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _is_listening(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=_POLL_S):
            return True
    except TimeoutError:
        return True  # somebody is there, and busy
    except OSError:
        return False


def tune_serve(host: str, port: int, *, with_haproxy: bool) -> int:
    """Set what Ray Serve reads when it is imported, here and in all that is started here.

    Args:
        host: where the service is to answer.
        port: of it.
        with_haproxy: as asked.

    Returns:
        The port for Serve's own proxy.

    Raises:
        UserError: HAProxy is asked for on a cluster that runs already.
    """
    is_elsewhere = bool(os.environ.get("RAY_ADDRESS"))
    if is_elsewhere and with_haproxy:
        raise UserError(
            "--haproxy is for a Ray that starts here; on a cluster set "
            "RAY_SERVE_ENABLE_HA_PROXY=1 and RAY_SERVE_THROUGHPUT_OPTIMIZED=1 on every node"
        )
    if is_elsewhere:
        return port
    if with_haproxy:
        ports = (_free_port(), _free_port())
        said = f"ports {ports[0]} and {ports[1]} of every address"
        print(f"HAProxy's status: {said}", file=sys.stderr)
        os.environ.update(tuning.haproxy(*ports))
        return port
    if os.environ.get("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1") != "1":
        return port  # Serve as it comes, because the user says so
    if not _is_free(host, port):
        os.environ.update(tuning.proxied())
        print(
            f"connections to port {port} of an earlier run wind down for up to a minute: Serve's "
            "own proxy listens there this time, which makes answers some 10 ms slower",
            file=sys.stderr,
        )
        return port
    os.environ.update(tuning.direct(port))
    return _free_port()


def _is_free(host: str, port: int) -> bool:
    """Whether a server that does not share ports, as Serve's replicas do not, could listen."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(address)
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
