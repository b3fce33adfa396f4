"""The Serve application: ingress -> encoder -> shards, beside a coordinator, from one `ServeArgs`.

``rematch_ray.serve.app:build`` is the import path in ``cluster/serve.yaml``. Composition only: what
a request means stands in `serve.routes`. Annotations are evaluated in this module: Serve reads that
of `build` to turn the YAML's args into a `ServeArgs`.
"""

from typing import Any

from ray import serve
from ray.serve import Application

from rematch_ray.serve.coordinator import Coordinator
from rematch_ray.serve.encoder import Encoder
from rematch_ray.serve.ingress import Ingress
from rematch_ray.serve.pair import fitting_export
from rematch_ray.serve.settings import EncoderSettings, ServeArgs, ShardSettings
from rematch_ray.serve.shard import Shard

WORK_POLICY = "rematch_ray.serve.autoscaling:work_policy"
METRICS_INTERVAL_S = 2.0
UPSCALE_DELAY_S = 5.0


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
    index = SearchIndex.open(args.index)
    model = fitting_export(index, args.model)
    num_shards = index.info()["shards"]
    coordinator = _coordinator(args, num_shards, len(index.ladder.rungs))
    shards = [_shard(args, number, coordinator) for number in range(num_shards)]
    return _ingress(args, num_shards).bind(
        _encoder(args, str(model)), shards, coordinator, None, args, keys
    )


def _encoder(args: ServeArgs, model: str) -> Application:
    settings = args.encoder
    return serve.deployment(
        name="encoder",
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        # two batches' worth: one is computed while the next fills
        max_ongoing_requests=2 * settings.max_batch_size,
        max_queued_requests=settings.max_queued_requests,
        **_scaling(settings, None),
    )(Encoder).bind(model, settings, args.limits.max_image_pixels)


def _shard(args: ServeArgs, number: int, coordinator: Application) -> Application:
    settings = args.shard
    return serve.deployment(
        name=f"shard-{number}",
        ray_actor_options={"num_cpus": settings.num_cpus},
        # searches wait in the shard, where their waiting is measured
        max_ongoing_requests=settings.max_queued_requests + settings.num_threads,
        max_queued_requests=settings.max_queued_requests,
        **_scaling(settings, WORK_POLICY),
    )(Shard).bind(str(args.index.resolve()), settings.num_threads, number, coordinator)


def _scaling(settings: EncoderSettings | ShardSettings, policy: str | None) -> dict[str, Any]:
    """How many replicas, as Serve takes it."""
    if settings.max_replicas is None:
        return {"num_replicas": settings.num_replicas}
    config: dict[str, Any] = {
        "min_replicas": settings.num_replicas,
        "max_replicas": max(settings.num_replicas, settings.max_replicas),
        "upscale_delay_s": UPSCALE_DELAY_S,
    }
    if policy is not None:
        config |= {"policy": {"policy_function": policy}, "metrics_interval_s": METRICS_INTERVAL_S}
    return {"autoscaling_config": config}


def _coordinator(args: ServeArgs, num_shards: int, num_levels: int) -> Application:
    return serve.deployment(
        name="coordinator", num_replicas=1, ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=1000,
    )(Coordinator).bind(num_shards, num_levels, args.load, {}, args.quotas)  # fmt: skip


def _ingress(args: ServeArgs, num_shards: int) -> Any:
    return serve.deployment(
        name="ingress",
        num_replicas=args.ingress_replicas,
        ray_actor_options={"num_cpus": 0},
        # the queues of the others refuse first, with an answer of ours
        max_ongoing_requests=args.encoder.max_queued_requests
        + 2 * args.shard.max_queued_requests
        + args.shard.num_threads,
    )(Ingress)
