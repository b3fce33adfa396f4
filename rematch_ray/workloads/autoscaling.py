"""Nodes that are not there yet: whether a cluster has an autoscaler, and waiting for what it adds.

A cluster of KubeRay's or of `ray up` may have a head alone until work comes, so that its living
nodes say nothing of what fits. Knows nodes and resources, nothing of what they are for. Top floor.
"""

import time
from collections.abc import Callable, Mapping, Sequence

# Ray sets it where an autoscaler names the group of a node that it starts, the head's too
NODE_GROUP = "ray.io/node-group"
# a node that has to be rented, started and sent an image of some gigabytes
PATIENCE_S = 20 * 60.0
POLL_S = 2.0


def is_autoscaled() -> bool:
    """Whether the connected cluster has nodes that belong to an autoscaler's groups."""
    import ray

    return any((node.get("Labels") or {}).get(NODE_GROUP) for node in ray.nodes() if node["Alive"])


def wait_for_nodes(bundles: Sequence[Mapping[str, float]], fits: Callable[[], bool]) -> bool:
    """Ask the autoscaler for room and wait until it is there.

    Args:
        bundles: resources of each thing that will run, `{"CPU": 1.0, "GPU": 1.0}`.
        fits: whether the living nodes have room for them.

    Returns:
        Whether the room came in time.
    """
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[dict(bundle) for bundle in bundles])
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := fits()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return found
    finally:
        # from here on the work itself asks; a request that stays would hold the nodes for ever
        request_resources(bundles=[])
