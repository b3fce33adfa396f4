"""A writer that is killed again and again, at any moment, loses nothing that it acknowledged."""

import asyncio
import itertools
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rematch_ray.index.search import SearchIndex
from tests.serve.test_writer import Written, build

NAMES = 12


async def write_for_ever(path: Path, start: int) -> None:
    """Three callers that write one version after another and say so once it is acknowledged."""
    written = Written(path, commit_wait_s=0.002, merge_fan_in=3)
    versions = itertools.count(start)

    async def call(caller: int) -> None:
        # each caller has ids of its own, so that the order of its writes is known
        for round_number in itertools.count():
            version = next(versions)
            name = f"k{caller}-{round_number % NAMES}"
            print(f"try {name} {version}", flush=True)
            if version % 7 == 0:
                await written.writer.delete([name])
            else:
                await written.upsert({name: version})
            print(f"done {name} {version}", flush=True)

    await asyncio.gather(*(call(caller) for caller in range(3)))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("num_shards", [1, 3])
def test_what_was_acknowledged_is_there_after_every_kill(num_shards: int, tmp_path: Path) -> None:
    draw = random.Random(num_shards)
    path = build(tmp_path, "index", {f"d{n}": n for n in range(10)}, num_shards)
    tried: dict[str, int] = {}
    acknowledged: dict[str, int] = {}
    kills, writes, pending, version = 0, 0, 0, 1000
    for _ in range(15):
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(path), str(version)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(draw.uniform(0.0, 1.0))
        process.kill()
        kills += 1
        lines, _ = process.communicate()
        # a kill may cut the last one short
        for line in (first + lines).splitlines():
            if len(parts := line.split()) == 3 and parts[2].isdecimal():
                what, name, number = parts[0], parts[1], int(parts[2])
                (acknowledged if what == "done" else tried)[name] = number
                writes += what == "done"
                version = max(version, number + 1)
        version += 10  # versions that were drawn, but whose line was cut off
        index = SearchIndex.open(path)
        index.verify()
        for name, number in acknowledged.items():
            [payload] = index.payload([name])
            held = None if payload is None else payload["version"]
            expected = None if number % 7 == 0 else number
            if held != expected:
                # the next write of this id may have reached the disk without being told
                last = tried.get(name, number)
                assert last > number, f"{name}: {held} is there, {number} was acknowledged"
                assert held == (None if last % 7 == 0 else last)
                acknowledged[name] = last
                pending += 1
        assert {f"d{n}" for n in range(10)} <= set(index.ids())
    print(f"{kills} kills, {writes} writes acknowledged, none lost; {pending} more were on disk")
    assert writes > kills


if __name__ == "__main__":
    asyncio.run(write_for_ever(Path(sys.argv[1]), int(sys.argv[2])))
