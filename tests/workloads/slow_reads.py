"""What worker processes of the fault tests do first: some reads wait for the first written files.

Without that every row is read before the first one is written, and no read task is left to kill.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from rematch_ray.data.readers.units import Unit

READERS, OUT = "SLOW_READS_PIDS", "SLOW_READS_OUT"
SLOW_FILES = ("10.parquet", "11.parquet")
SECONDS, PATIENCE_S = 5.0, 400.0


def first_files(out: Path) -> bool:
    """Whether rows are written for good."""
    files = (out / ".progress").glob("run-*/done/*.parquet")
    return any(not file.name.endswith(".pending.parquet") for file in files)


def install() -> None:
    """Slow readers leave their pid in a folder while they wait; `worker_process_setup_hook`."""
    from rematch_ray.workloads import embed_stages

    read = embed_stages.read_keyed
    folder, out = Path(os.environ[READERS]), Path(os.environ[OUT])

    def slowly(unit: Unit) -> Iterator[tuple[pa.RecordBatch, pa.Int64Array]]:
        if not unit.path.endswith(SLOW_FILES):
            yield from read(unit)
            return
        mark, deadline = folder / f"{os.getpid()}", time.monotonic() + PATIENCE_S
        mark.touch()
        while not first_files(out) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(SECONDS)
        yield from read(unit)
        mark.unlink(missing_ok=True)

    embed_stages.read_keyed = slowly
