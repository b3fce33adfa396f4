"""The query log: vectors of a share of the queries, in files that the doctor reads."""

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from rematch_ray.errors import UserError
from rematch_ray.evaluation.diagnosis import diagnose
from rematch_ray.index.build import build_index
from rematch_ray.index.query_vectors import read_query_vectors
from rematch_ray.index.search import SearchIndex
from rematch_ray.serve.backend import EncodedQuery
from rematch_ray.serve.query_log import QueryLog
from rematch_ray.serve.settings import QueryLogSettings
from tests.index.made import queries, unit, write_embeddings

MODEL = {"digest": "d1" * 32, "name": "stub", "fused_dim": 24}
Connect = Callable[..., TestClient]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "queries"


@pytest.fixture
def index(tmp_path: Path) -> SearchIndex:
    source = write_embeddings(tmp_path / "documents", unit((60, 8, 16), 1), unit((60, 24), 2))
    build_index(source, tmp_path / "index")
    return SearchIndex.open(tmp_path / "index")


def asked(count: int) -> list[EncodedQuery]:
    made = queries(count)
    assert made.fused is not None
    return [
        EncodedQuery(made.vectors[row : row + 1], made.fused[row : row + 1], "find the picture")
        for row in range(count)
    ]


def every(folder: Path, **settings: Any) -> QueryLog:
    return QueryLog(QueryLogSettings(directory=folder, share=1.0, **settings))


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def offer_slowly(log: QueryLog, some: list[EncodedQuery]) -> None:
    """As requests come: none is turned away because too many wait."""
    for query in some:
        wait_until(lambda query=query: log.offer(query, MODEL))  # type: ignore[misc]


def test_what_is_logged_is_what_the_doctor_reads(folder: Path, index: SearchIndex) -> None:
    log = every(folder)
    noted = asked(40)
    assert all(log.offer(query, MODEL) for query in noted)
    log.close()
    found = read_query_vectors(folder, index)
    assert found is not None and found.fused is not None
    assert found.unchecked is None
    vectors = np.concatenate([query.vectors for query in noted]).astype(np.float16)
    np.testing.assert_array_equal(found.vectors, vectors)
    assert len(set(found.ids)) == 40
    calibration = diagnose(index, found, counts=(50,), timed_queries=1).calibration
    assert calibration.queries["count"] == 40


def test_nothing_but_vectors_is_written(folder: Path) -> None:
    log = every(folder)
    log.offer(asked(1)[0], MODEL)
    log.close()
    [file] = folder.iterdir()
    table = pq.read_table(file)
    assert table.column_names == ["id", "vectors", "fused"]
    assert set(table.schema.metadata) == {
        *(b"R", b"D", b"F", b"dtype", b"side", b"model", b"model_name")
    }
    assert b"find the picture" not in file.read_bytes()


def test_it_is_off_unless_a_directory_is_named() -> None:
    before = threading.enumerate()
    log = QueryLog(QueryLogSettings())
    assert not log.offer(asked(1)[0], MODEL)
    assert threading.enumerate() == before
    log.close()


def test_a_share_of_the_queries_is_taken(folder: Path) -> None:
    log = QueryLog(QueryLogSettings(directory=folder, share=0.25), seed=0)
    taken = sum(log.offer(query, MODEL) for query in asked(1) * 400)
    log.close()
    assert 70 < taken < 130
    assert sum(pq.read_table(file).num_rows for file in folder.iterdir()) == taken


def test_a_query_is_written_before_a_file_is_full(folder: Path) -> None:
    log = QueryLog(QueryLogSettings(directory=folder, share=1.0), flush_s=0.05)
    log.offer(asked(1)[0], MODEL)
    wait_until(lambda: len(list(folder.glob("*.parquet"))) == 1)
    log.offer(asked(1)[0], MODEL)
    wait_until(lambda: len(list(folder.glob("*.parquet"))) == 2)
    log.close()
    assert not log.offer(asked(1)[0], MODEL)


def test_the_oldest_files_go_so_that_all_stay_within_their_bytes(folder: Path) -> None:
    folder.mkdir()
    (folder / "somebody-elses.parquet").write_bytes(b"1" * 2_000_000)
    log = every(folder, max_bytes=1_048_576)
    some = asked(500)
    for _ in range(16):
        offer_slowly(log, some)
    wide = EncodedQuery(unit((1, 16, 512), 7), unit((1, 24), 8))
    offer_slowly(log, [wide] * 100)
    log.close()
    files = sorted(folder.glob("queries-*.parquet"))
    assert 500_000 < sum(file.stat().st_size for file in files) <= 1_048_576
    # the last that came are there
    assert pq.read_schema(files[-1]).metadata[b"D"] == b"512"
    assert pq.read_schema(files[0]).metadata[b"D"] == b"512"
    assert (folder / "somebody-elses.parquet").exists()


def test_replicas_share_a_directory(folder: Path, index: SearchIndex) -> None:
    logs = [every(folder, max_bytes=1_048_576) for _ in range(4)]
    some = asked(50)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda log: offer_slowly(log, some), logs))
        list(pool.map(QueryLog.close, logs))
    found = read_query_vectors(folder, index)
    assert found is not None
    assert len(found) == 200
    assert not list(folder.glob("*.unfinished"))


def test_what_a_dead_replica_left_unfinished_goes(folder: Path) -> None:
    folder.mkdir()
    old, young = (folder / f".queries-{n}-host-1-a.parquet.unfinished" for n in "12")
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (1, 1))
    log = every(folder)
    log.offer(asked(1)[0], MODEL)
    log.close()
    assert not old.exists()
    assert young.exists()


def test_a_disk_that_refuses_is_told_once_and_no_search_is_harmed(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = QueryLog(QueryLogSettings(directory=folder, share=1.0), flush_s=0.01)
    folder.rmdir()
    folder.write_text("a file stands where the directory was")

    def complaints() -> list[str]:
        return [r.getMessage() for r in caplog.records if "query log" in r.getMessage()]

    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert log.offer(asked(1)[0], MODEL)
            wait_until(lambda: len(complaints()) == 1)
            time.sleep(0.05)
        folder.unlink()
        assert log.offer(asked(1)[0], MODEL)
        wait_until(lambda: folder.is_dir() and len(list(folder.glob("*.parquet"))) == 1)
        log.close()
    assert len(complaints()) == 1
    assert str(folder) in complaints()[0]


def test_a_directory_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"query_log\.directory .* cannot be written to"):
        every(tmp_path / "file" / "queries")


def test_a_change_of_the_model_begins_another_file(folder: Path, index: SearchIndex) -> None:
    log = every(folder)
    other = {"digest": "e2" * 32, "name": "next", "fused_dim": None}
    log.offer(asked(1)[0], MODEL)
    log.offer(EncodedQuery(unit((1, 2, 8), 1), None), other)
    log.offer(EncodedQuery(asked(1)[0].vectors, None), MODEL)  # no fused vector: not of the form
    log.close()
    assert sorted(len(pq.read_table(file)) for file in folder.iterdir()) == [1, 1]
    found = read_query_vectors(folder, index)
    assert found is not None
    assert (len(found), found.fused is not None) == (1, True)


def test_searches_are_logged_and_nothing_else_is(connect: Connect, folder: Path) -> None:
    with connect(query_log=every(folder)) as client:
        assert client.post("/v1/search", json={"query": "east"}).status_code == 200
        both = {"searches": [{"query": "north"}, {"vectors": [[1, 0]] * 4, "fused": [1]}]}
        assert client.post("/v1/search", json=both).status_code == 200
        assert client.post("/v1/search", json={"vectors": [[1, 0]] * 4}).status_code == 200
        assert client.post("/v1/search", json={"like": "doc/1"}).status_code == 200
        assert client.post("/v1/search", json={"query": "x", "top_k": 0}).status_code == 422
        assert client.post("/v1/embeddings", json={"input": ["x"], "model": "rematch"}).is_success
    [file] = folder.iterdir()
    vectors = pq.read_table(file)["vectors"].to_pylist()
    assert sorted(row[0] for row in vectors) == [0.0, 1.0, 1.0]
