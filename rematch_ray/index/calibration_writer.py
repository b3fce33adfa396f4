"""Writes a calibration into an index: a generation of the same segments that carries it.

Durable and atomic as every generation: a crash leaves the former one. Middle floor.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rematch_ray.errors import UserError
from rematch_ray.index.calibration import Calibration
from rematch_ray.index.generation import Generation, read_current
from rematch_ray.index.sharding.opened import ShardedGeneration
from rematch_ray.index.sharding.sets import calibrate_set, changing, is_sharded
from rematch_ray.index.store import IndexInfo, now, publish, software, writing


def publish_calibration(path: str | Path, calibration: Calibration) -> IndexInfo:
    """Makes a calibration the index's own, beside whatever was added or deleted meanwhile.

    Args:
        path: index directory.
        calibration: measured on this index; changes since then count against it.

    Returns:
        What was published.

    Raises:
        UserError: not an index, one that was built anew since, or another writer at work; the index
            stays as it was.
    """
    path = Path(path)
    if is_sharded(path):
        with changing(path) as held:
            _refuse_rebuilt(ShardedGeneration(path, held), calibration)
            return calibrate_set(path, held, calibration.to_json())
    read_current(path)
    with writing(path) as number:
        generation = Generation(path)
        _refuse_rebuilt(generation, calibration)
        manifest = generation.manifest
        return publish(
            path,
            dataclasses.replace(
                manifest,
                generation=number,
                created=now(),
                calibration=calibration.to_json(),
                software=software(),
            ),
        )


def _refuse_rebuilt(generation: Generation, calibration: Calibration) -> None:
    if generation.manifest.built != calibration.standing.built:
        raise UserError(
            f"{generation.path} was built anew while it was measured: the calibration of "
            f"{calibration.generation} does not belong to it; run the doctor again"
        )
