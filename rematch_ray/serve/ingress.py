"""The deployment that answers HTTP: a router over this application's handles, behind the routes.

Composition only. Annotations are evaluated in this module: Serve reads those of a replica.
"""

import asyncio
import time

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from rematch_ray.serve.access_log import AccessLog
from rematch_ray.serve.drifting import DriftWatch
from rematch_ray.serve.follower import ShardClient
from rematch_ray.serve.gathering import GatheringEncoder
from rematch_ray.serve.handles import (
    RemoteCoordinator,
    RemoteEncoder,
    RemoteSets,
    RemoteShard,
    RemoteWriter,
)
from rematch_ray.serve.keys import KeyRing
from rematch_ray.serve.leases import LeasedQuota
from rematch_ray.serve.local_shard import HeldShard, tell_from_thread
from rematch_ray.serve.media import MediaRoots
from rematch_ray.serve.metrics import collect
from rematch_ray.serve.query_log import QueryLog
from rematch_ray.serve.replica_log import start_replica
from rematch_ray.serve.router import Parts, Router
from rematch_ray.serve.routes import make_api
from rematch_ray.serve.set_backend import PinToSet, SetBackend
from rematch_ray.serve.sets import SetParts, handles_of, is_in_ingress
from rematch_ray.serve.settings import ServeArgs
from rematch_ray.serve.shard import Shard
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
        self._recorder = start_replica()
        self._held: dict[str, HeldShard] = {}

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Builds the application in the replica: an app object does not travel."""
        api = make_api(
            self._backend,
            keys=self._keys,
            limits=self._args.limits,
            media=MediaRoots(self._args.media_roots),
            record=(self._recorder, AccessLog(self._args.access_log)),
            query_log=QueryLog(self._args.query_log),
            sets=self._sets,
        )
        api.add_middleware(PinToSet, backend=self._backend)
        return api

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Work asked for and possible, where this replica holds the index."""
        every = [shard.record_autoscaling_stats() for shard in self._held.values()]
        return {name: sum(each[name] for each in every) for name in every[0]} if every else {}

    async def _reach(self, spec: SetSpec) -> Router:
        """A router over a set."""
        parts = self._parts if spec == self._first else await handles_of(spec, self._args)
        coordinator = RemoteCoordinator(
            "coordinator", parts.coordinator, timeout_s=EXCHANGE_TIMEOUT_S, tries=1
        )
        shards: list[ShardClient] = [
            RemoteShard(f"index shard {number}", shard) for number, shard in enumerate(parts.shards)
        ]
        if is_in_ingress(self._args, spec):
            shards = [await self._hold(spec, coordinator)]
        reached = Parts(
            encoder=self._gathering(parts.encoder),
            shards=shards,
            coordinator=coordinator,
            writer=RemoteWriter("writer", parts.writer, tries=1),
            collect=collect,
            close=lambda: self._let_go(spec),
        )
        return Router(
            reached,
            quota=LeasedQuota(self._keys.quotas, time.monotonic, self._args.quotas),
            head_weight=self._args.head_weight,
            media=MediaRoots(self._args.media_roots),
            drift=DriftWatch(self._args.drift_share, self._recorder.checked),
        )

    def _gathering(self, encoder: DeploymentHandle) -> GatheringEncoder:
        settings = self._args.encoder
        return GatheringEncoder(
            RemoteEncoder("encoder", encoder),
            most=settings.max_batch_size,
            replicas=settings.max_replicas or settings.num_replicas,
            most_waiting=settings.max_queued_requests,
        )

    async def _hold(self, spec: SetSpec, coordinator: RemoteCoordinator) -> HeldShard:
        """The index of a set, opened in this process."""
        settings, loop = self._args.shard, asyncio.get_running_loop()
        shard = await asyncio.to_thread(
            Shard,
            spec.index,
            settings.num_threads,
            # handles are called from the loop that they were made in
            tell=lambda report: tell_from_thread(loop, coordinator.report(report)),
            record=lambda: self._recorder,
            drift_share=self._args.drift_share,
            device=settings.device,
            preload=settings.preload,
        )
        held = HeldShard(shard, settings.max_queued_requests + settings.num_threads)
        self._held[spec.name] = held
        return held

    def _let_go(self, spec: SetSpec) -> None:
        if (held := self._held.pop(spec.name, None)) is not None:
            held.close()
