"""The deployment that answers HTTP: a router over this application's handles, behind the routes.

Composition only. Annotations are evaluated in this module: Serve reads those of a replica.
"""

import time
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from rematch_ray.serve.handles import (
    RemoteCoordinator,
    RemoteEncoder,
    RemoteShard,
    RemoteWriter,
)
from rematch_ray.serve.leases import LeasedQuota
from rematch_ray.serve.limits import KeyRing
from rematch_ray.serve.media import MediaRoots
from rematch_ray.serve.metrics import Recorder, collect
from rematch_ray.serve.router import Parts, Router
from rematch_ray.serve.routes import make_api
from rematch_ray.serve.settings import ApiKey, ServeArgs

EXCHANGE_TIMEOUT_S = 1.0


@serve.ingress()
class Ingress:
    """Replica that answers HTTP.

    Args:
        encoder: handle of `Encoder`.
        shards: handles of `Shard`, in order.
        coordinator: handle of `Coordinator`.
        writer: handle of the writer, or None where writes are off.
        args: settings of the application.
        keys: who may call; empty for everyone.
    """

    def __init__(
        self,
        encoder: DeploymentHandle,
        shards: Sequence[DeploymentHandle],
        coordinator: DeploymentHandle,
        writer: Any,
        args: ServeArgs,
        keys: tuple[ApiKey, ...],
    ) -> None:
        parts = Parts(
            encoder=RemoteEncoder("encoder", encoder),
            shards=[
                RemoteShard(f"index shard {number}", shard) for number, shard in enumerate(shards)
            ],
            coordinator=RemoteCoordinator(
                "coordinator", coordinator, timeout_s=EXCHANGE_TIMEOUT_S, tries=1
            ),
            writer=None if writer is None else RemoteWriter("writer", writer, tries=1),
            collect=collect,
        )
        self._backend = Router(
            parts,
            quota=LeasedQuota({}, time.monotonic, args.quotas),
            head_weight=args.head_weight,
        )
        self._args = args
        self._keys = keys

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Builds the application in the replica: an app object does not travel."""
        return make_api(
            self._backend,
            keys=KeyRing(self._keys),
            limits=self._args.limits,
            media=MediaRoots(self._args.media_roots),
            record=Recorder(),
        )
