"""An index built shard by shard on a cluster is the one that one process builds, whatever dies."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rematch_ray.errors import UserError
from rematch_ray.index.build import build_index as build_one
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.sharding.build import building
from rematch_ray.index.sharding.routing import count_rows
from rematch_ray.index.sharding.sets import SET_FILE
from rematch_ray.index.sharding.task import build_shard
from rematch_ray.workloads.build_index import build_index
from tests.conftest import REPOSITORY
from tests.index.made import unit, write_embeddings
from tests.index.sharding.test_opened import SOME, answers

ROWS, SHARDS = 20_000, 3
PATIENCE_S = 120


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough small documents that a shard is a second's work."""
    folder = tmp_path_factory.mktemp("build") / "embeddings"
    payloads = [{"odd": bool(row % 2), "text": f"document {row}"} for row in range(ROWS)]
    return write_embeddings(
        folder, unit((ROWS, 8, 16), 1), unit((ROWS, 24), 2), payloads=payloads, num_shards=4
    )


def assert_equals_one_index(out: Path, embeddings: Path) -> None:
    one = embeddings.parent / "one"
    if not one.exists():
        build_one(embeddings, one)
    opened = SearchIndex.open(out)
    assert answers(opened, SOME) == answers(SearchIndex.open(one), SOME)
    opened.verify()


def test_without_shards_no_cluster_is_started(embeddings: Path, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom rematch_ray.cli import main\n"
        f"code = main(['index', 'build', '--embeddings', {str(embeddings)!r}, '--out', "
        f"{str(tmp_path / 'one')!r}])\nprint(code, 'ray' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0", "False"]
    assert SearchIndex.open(tmp_path / "one").info()["shards"] == 1


@pytest.mark.timeout(300)
def test_a_shard_task_that_is_killed_is_done_again(
    ray_cluster: None, embeddings: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, killed = tmp_path / "out", []
    watcher = threading.Thread(target=lambda: killed.append(kill_a_writer(out)))
    watcher.start()
    result = build_index(embeddings=embeddings, out=out, shards=SHARDS)
    watcher.join()
    assert killed != [None], "every shard was finished before its process could be killed"
    assert (result["shards_built"], result["shards_kept"]) == (SHARDS, 0)
    told = capfd.readouterr().err
    assert "index: 4/4 embedding files checked" in told
    assert f"index: {SHARDS}/{SHARDS} shards done  {ROWS}/{ROWS} rows" in told
    assert_equals_one_index(out, embeddings)
    # the second run finds everything done
    again = build_index(embeddings=embeddings, out=out, shards=SHARDS)
    assert (again["shards_built"], again["shards_kept"]) == (0, SHARDS)
    assert again["generation"] == result["generation"] == "set-000001"


def kill_a_writer(out: Path) -> int | None:
    """SIGKILL the first process found that has a file of an unfinished segment open."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and not (out / SET_FILE).exists():
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            if int(pid) != os.getpid() and is_writing(int(pid), out):
                os.kill(int(pid), signal.SIGKILL)
                return int(pid)
    return None


def is_writing(pid: int, out: Path) -> bool:
    try:
        files = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    except OSError:  # it has ended meanwhile, or is not ours
        return False
    return any(file.startswith(f"{out}/shard-") and ".building" in file for file in files)


@pytest.mark.timeout(300)
def test_what_a_killed_driver_had_finished_is_kept(
    ray_cluster: None, embeddings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with building(embeddings, out, SHARDS) as made:
        counts = [count_rows(made.embeddings, entry, SHARDS, made.routed) for entry in made.entries]
        build_shard(made.tasks(counts)[1])
    with pytest.raises(UserError, match="is not an index"):
        SearchIndex.open(out)
    result = build_index(embeddings=embeddings, out=out, shards=SHARDS)
    assert (result["shards_built"], result["shards_kept"]) == (SHARDS - 1, 1)
    assert_equals_one_index(out, embeddings)


@pytest.mark.timeout(300)
def test_a_mistake_in_the_embeddings_is_told_without_a_stack(
    ray_cluster: None, tmp_path: Path
) -> None:
    ids = [f"d{n // 2}" for n in range(8)]
    folder = write_embeddings(
        tmp_path / "twice", unit((8, 8, 16), 1), unit((8, 24), 2), ids=ids, num_shards=1
    )
    with pytest.raises(UserError, match="ids must be unique") as refused:
        build_index(embeddings=folder, out=tmp_path / "out", shards=2)
    assert "Traceback" not in str(refused.value)
    (folder / "part-00000.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="has 0 bytes"):
        build_index(embeddings=folder, out=tmp_path / "new", shards=2)
    assert not (tmp_path / "new").exists()


def wait_for(happens: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := happens()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_build_whose_driver_is_killed_goes_on(embeddings: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["index", "build", "--embeddings", str(embeddings), "--out", str(out)]
    command = [sys.executable, "-m", "rematch_ray", *arguments, "--shards", "8", "--json"]
    program = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    wait_for(lambda: next(out.glob("shard-*/CURRENT"), None))
    program.kill()
    program.wait()
    assert not (out / SET_FILE).exists(), "it had ended before it was killed"
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["shards_kept"] >= 1
    assert result["shards_built"] + result["shards_kept"] == 8
    assert_equals_one_index(out, embeddings)
