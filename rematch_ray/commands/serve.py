"""Serve an index over HTTP on Ray Serve, with the search page at / and the API's at /docs.

Starts Ray in this process, or joins the cluster that RAY_ADDRESS names, whose Serve must not listen
elsewhere, and runs until Ctrl-C. On loopback no API key is needed, and only who asks for localhost
is answered; any other address asks for --api-keys-file.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rematch_ray.commands import interruption, joining
from rematch_ray.commands.listening import keep_up, tune_serve
from rematch_ray.commands.parser import OneLineParser, existing_directory, positive_number
from rematch_ray.errors import UserError

if TYPE_CHECKING:
    from ray.serve import Application

    from rematch_ray.serve.settings import ServeArgs

APPLICATION = "rematch-ray"
READY_TIMEOUT_S = 300.0
_POLL_S = 0.25


def add_arguments(parser: OneLineParser) -> None:
    """Add what ``rematch-ray serve`` takes."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=["run", "swap"],
        default="run",
        help="swap: tell the service at --url to change to --index and --model, without downtime",
    )
    parser.add_argument("--url", metavar="URL", help="of a running service, for swap")
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="holds an admin's key, for swap"
    )
    parser.add_argument("--index", type=Path, required=True, metavar="DIR", help="what to serve")
    parser.add_argument("--model", metavar="CKPT", help="default: the one that the index names")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=_port, default=8000, help="port to listen on (8000)")
    parser.add_argument(
        "--api-keys-file",
        type=Path,
        metavar="FILE",
        help="who may ask: lines 'NAME SHA256', made by: printf %%s KEY | sha256sum",
    )
    parser.add_argument(
        "--media-root",
        type=existing_directory,
        action="append",
        metavar="DIR",
        help="directory whose images may be shown; repeatable (default on loopback: the working "
        "directory)",
    )
    parser.add_argument(
        "--replicas", type=positive_number, default=1, metavar="N", help="copies of the model (1)"
    )

    parser.add_argument(
        "--query-log",
        type=Path,
        metavar="DIR",
        help="keep the vectors of queries, never their content, for 'rematch-ray doctor --queries "
        "DIR' (default: do not)",
    )
    parser.add_argument(
        "--haproxy",
        action="store_true",
        help="HAProxy in front, where ingress replicas that come and go are to be reached at one "
        "port; its own two status ports, named at the start, listen on every address and ask for "
        "no key",
    )

    def settings() -> str:
        from rematch_ray.serve.settings import describe

        return f"args of rematch_ray.serve.app:build, for 'serve deploy' and KubeRay:\n{describe()}"

    parser.appendix = settings


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Serve until interrupted, or tell a running service to change."""
    if options.action == "swap":
        return _swap(options)
    if options.url is not None or options.api_key_file is not None:
        raise UserError("--url and --api-key-file belong to 'rematch-ray serve swap'")
    args, shards = _settings(options)
    args.read_keys()
    is_joined = bool(os.environ.get("RAY_ADDRESS"))
    if not is_joined:
        _check_port(options.host, options.port)
    proxy_port = tune_serve(options.host, options.port, with_haproxy=options.haproxy)
    from rematch_ray.workloads.runtime import Bundle, connect

    bundles = [
        Bundle("encoder", args.encoder.num_cpus, args.encoder.num_gpus, args.encoder.num_replicas),
        Bundle("index shard", args.shard.num_cpus, count=shards * args.shard.num_replicas),
    ]
    url = f"http://{_spoken(options.host)}:{options.port}/"
    started = time.perf_counter()
    print(f"starting Ray Serve for {options.index} ...", file=sys.stderr, flush=True)
    from ray import serve

    from rematch_ray.serve.app import build

    def start_again() -> None:
        serve.shutdown()
        _start_serve(options.host, proxy_port, is_joined=is_joined)
        _deploy(build(args), f"{url}readyz")

    with connect(bundles):
        interruption.install()  # Ray's own handler prints a native stack and aborts
        _start_serve(options.host, proxy_port, is_joined=is_joined)
        application = build(args)
        with _taken_away(is_joined):
            _deploy(application, f"{url}readyz")
            seconds = time.perf_counter() - started
            said = f"ready after {seconds:.0f} s: {url} (API: {url}docs), Ctrl-C ends"
            print(said, file=sys.stderr, flush=True)
            with contextlib.suppress(KeyboardInterrupt):  # the way to end a server, not a failure
                if proxy_port == options.port:
                    threading.Event().wait()
                reached_as = _spoken(options.host).strip("[]")
                keep_up(options.host, options.port, reached_as, start_again)
            print("stopping ...", file=sys.stderr, flush=True)
            # a cluster of our own ends with us, but a log is closed by the replica that writes it
            if options.query_log is not None and not is_joined:
                serve.delete(APPLICATION)
    return {"url": url, "seconds_until_ready": round(seconds, 1)}


def _swap(options: argparse.Namespace) -> dict[str, Any]:
    from rematch_ray.commands.swap import swap

    if options.url is None:
        raise UserError("'serve swap' asks a running service: give its --url")
    # a service on this machine may have been started from another directory
    index = str(options.index.absolute()) if options.index.exists() else str(options.index)
    model = options.model
    if model is not None and Path(model).exists():
        model = str(Path(model).absolute())
    return swap(options.url, index, model, options.api_key_file)


def _settings(options: argparse.Namespace) -> tuple[ServeArgs, int]:
    """What to serve, and the shards that it is split into."""
    from rematch_ray.index.search import SearchIndex
    from rematch_ray.serve.loopback import is_loopback
    from rematch_ray.serve.pair import fitting_export
    from rematch_ray.serve.settings import (
        AccessLogSettings,
        EncoderSettings,
        QueryLogSettings,
        ServeArgs,
        ShardSettings,
    )

    index = SearchIndex.open(options.index)
    export = fitting_export(index, options.model)
    local = is_loopback(options.host)
    # on loopback the caller is the user, and the files are the user's own
    roots = options.media_root or ([Path.cwd()] if local else [])
    args = ServeArgs(
        index=options.index,
        model=str(export),
        api_keys_file=options.api_keys_file,
        allow_anonymous=local and options.api_keys_file is None,
        media_roots=tuple(roots),
        encoder=EncoderSettings(
            num_replicas=options.replicas,
            # one core is left for what stands around it
            num_threads=max(1, ((os.cpu_count() or 1) - 1) // options.replicas),
        ),
        # one machine: what it would win in separate processes it would lose between them
        shard=ShardSettings(in_ingress=True),
        # the terminal of a laptop is not where a log belongs
        access_log=AccessLogSettings(enabled=not local),
        query_log=QueryLogSettings(
            # replicas have a working directory of their own; on one machine queries are few
            directory=options.query_log and options.query_log.absolute(),
            share=1.0,
        ),
    )
    return args, index.info()["shards"]


def _check_port(host: str, port: int) -> None:
    """Refuse a port that is taken before Ray is started for nothing."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as unknown:
        raise UserError(f"--host {host}: {unknown.strerror or unknown}") from unknown
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # as the server will do: a connection that is only winding down does not count as taken
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as taken:
            raise UserError(
                f"cannot listen on {host}:{port}: {taken.strerror}; choose another --port"
            ) from taken


def _start_serve(host: str, port: int, *, is_joined: bool) -> None:
    """Start Serve where it does not run; refuse one that listens elsewhere."""
    from ray import serve
    from ray.serve.config import HTTPOptions

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if (running := joining.running_at()) is None:
        if is_joined:  # else it was looked at before Ray was started
            _check_port(host, port)
        serve.start(http_options=HTTPOptions(host=host, port=port), logging_config=_quiet())
        running = joining.running_at()  # somebody else may have been quicker
    joining.refuse_elsewhere(running, host, port)


def _deploy(application: Application, ready_url: str) -> None:
    """Start the application and wait until it answers."""
    from ray import serve

    serve.run(application, name=APPLICATION, route_prefix="/", logging_config=_quiet())
    _wait_until_ready(ready_url)


def _quiet() -> Any:
    from ray.serve.schema import LoggingConfig

    return LoggingConfig(log_level="WARNING", enable_access_log=False)


@contextlib.contextmanager
def _taken_away(is_joined: bool) -> Iterator[None]:
    """Leave no application behind on a cluster that goes on, whatever ends us."""
    from ray import serve

    try:
        yield
    finally:
        if is_joined:
            serve.delete(APPLICATION)


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    said = "no answer"
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except urllib.error.HTTPError as waiting:
            said = f"{waiting.code}"
        except OSError as silent:
            said = str(silent)
        time.sleep(_POLL_S)
    raise RuntimeError(f"{url} was not ready within {READY_TIMEOUT_S:.0f} s: {said}")


def _spoken(host: str) -> str:
    """A host as a URL names it: what listens everywhere is reached as localhost."""
    if host in ("0.0.0.0", "::", "127.0.0.1"):
        return "localhost"
    return f"[{host}]" if ":" in host else host


def _port(text: str) -> int:
    port = int(text) if text.isdecimal() else 0
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 1 to 65535")
    return port
