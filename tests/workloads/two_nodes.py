"""A program: trains on a cluster of two nodes on this machine, one of which comes or goes.

`lost`: the second node is gone at once. `drained`: it is named as about to go, and goes seconds
later. `joined`: there is one node, and the second one comes while the run is under way.
"""

import atexit
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from rematch_ray.config import RunConfig
from rematch_ray.workloads.train import train
from tests.conftest import ENVIRONMENT, REPOSITORY
from tests.workloads.runs import records, run_config, when

# so many that the run outlasts the news of the other node
STEPS = {"lost": 32, "drained": 400, "joined": 240}
NOTICE_S = 20
RAY = str(Path(sys.executable).with_name("ray"))


def two_node_run(what: str, base: Path, samples: dict[str, Path], storage: Path) -> RunConfig:
    """Each node has room for one training process; the first one for data tasks, too."""
    return run_config(
        base,
        samples,
        storage,
        num_workers=(1, 2),
        cpus_per_worker=2,
        cpus_per_encoder=0.5,
        steps=STEPS[what],
        resize_seconds=5.0 if what == "joined" else 60.0,
    )


def join(cluster: Cluster) -> Callable[[], None]:
    def start() -> None:
        # by its command: a node that is started here installs signal handlers, which threads cannot
        command = [RAY, "start", "--address", cluster.address, "--num-cpus", "2", "--block"]
        node = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        atexit.register(node.terminate)

    return start


def lose(cluster: Cluster, node: Any) -> Callable[[], None]:
    return lambda: cluster.remove_node(node, allow_graceful=False)


def drain(cluster: Cluster, node: Any, run: RunConfig) -> Callable[[], None]:
    def leave() -> None:
        command = [RAY, "drain-node", "--address", cluster.address]
        command += ["--node-id", node.node_id]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        command += ["--deadline-remaining-seconds", str(NOTICE_S)]
        subprocess.run(command, check=True, timeout=60)
        ends = time.monotonic() + NOTICE_S
        while time.monotonic() < ends and not records(run, "note"):
            time.sleep(0.1)
        cluster.remove_node(node, allow_graceful=False)

    return leave


def main(what: str, base: str, photos: str, notes: str, storage: str) -> None:
    samples = {"photos": Path(photos), "notes": Path(notes)}
    run = two_node_run(what, Path(base), samples, Path(storage))
    # the tests' environment waits longer than an elastic run does
    del os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
    if what == "joined":
        act = join(cluster)
    else:
        node = cluster.add_node(num_cpus=2)
        act = lose(cluster, node) if what == "lost" else drain(cluster, node, run)
    environment = {"env_vars": {**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}}
    ray.init(address=cluster.address, log_to_driver=False, runtime_env=environment)
    # the rows of step 5 are counted: a checkpoint after step 4 is on its way
    done = when(lambda: len(records(run, "step")) > 5, act)
    train(run)
    done.join()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
