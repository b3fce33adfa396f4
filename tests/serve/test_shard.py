"""The deployment that holds an index follows what is published, and nothing it cannot serve."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from rematch_ray.index.build import build_index
from rematch_ray.index.changes import add_documents, delete_documents
from rematch_ray.serve import shard as shard_module
from rematch_ray.serve.backend import EncodedQuery, SearchPlan
from rematch_ray.serve.shard import Shard
from tests.index.made import queries, unit, write_embeddings

PLAN = SearchPlan(budget="4x8", candidates="all", top_k=50, filter=None, group_by=None)


def embeddings(path: Path, ids: list[str], seed: int) -> Path:
    count = len(ids)
    return write_embeddings(path, unit((count, 8, 16), seed), unit((count, 24), seed + 1), ids=ids)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    build_index(embeddings(tmp_path / "first", ["a", "b", "c"], 1), tmp_path / "index")
    return tmp_path / "index"


async def hits(shard: Shard) -> set[str]:
    one = queries(1)
    assert one.fused is not None
    query = EncodedQuery(np.asarray(one.vectors), np.asarray(one.fused), "")
    return {hit.id for hit in (await shard.search(query, PLAN)).hits}


async def test_what_is_published_is_found_without_a_restart(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = Shard(str(index), num_threads=2)
    assert await hits(shard) == {"a", "b", "c"}
    add_documents(index, embeddings(tmp_path / "more", ["c", "d"], 5))
    delete_documents(index, ["a"])
    monkeypatch.setattr(shard_module, "LOOK_S", 1000.0)
    assert await hits(shard) == {"a", "b", "c"}  # it did not look yet
    monkeypatch.setattr(shard_module, "LOOK_S", 0.0)
    assert await hits(shard) == {"b", "c", "d"}
    assert await shard.payload("a") is None
    assert shard.info()["live"] == 3


async def test_an_index_of_another_model_is_not_taken(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shard_module, "LOOK_S", 0.0)
    shard = Shard(str(index), num_threads=2)
    other = embeddings(tmp_path / "other", ["x"], 9)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["identity"]["digest"] = "another"
    (other / "manifest.json").write_text(json.dumps(manifest))
    build_index(other, index)
    with caplog.at_level(logging.ERROR):
        assert await hits(shard) == {"a", "b", "c"}
    assert "still serving generation-000001" in caplog.text
    (index / "CURRENT").unlink()
    assert await hits(shard) == {"a", "b", "c"}
