"""What a set is made of on Serve: encoder, shards, coordinator and writer of one pair.

The first set's deployments belong to the application itself; those of a set that comes later are an
application without a route, behind a `Gate` that only holds them together. Composition only.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from rematch_ray.errors import UserError
from rematch_ray.serve.coordinator import Coordinator
from rematch_ray.serve.encoder import Encoder
from rematch_ray.serve.load import scale_up_utilisation
from rematch_ray.serve.pair import fitting_export
from rematch_ray.serve.replica_log import start_replica
from rematch_ray.serve.settings import EncoderSettings, ServeArgs, ShardSettings
from rematch_ray.serve.shard import Shard
from rematch_ray.serve.swap import SetSpec
from rematch_ray.serve.writer import Writer

WORK_POLICY = "rematch_ray.serve.autoscaling:WorkPolicy"
UPSCALE_DELAY_S = 5.0


@dataclass(frozen=True)
class SetParts:
    """The deployments of a set: applications while it is composed, handles when it runs.

    Attributes:
        encoder: turns items into vectors.
        shards: of the index, in order; none where the ingress holds it.
        coordinator: of this set: state of the index, ceiling, quotas.
        writer: of the index.
    """

    encoder: Any
    shards: list[Any]
    coordinator: Any
    writer: Any


def check_pair(index: Path, model: str | None, name: str) -> SetSpec:
    """A pair of index and model, once they are found to fit.

    Args:
        index: directory.
        model: export or run directory; None takes the one that the index names.
        name: of the application that is to hold the set; "" for the application itself.

    Raises:
        UserError: there is no such index or model, it cannot be read, or the model did not embed
            the documents.
    """
    from rematch_ray.index.search import SearchIndex

    try:
        opened = SearchIndex.open(index)
        export = fitting_export(opened, model)
    except OSError as unreadable:
        raise UserError(f"index {index} or its model cannot be read: {unreadable}") from unreadable
    return SetSpec(
        name=name,
        index=str(index.resolve()),
        model=str(export),
        num_shards=opened.info()["shards"],
        digest=str(opened.identity["digest"]),
    )


def bind_set(args: ServeArgs, spec: SetSpec) -> SetParts:
    """Compose the deployments of a set.

    Args:
        args: settings of the application.
        spec: the pair.
    """
    from rematch_ray.index.search import SearchIndex

    index = SearchIndex.open(spec.index)
    coordinator = _coordinator(args, spec.num_shards, len(index.ladder.rungs))
    encoder = _encoder(args, spec.model)
    return SetParts(
        encoder=encoder,
        shards=[_shard(args, spec.index, n, coordinator) for n in range(_deployed(args, spec))],
        coordinator=coordinator,
        writer=_writer(args, spec.index, dict(index.identity), encoder),
    )


def build_set(args: ServeArgs, spec: SetSpec) -> Application:
    """A set as an application of its own, without a route."""
    parts = bind_set(args, spec)
    gate = serve.deployment(name="gate", num_replicas=1, ray_actor_options={"num_cpus": 0})(Gate)
    return gate.bind(parts.encoder, parts.shards, parts.coordinator, parts.writer)


async def handles_of(spec: SetSpec, args: ServeArgs) -> SetParts:
    """Handles of a set that is an application of its own."""

    def handle(deployment: str) -> DeploymentHandle:
        return serve.get_deployment_handle(deployment, app_name=spec.name)

    def all_of_them() -> SetParts:
        return SetParts(
            encoder=handle("encoder"),
            shards=[handle(f"shard-{number}") for number in range(_deployed(args, spec))],
            coordinator=handle("coordinator"),
            writer=handle("writer"),
        )

    # asks the controller, which may take a moment
    return await asyncio.to_thread(all_of_them)


class Gate:
    """Holds the deployments of a set together; no request passes through it.

    Args:
        parts: handles.
    """

    def __init__(self, *parts: Any) -> None:
        self._parts = parts


def is_in_ingress(args: ServeArgs, spec: SetSpec) -> bool:
    """Whether the ingress holds the index of a set: one shard, and so set."""
    return args.shard.in_ingress and spec.num_shards == 1


def _deployed(args: ServeArgs, spec: SetSpec) -> int:
    """Shards that are deployments."""
    return 0 if is_in_ingress(args, spec) else spec.num_shards


def _encoder(args: ServeArgs, model: str) -> Application:
    settings = args.encoder
    return serve.deployment(
        name="encoder",
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        # two batches' worth: one is computed while the next fills
        max_ongoing_requests=2 * settings.max_batch_size,
        max_queued_requests=settings.max_queued_requests,
        **_scaling(settings),
    )(Encoder).bind(model, settings, args.limits.max_image_pixels, record=start_replica)


def _shard(args: ServeArgs, index: str, number: int, coordinator: Application) -> Application:
    settings = args.shard
    return serve.deployment(
        name=f"shard-{number}",
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        # searches wait in the shard, where their waiting is measured
        max_ongoing_requests=settings.max_queued_requests + settings.num_threads,
        max_queued_requests=settings.max_queued_requests,
        **scaling_by_work(args),
    )(Shard).bind(
        index,
        settings.num_threads,
        number,
        coordinator,
        record=start_replica,
        drift_share=args.drift_share,
        device=settings.device,
        preload=settings.preload,
    )


def scaling_by_work(args: ServeArgs) -> dict[str, Any]:
    """How many replicas hold the index, by the work that is asked of them."""
    return _scaling(args.shard, **_by_work(args))


def _scaling(settings: EncoderSettings | ShardSettings, **policy: Any) -> dict[str, Any]:
    """How many replicas, as Serve takes it; without a policy by requests under way."""
    if settings.max_replicas is None:
        return {"num_replicas": settings.num_replicas}
    config: dict[str, Any] = {
        "min_replicas": settings.num_replicas,
        "max_replicas": max(settings.num_replicas, settings.max_replicas),
        "upscale_delay_s": UPSCALE_DELAY_S,
    }
    return {"autoscaling_config": config | policy}


def _by_work(args: ServeArgs) -> dict[str, Any]:
    """The policy of shards: how busy they may be lies below where the ceiling comes down."""
    settings = args.shard
    counts = range(1, (settings.max_replicas or settings.num_replicas) + 1)
    shares = [
        round(scale_up_utilisation(count * settings.num_threads, args.load.target_share), 4)
        for count in counts
    ]
    return {"policy": {"policy_function": WORK_POLICY, "policy_kwargs": {"shares": shares}}}


def _coordinator(args: ServeArgs, num_shards: int, num_levels: int) -> Application:
    return serve.deployment(
        name="coordinator", num_replicas=1, ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=1000,
    )(Coordinator).bind(num_shards, num_levels, args, record=start_replica)  # fmt: skip


def _writer(args: ServeArgs, index: str, identity: dict[str, Any], encoder: Any) -> Application:
    settings = args.writer
    return serve.deployment(
        name="writer",
        num_replicas=1,
        ray_actor_options={"num_cpus": settings.num_cpus},
        # requests wait in the writer, where they join
        max_ongoing_requests=settings.max_queued_requests,
        max_queued_requests=settings.max_queued_requests,
    )(Writer).bind(index, identity, encoder, settings, record=start_replica)
