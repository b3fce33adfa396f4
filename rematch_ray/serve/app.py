"""The Serve application: ingress -> encoder -> shard, from one `ServeArgs`.

``rematch_ray.serve.app:build`` is the import path in ``cluster/serve.yaml``. Composition only: what
a request means stands in `serve.routes`. Annotations are evaluated in this module: Serve reads that
of `build` to turn the YAML's args into a `ServeArgs`.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from rematch_ray.data.item import Item
from rematch_ray.errors import UserError
from rematch_ray.serve.backend import (
    EncodedQuery,
    NotReadyError,
    OverloadedError,
    SearchPlan,
    ServedIndex,
)
from rematch_ray.serve.encoder import Encoder
from rematch_ray.serve.limits import KeyRing
from rematch_ray.serve.media import MediaRoots
from rematch_ray.serve.metrics import Recorder, collect
from rematch_ray.serve.pair import fitting_export
from rematch_ray.serve.routes import make_api
from rematch_ray.serve.settings import ApiKey, ServeArgs
from rematch_ray.serve.shard import Shard

READY_TIMEOUT_S = 3.0


class HandleBackend:
    """A `Backend` over Serve handles.

    Args:
        encoder: handle of `Encoder`.
        shard: handle of `Shard`.
    """

    def __init__(self, encoder: DeploymentHandle, shard: DeploymentHandle) -> None:
        self._encoder = encoder
        self._shard = shard
        self._served: ServedIndex | None = None

    async def encode(self, query: Item, instruction: str | None) -> EncodedQuery:
        """Turn one query into vectors."""
        return await _answer(self._encoder.encode.remote(query, instruction))

    async def search(self, query: Any, plan: SearchPlan) -> Any:
        """Search with one query."""
        return await _answer(self._shard.search.remote(query, plan))

    async def payload(self, document_id: str) -> Mapping[str, Any] | None:
        """The payload of a document, or None."""
        return await _answer(self._shard.payload.remote(document_id))

    async def served(self) -> ServedIndex:
        """Facts of the model and the index, as of the last look whether both are ready."""
        if self._served is None:
            await self.ready()
        assert self._served is not None
        return self._served

    async def ready(self) -> None:
        """Whether encoder and shard answer now.

        Raises:
            NotReadyError: one of them does not; the message says which.
        """
        encoder, shard = self._encoder, self._shard
        identity, instruction, info = await asyncio.gather(
            _promptly("encoder", encoder.identity.remote()),
            _promptly("encoder", encoder.default_instruction.remote()),
            _promptly("index", shard.info.remote()),
        )
        self._served = ServedIndex(
            index=info,
            model=identity,
            budgets=offered_budgets(identity),
            instruction=instruction,
        )

    async def metrics(self) -> str:
        """Metrics that the nodes' agents export, joined."""
        return await collect()


def offered_budgets(identity: Mapping[str, Any]) -> dict[str, str]:
    """Every budget a request may name -> the rung it stands for.

    >>> offered_budgets({"ladder": ["1x1", "2x4"], "fused_dim": None})
    {'auto': '2x4', 'fast': '2x4', 'balanced': '2x4', 'full': '2x4', '1x1': '1x1', '2x4': '2x4'}
    """
    from rematch_ray.scoring.budget import Ladder

    ladder = Ladder.parse(identity["ladder"])
    offered = {"auto": str(ladder.top)}  # until a calibration says better
    if identity["fused_dim"]:
        offered["fused"] = "fused"
    offered |= {name: str(rung) for name, rung in ladder.names().items()}
    return offered | {str(rung): str(rung) for rung in ladder.rungs}


async def _answer(response: Any) -> Any:
    """The answer of a deployment; its errors as this process's own."""
    try:
        return await response
    except BackPressureError as full:
        raise OverloadedError("every replica's queue is full; try again in a moment") from full
    except RayTaskError as failed:
        if isinstance(failed.cause, UserError):
            # without the remote stack: the message alone is for the caller
            raise failed.cause from None
        raise


async def _promptly(name: str, response: Any) -> Any:
    try:
        return await asyncio.wait_for(_answer(response), READY_TIMEOUT_S)
    except TimeoutError as silent:
        raise NotReadyError(f"the {name} does not answer yet") from silent


@serve.ingress()
class Ingress:
    """Replica that answers HTTP.

    Args:
        encoder: handle of `Encoder`.
        shard: handle of `Shard`.
        args: settings of the application.
        keys: who may call; empty for everyone.
    """

    def __init__(
        self,
        encoder: DeploymentHandle,
        shard: DeploymentHandle,
        args: ServeArgs,
        keys: tuple[ApiKey, ...],
    ) -> None:
        self._backend = HandleBackend(encoder, shard)
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


def build(args: ServeArgs) -> Application:
    """Compose the application of one index.

    Args:
        args: what to serve, for whom, on what.

    Returns:
        The application, to be run or deployed.

    Raises:
        UserError: no API keys and no permission to do without, no such index or model, or a model
            that the index was not built with.
    """
    from rematch_ray.index.search import SearchIndex

    keys = args.read_keys()
    model = fitting_export(SearchIndex.open(args.index), args.model)
    encoder = serve.deployment(
        name="encoder",
        num_replicas=args.encoder.num_replicas,
        ray_actor_options={"num_cpus": args.encoder.num_cpus, "num_gpus": args.encoder.num_gpus},
        # two batches' worth: one is computed while the next fills
        max_ongoing_requests=2 * args.encoder.max_batch_size,
        max_queued_requests=args.encoder.max_queued_requests,
    )(Encoder).bind(str(model), args.encoder, args.limits.max_image_pixels)
    shard = serve.deployment(
        name="shard",
        num_replicas=args.shard.num_replicas,
        ray_actor_options={"num_cpus": args.shard.num_cpus},
        max_ongoing_requests=4 * args.shard.num_threads,
        max_queued_requests=args.shard.max_queued_requests,
    )(Shard).bind(str(args.index.resolve()), args.shard.num_threads)
    ingress = serve.deployment(
        name="ingress",
        num_replicas=args.ingress_replicas,
        ray_actor_options={"num_cpus": 0},
        # the queues of the two others refuse first, with an answer of ours
        max_ongoing_requests=args.encoder.max_queued_requests + args.shard.max_queued_requests,
    )(Ingress)
    return ingress.bind(encoder, shard, args, keys)
