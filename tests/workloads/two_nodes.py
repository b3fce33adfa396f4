"""A program: trains on a cluster of two nodes on this machine and takes one away on the way."""

import os
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from rematch_ray.workloads.train import train
from tests.conftest import ENVIRONMENT, REPOSITORY
from tests.workloads.runs import records, run_config, when


def main(base: str, photos: str, notes: str, storage: str) -> None:
    """Each node has room for one training process; the first one for data tasks, too."""
    run = run_config(
        Path(base),
        {"photos": Path(photos), "notes": Path(notes)},
        Path(storage),
        num_workers=(1, 2),
        cpus_per_worker=2,
        cpus_per_encoder=0.5,
    )
    # the tests' environment waits longer than an elastic run does
    del os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
    node = cluster.add_node(num_cpus=2)
    environment = {"env_vars": {**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}}
    ray.init(address=cluster.address, log_to_driver=False, runtime_env=environment)
    # the rows of step 5 are counted: a checkpoint after step 4 is on its way
    gone = when(
        lambda: len(records(run, "step")) > 5,
        lambda: cluster.remove_node(node, allow_graceful=False),
    )
    train(run)
    gone.join()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
