"""A program: embeds a corpus on one node or on two, so that a test can kill what it wants."""

import json
import os
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from rematch_ray.config import EmbedSettings
from rematch_ray.workloads.embed import embed
from tests.conftest import ENVIRONMENT, REPOSITORY
from tests.workloads.runs import when
from tests.workloads.slow_reads import OUT, READERS, first_files, install

SETTINGS = EmbedSettings(rows_per_write=128, window_rows=64, progress_seconds=1)


def main(export: str, data: str, out: str, readers: str, nodes: str) -> None:
    """One node in this process, or two of which one is taken away after the first files."""
    variables = {**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY), READERS: readers, OUT: out}
    environment = {"env_vars": variables, "worker_process_setup_hook": install}
    settings, taken, cluster = SETTINGS, None, None
    if nodes == "2":
        settings = SETTINGS.model_copy(update={"num_actors": 2, "cpus_per_actor": 2.0})
        # sizes by which Ray puts one model process on each node, and one node has room for both
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 7})
        node = cluster.add_node(num_cpus=6)
        ray.init(address=cluster.address, log_to_driver=False, runtime_env=environment)
        taken = when(
            lambda: first_files(Path(out)) and actors(Path(out)) == 2,
            lambda: cluster.remove_node(node, allow_graceful=False),
        )
    else:
        ray.init("local", num_cpus=4, log_to_driver=False, runtime_env=environment)
    result = embed(model=export, data=data, out=out, settings=settings)
    if taken is not None:
        taken.join()
    # the driver first: one that loses its node at the end of the program exits with 1
    ray.shutdown()
    if cluster is not None:
        cluster.shutdown()
    print(json.dumps(result))


def actors(out: Path) -> int:
    """Model processes that were ready once."""
    return len(list((out / ".progress").glob("run-*/actors/*.json")))


if __name__ == "__main__":
    os.environ.pop("RAY_ADDRESS", None)
    main(*sys.argv[1:])
