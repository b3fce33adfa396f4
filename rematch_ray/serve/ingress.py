"""The deployment that answers HTTP: a router over this application's handles, behind the routes.

Composition only. Annotations are evaluated in this module: Serve reads those of a replica.
"""

import time

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from rematch_ray.serve.access_log import AccessLog
from rematch_ray.serve.handles import (
    RemoteCoordinator,
    RemoteEncoder,
    RemoteSets,
    RemoteShard,
    RemoteWriter,
)
from rematch_ray.serve.keys import KeyRing
from rematch_ray.serve.leases import LeasedQuota
from rematch_ray.serve.media import MediaRoots
from rematch_ray.serve.metrics import Recorder, collect
from rematch_ray.serve.router import Parts, Router
from rematch_ray.serve.routes import make_api
from rematch_ray.serve.set_backend import PinToSet, SetBackend
from rematch_ray.serve.sets import SetParts, handles_of
from rematch_ray.serve.settings import ServeArgs
from rematch_ray.serve.swap import SetSpec

EXCHANGE_TIMEOUT_S = 1.0


@serve.ingress()
class Ingress:
    """Replica that answers HTTP.

    Args:
        parts: handles of the first set.
        sets: handle of `Sets`.
        first: the first set.
        deployed: name of this deployment of the application.
        args: settings of the application.
    """

    def __init__(
        self,
        parts: SetParts,
        sets: DeploymentHandle,
        first: SetSpec,
        deployed: str,
        args: ServeArgs,
    ) -> None:
        self._parts = parts
        self._first = first
        self._args = args
        self._keys = KeyRing.of(args)
        self._sets = RemoteSets("manager of the sets", sets, deployed, timeout_s=EXCHANGE_TIMEOUT_S)
        self._backend = SetBackend(first, self._reach, self._sets)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Builds the application in the replica: an app object does not travel."""
        api = make_api(
            self._backend,
            keys=self._keys,
            limits=self._args.limits,
            media=MediaRoots(self._args.media_roots),
            record=(Recorder(), AccessLog(self._args.access_log)),
            sets=self._sets,
        )
        api.add_middleware(PinToSet, backend=self._backend)
        return api

    async def _reach(self, spec: SetSpec) -> Router:
        """A router over a set."""
        parts = self._parts if spec == self._first else await handles_of(spec)
        reached = Parts(
            encoder=RemoteEncoder("encoder", parts.encoder),
            shards=[
                RemoteShard(f"index shard {number}", shard)
                for number, shard in enumerate(parts.shards)
            ],
            coordinator=RemoteCoordinator(
                "coordinator", parts.coordinator, timeout_s=EXCHANGE_TIMEOUT_S, tries=1
            ),
            writer=RemoteWriter("writer", parts.writer, tries=1),
            collect=collect,
        )
        return Router(
            reached,
            quota=LeasedQuota(self._keys.quotas, time.monotonic, self._args.quotas),
            head_weight=self._args.head_weight,
            media=MediaRoots(self._args.media_roots),
        )
