"""The Serve application of one index: an ingress over a set (`serve.sets`), from one `ServeArgs`.

``rematch_ray.serve.app:build`` is the import path in ``cluster/serve.yaml``. Composition only: what
a request means stands in `serve.routes`. Annotations are evaluated in this module: Serve reads that
of `build` to turn the YAML's args into a `ServeArgs`.
"""

import uuid
from typing import Any

from ray import serve
from ray.serve import Application

from rematch_ray.serve.ingress import Ingress
from rematch_ray.serve.set_manager import Sets
from rematch_ray.serve.sets import bind_set, check_pair, scaling_by_work
from rematch_ray.serve.settings import ServeArgs


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
    args.read_keys()
    first = check_pair(args.index, args.model, "")
    parts = bind_set(args, first)
    deployed = uuid.uuid4().hex
    sets = serve.deployment(
        name="sets", num_replicas=1, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000
    )(Sets).bind(args, first, deployed)
    return _ingress(args).bind(parts, sets, first, deployed, args)


def _ingress(args: ServeArgs) -> Any:
    holds_index = args.shard.in_ingress
    scaling = scaling_by_work(args) if holds_index else {"num_replicas": args.ingress_replicas}
    return serve.deployment(
        name="ingress",
        ray_actor_options={
            "num_cpus": args.shard.num_cpus if holds_index else 0,
            "num_gpus": args.shard.num_gpus if holds_index else 0,
        },
        # the queues of the others refuse first, with an answer of ours
        max_ongoing_requests=args.encoder.max_queued_requests
        + 2 * args.shard.max_queued_requests
        + args.shard.num_threads,
        **scaling,
    )(Ingress)
