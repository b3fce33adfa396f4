"""Query vectors are read from an embedding directory or a log, and refused by name."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rematch_ray.errors import UserError
from rematch_ray.index.query_vectors import NamedQueries, read_query_vectors, write_query_vectors
from rematch_ray.index.search import SearchIndex
from tests.index.made import halves, unit, write_embeddings


def write_queries(path: Path, count: int = 30, *, side: str = "query") -> Path:
    ids = [f"q{number}" for number in range(count)]
    return write_embeddings(path, unit((count, 4, 16), 3), unit((count, 24), 4), ids=ids, side=side)


def test_an_embedding_directory_is_read_and_checked(index: SearchIndex, tmp_path: Path) -> None:
    found = read_query_vectors(write_queries(tmp_path / "q"), index)
    assert found is not None
    assert found.ids[:2] == ["q0", "q1"]
    assert found.vectors.shape == (30, 4, 16)
    assert found.fused is not None
    assert found.unchecked is None


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_log_without_a_manifest_is_read_and_says_what_was_not_checked(
    index: SearchIndex, tmp_path: Path, dtype: str
) -> None:
    path = write_embeddings(
        tmp_path / "q", unit((30, 4, 16), 3), unit((30, 24), 4), side="query", dtype=dtype
    )
    whole = read_query_vectors(path, index)
    (path / "manifest.json").unlink()
    found = read_query_vectors(path, index)
    assert found is not None and whole is not None
    np.testing.assert_array_equal(found.vectors, whole.vectors)
    assert (found.ids, found.digest()) == (whole.ids, whole.digest())
    assert "taken to be of the index's model" in str(found.unchecked)


def test_a_log_without_ids_names_a_query_by_its_vectors(index: SearchIndex, tmp_path: Path) -> None:
    vectors = unit((3, 4, 16), 3)[[0, 1, 0]]
    rows = pa.table({"vectors": halves(vectors.reshape(3, 64))})
    pq.write_table(rows.replace_schema_metadata({"R": "4", "D": "16"}), tmp_path / "log.parquet")
    found = read_query_vectors(tmp_path / "log.parquet", index)
    assert found is not None
    assert found.fused is None
    assert found.ids[0] == found.ids[2] != found.ids[1]


def test_a_log_that_names_its_model_is_checked_against_the_index(
    index: SearchIndex, tmp_path: Path
) -> None:
    vectors, fused = unit((3, 4, 16), 3), unit((3, 24), 4)
    write_query_vectors(tmp_path / "a.parquet", vectors, fused, index.identity)
    found = read_query_vectors(tmp_path, index)
    assert found is not None and found.fused is not None
    assert found.unchecked is None
    np.testing.assert_array_equal(found.vectors, vectors.astype(np.float16))
    np.testing.assert_array_equal(found.fused, fused.astype(np.float16))
    # a service that changed its model has files of both: those of the index's model are taken
    other = {"digest": "e2" * 32, "name": "another"}
    write_query_vectors(tmp_path / "b.parquet", unit((5, 2, 8), 5), None, other)
    found = read_query_vectors(tmp_path, index)
    assert found is not None
    assert len(found) == 3
    assert "1 of 2 files left out, whose queries are of another model" in str(found.unchecked)
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(UserError, match=r"another .* does not fit this index"):
        read_query_vectors(tmp_path, index)


def test_files_that_go_while_a_log_is_read_are_not_missed(
    index: SearchIndex, tmp_path: Path
) -> None:
    write_query_vectors(tmp_path / "b.parquet", unit((3, 4, 16), 3), None, index.identity)
    (tmp_path / "a.parquet").symlink_to(tmp_path / "gone")
    found = read_query_vectors(tmp_path, index)
    assert found is not None
    assert len(found) == 3


def test_rows_without_vectors_are_left_to_a_model(index: SearchIndex, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    for path in (tmp_path / "rows.parquet", tmp_path / "rows.jsonl", tmp_path / "nothing"):
        assert read_query_vectors(path, index) is None


def test_what_cannot_be_asked_is_refused(index: SearchIndex, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="document side"):
        read_query_vectors(write_queries(tmp_path / "d", side="document"), index)
    other = write_queries(tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["identity"] |= {"digest": "e2" * 32, "name": "another"}
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"another .* does not fit this index"):
        read_query_vectors(other, index)
    (tmp_path / "log").mkdir()
    bare = pa.table({"vectors": halves(unit((2, 64), 1))})
    pq.write_table(bare, tmp_path / "log" / "a.parquet")
    with pytest.raises(UserError, match="metadata must name R and D"):
        read_query_vectors(tmp_path / "log", index)
    pq.write_table(
        bare.slice(0, 0).replace_schema_metadata({"R": "4", "D": "16"}),
        tmp_path / "log" / "a.parquet",
    )
    with pytest.raises(UserError, match="no query vectors"):
        read_query_vectors(tmp_path / "log", index)


def test_a_sample_is_the_same_whatever_the_order(index: SearchIndex, tmp_path: Path) -> None:
    found = read_query_vectors(write_queries(tmp_path / "q"), index)
    assert found is not None and found.fused is not None
    turned = NamedQueries(found.ids[::-1], found.vectors[::-1], found.fused[::-1])
    ours, theirs = found.sample(10), turned.sample(10)
    assert len(ours) == 10
    assert ours.ids == theirs.ids[::-1]
    np.testing.assert_array_equal(ours.vectors, theirs.vectors[::-1])
    row = found.ids.index(ours.ids[3])
    np.testing.assert_array_equal(ours.vectors[3], found.vectors[row])
    assert found.sample(30) is found
