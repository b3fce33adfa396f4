"""Building an index from an embedding directory: in this process, or shard by shard on a cluster.

Wraps the middle floor's builders. Without a number of shards no cluster is needed; with one, each
embedding file is checked and its rows are counted by a task, another trains what all shards share,
each shard is built by one more, and the set is published when all are whole. Top floor.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rematch_ray.index.build import build_index as build
from rematch_ray.index.sharding.build import SetBuild, building
from rematch_ray.index.sharding.routing import count_rows
from rematch_ray.index.sharding.task import build_shard
from rematch_ray.workloads.embed_progress import every, say
from rematch_ray.workloads.runtime import Bundle, connect, user_error_in

COUNT_CPUS, BUILD_CPUS = 0.5, 1.0


def build_index(
    *, embeddings: str | Path, out: str | Path, shards: int | None = None, **options: Any
) -> dict[str, Any]:
    """Build an index from embedding shards, or replace the documents of one.

    Args:
        embeddings: embedding directory of the document side.
        out: index directory.
        shards: number of shards to split it into, each built by a task on a Ray cluster; shards
            that an earlier run finished are kept, and what was added to the embeddings becomes new
            segments. None builds an index that is not split, in this process.
        options: what else `rematch_ray.index.build.build_index` takes.

    Returns:
        What was published, and the seconds it took.

    Raises:
        UserError: not an embedding directory, a lexical field without text, or `out` holds
            something else.
    """
    started = time.monotonic()
    if shards is None:
        result = build(Path(embeddings), Path(out), **options).to_json()
    else:
        result = _build_shards(Path(embeddings), Path(out).expanduser(), shards, options)
    seconds = round(time.monotonic() - started, 2)
    say(f"index: {result['documents']} documents in {seconds} s: {out}")
    return {**result, "seconds": seconds}


def _build_shards(
    embeddings: Path, out: Path, num_shards: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    with building(embeddings.expanduser().absolute(), out, num_shards, **options) as made:
        if made.planned:
            with connect([Bundle("shard task", BUILD_CPUS)]):
                _run_tasks(made)
        topped_up = sum(task.files is not None for task in made.planned)
        return {
            **made.publish().to_json(),
            "shards": num_shards,
            "shards_built": len(made.planned) - topped_up,
            "shards_topped_up": topped_up,
            "shards_kept": num_shards - len(made.planned),
        }


def _run_tasks(made: SetBuild) -> None:
    """Check and count every file, then build every shard."""
    import ray

    started = time.monotonic()
    shared = ray.put(made.embeddings)
    counting = ray.remote(num_cpus=COUNT_CPUS)(count_rows)
    counts = _gather(
        [counting.remote(shared, entry, made.num_shards, made.routed) for entry in made.entries],
        lambda done: f"index: {len(done)}/{len(made.entries)} embedding files checked",
    )
    tasks = made.tasks(counts)
    if made.trains:
        training = ray.remote(num_cpus=BUILD_CPUS)(made.training.run)
        _gather([training.remote(shared)], lambda _: "index: coarse lists trained")
    wanted = sum(task.rows for task in tasks)
    kept = made.num_shards - len(tasks)

    def line(done: Sequence[int]) -> str:
        rate = sum(done) / max(time.monotonic() - started, 1e-9)
        return (
            f"index: {kept + len(done)}/{made.num_shards} shards done  "
            f"{sum(done)}/{wanted} rows  {rate:.0f} rows/s"
        )

    building_one = ray.remote(num_cpus=BUILD_CPUS)(build_shard)
    # the largest first, so that none is begun when the others are about to end
    order = sorted(tasks, key=lambda task: -task.rows)
    _gather([building_one.remote(task) for task in order], line)


def _gather(references: Sequence[Any], line: Callable[[Sequence[Any]], str]) -> list[Any]:
    """Wait for tasks and tell how far they are; what the user can mend is raised without a stack.

    Args:
        references: of the tasks.
        line: what to tell, of the results so far.

    Returns:
        Their results, in order.
    """
    import ray
    from ray.exceptions import RayTaskError

    results: dict[Any, Any] = {}
    waiting, seconds = list(references), every(None)
    told = time.monotonic()
    try:
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=1.0)
            results.update({reference: ray.get(reference) for reference in ready})
            if not waiting or (ready and time.monotonic() - told >= seconds):
                told = time.monotonic()
                say(line(list(results.values())))
    except RayTaskError as error:
        for reference in waiting:
            ray.cancel(reference)
        if (mistake := user_error_in(error)) is not None:
            raise mistake from error
        raise
    return [results[reference] for reference in references]
