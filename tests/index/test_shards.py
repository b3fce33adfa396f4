"""Embedding directories: read whole and in batches, and refused by name when they are not sound."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rematch_ray.errors import UserError
from rematch_ray.index.manifest import hash_file
from rematch_ray.index.quantisation import error_bound
from rematch_ray.index.shards import EmbeddingShards
from tests.index.made import halves, unit, write_embeddings


def edit_manifest(path: Path, **changes: object) -> None:
    file = path / "manifest.json"
    manifest = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in manifest.items() if value is not ...}))


def test_every_row_comes_once_and_in_order(embeddings: Path) -> None:
    shards = EmbeddingShards.open(embeddings)
    batches = list(shards.batches(rows=64))
    assert max(len(batch.ids) for batch in batches) <= 64
    ids = [name for batch in batches for name in batch.ids]
    assert ids == [f"doc-{row:04d}" for row in range(300)]
    vectors = np.concatenate([batch.vectors for batch in batches])
    np.testing.assert_array_equal(vectors, unit((300, 8, 16), 1).astype(np.float16))
    whole = shards.read()
    np.testing.assert_array_equal(whole.vectors, vectors)
    np.testing.assert_array_equal(whole.fused, unit((300, 24), 2).astype(np.float16))
    assert whole.payloads[7]["inner"] == {"half": False}


def test_int8_shards_give_unit_vectors_near_those_that_were_stored(tmp_path: Path) -> None:
    vectors, fused = unit((50, 8, 16), 1), unit((50, 24), 2)
    shards = EmbeddingShards.open(write_embeddings(tmp_path / "e", vectors, fused, dtype="int8"))
    assert shards.dtype == "int8"
    batch = shards.read()
    assert batch.vectors.dtype == np.float16
    off = np.linalg.norm(batch.vectors.astype(np.float32) - vectors, axis=2)
    assert (off <= error_bound(vectors) + 1e-3).all()
    np.testing.assert_array_equal(batch.fused, fused.astype(np.float16))


def test_payload_fields_are_named_with_their_types(embeddings: Path) -> None:
    fields = EmbeddingShards.open(embeddings).payload_fields()
    assert fields["name"] == "string"
    assert fields["inner.half"] == "bool"


def test_the_parent_of_a_row_is_a_field_of_its_payload(embeddings: Path) -> None:
    shards = json.loads((embeddings / "manifest.json").read_text())["shards"]
    file = embeddings / shards[0]["file"]
    rows = pq.read_table(file)
    parents = pa.array([None, *["book"] * (len(rows) - 1)], pa.string())
    for given, fields in ((pa.nulls(len(rows), pa.string()), None), (parents, "string")):
        pq.write_table(rows.append_column("parent_id", given), file)
        shards[0].update(bytes=file.stat().st_size, sha256=hash_file(file))
        edit_manifest(embeddings, shards=shards)
        opened = EmbeddingShards.open(embeddings)
        assert opened.payload_fields().get("parent_id") == fields
        told = [payload.get("parent_id") for payload in opened.read().payloads]
        assert told[: len(rows)] == given.to_pylist()
        assert not any(told[len(rows) :])
    assert "parent_id" not in opened.read().payloads[0]


def test_a_directory_without_a_manifest_is_no_embedding_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not an embedding directory"):
        EmbeddingShards.open(tmp_path)
    with pytest.raises(UserError, match="is not an embedding directory"):
        EmbeddingShards.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"R": ...}, "lacks R"),
        ({"format_version": 7}, "format version 7"),
        ({"R": 4}, "is fixed_size_list"),
        ({"F": 23}, "column 'fused'"),
        ({"dtype": "int8"}, "column 'vectors' .* is fixed_size_list"),
        ({"dtype": "float8"}, "stored as 'float8', this software reads float16 and int8"),
        ({"embedded": 299}, "holds 300 rows, its manifest says 299"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    embeddings: Path, changes: dict, message: str
) -> None:
    edit_manifest(embeddings, **changes)
    with pytest.raises(UserError, match=message):
        EmbeddingShards.open(embeddings).read()


def test_a_missing_or_damaged_shard_is_named(embeddings: Path) -> None:
    shard = embeddings / "part-00001.parquet"
    data = shard.read_bytes()
    shard.write_bytes(data[:-100] + bytes(100))
    with pytest.raises(UserError, match=r"part-00001\.parquet does not match its checksum"):
        EmbeddingShards.open(embeddings).read()
    shard.write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"part-00001\.parquet has .* bytes, the manifest says"):
        EmbeddingShards.open(embeddings)
    shard.unlink()
    with pytest.raises(UserError, match=r"part-00001\.parquet is missing"):
        EmbeddingShards.open(embeddings)


@pytest.mark.parametrize(("value", "norm"), [(np.nan, "nan"), (np.inf, "inf"), (0.0, "0")])
def test_vectors_that_are_not_unit_vectors_are_named(
    tmp_path: Path, value: float, norm: str
) -> None:
    vectors = unit((20, 8, 16), 1)
    vectors[13, 5] = value
    write_embeddings(tmp_path / "e", vectors, None)
    with pytest.raises(UserError, match=f"vector 5 of 'doc-0013' in .* has norm {norm}"):
        EmbeddingShards.open(tmp_path / "e").read()


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    path = write_embeddings(tmp_path / "e", unit((4, 8, 16), 1), None, num_shards=1)
    table = pa.table({"name": ["a"], "vectors": halves(unit((1, 128), 1))})
    pq.write_table(table, path / "part-00000.parquet")
    from rematch_ray.index.manifest import describe_file

    entry = describe_file(path / "part-00000.parquet")
    shard = {"file": "part-00000.parquet", "rows": 1, "bytes": entry.bytes, "sha256": entry.sha256}
    edit_manifest(path, shards=[shard])
    with pytest.raises(UserError, match="has no column 'id'; it has name, vectors"):
        EmbeddingShards.open(path).read()
