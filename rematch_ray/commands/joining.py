"""Where Serve listens on a cluster that runs already.

The first who starts Serve on a cluster says where it listens; Serve 2.60 ignores, with a warning,
what a later one asks for. Knows nothing of what is served.
"""

from __future__ import annotations

from dataclasses import dataclass

from rematch_ray.errors import UserError

# Serve takes names for hosts, too
_SAME = {"localhost": "127.0.0.1"}


@dataclass(frozen=True)
class Address:
    """Where Serve listens.

    Attributes:
        host: None: HTTP is off.
        port: of it.
    """

    host: str | None
    port: int

    def is_at(self, host: str, port: int) -> bool:
        """Whether this is what was asked for.

        >>> Address("127.0.0.1", 8000).is_at("localhost", 8000)
        True
        >>> Address("0.0.0.0", 8000).is_at("localhost", 8000)
        False
        """
        mine = None if self.host is None else _SAME.get(self.host, self.host)
        return (mine, self.port) == (_SAME.get(host, host), port)


def running_at() -> Address | None:
    """Where Serve listens on the connected cluster; None where it does not run."""
    # no public call tells: `serve.status` leaves the address out
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    return Address(client.http_config.host, client.http_config.port)


def refuse_elsewhere(running: Address | None, host: str, port: int) -> None:
    """Refuse to serve at another address than was asked for.

    Who may ask follows from the address that was asked for: without keys it is loopback.

    Args:
        running: where Serve listens.
        host: that was asked for.
        port: likewise.

    Raises:
        UserError: the two differ.
    """
    if running is not None and running.is_at(host, port):
        return
    if running is None or running.host is None:
        found, join = "without HTTP", "start its Serve with HTTP"
    else:
        found = f"on {running.host}:{running.port}"
        join = f"give --host {running.host} --port {running.port}, and keys where that is not "
        join += "loopback (--api-keys-file)"
    raise UserError(
        f"--host {host} --port {port}: Serve runs on this cluster already, {found}, and stays "
        f"there; {join}, use 'serve deploy' (cluster/serve.yaml), or another cluster (without "
        "RAY_ADDRESS one is started here)"
    )
