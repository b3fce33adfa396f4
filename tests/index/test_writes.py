"""Documents in memory reach an index as those of an embedding directory do, all at once or not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rematch_ray.errors import UserError
from rematch_ray.index import writes as plain_writes
from rematch_ray.index.build import build_index
from rematch_ray.index.compaction import pick_segments
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.sharding.build import build_sharded
from rematch_ray.index.sharding.changes import add_documents, merge_segments
from rematch_ray.index.sharding.hashing import shard_name
from rematch_ray.index.sharding.writes import delete_matching, write_documents
from rematch_ray.index.shards import EmbeddingShards
from rematch_ray.index.sources import GivenRows
from rematch_ray.index.store import IndexBusyError, hold_lock
from tests.index.test_changes import answers, edit, embeddings_of

DOCUMENTS = {f"d{n}": n for n in range(30)}
NEW = {"d3": 100, "d4": 101, "new": 102, "newer": 103}


def given(folder: Path) -> GivenRows:
    """The rows of an embedding directory, in memory."""
    shards = EmbeddingShards.open(folder)
    return GivenRows(shards.read(), shards.identity, shards.instruction, shards.payload_fields())


@pytest.fixture(params=[1, 3])
def index(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """An index of d0 to d29, in one piece and in three."""
    source = embeddings_of(tmp_path / "first", DOCUMENTS)
    if request.param == 1:
        build_index(source, tmp_path / "index")
    else:
        build_sharded(source, tmp_path / "index", num_shards=request.param)
    return tmp_path / "index"


def test_rows_in_memory_are_those_of_their_embedding_directory(index: Path, tmp_path: Path) -> None:
    source = embeddings_of(tmp_path / "new", NEW)
    written = write_documents(index, given(source))
    assert written.known == {"d3", "d4"}
    found = SearchIndex.open(index)
    build_index(tmp_path / "first", tmp_path / "other")
    add_documents(tmp_path / "other", source)
    other = SearchIndex.open(tmp_path / "other")
    assert answers(found) == answers(other)
    assert len(found) == len(other) == 32
    found.verify()


def test_one_generation_adds_replaces_and_deletes(index: Path, tmp_path: Path) -> None:
    before = SearchIndex.open(index)
    rows = given(embeddings_of(tmp_path / "new", NEW))
    written = write_documents(index, rows, delete=["d7", "d8", "nobody"])
    assert written.known == {"d3", "d4", "d7", "d8"}
    left = {name: n for name, n in DOCUMENTS.items() if name not in ("d7", "d8")} | NEW
    build_index(embeddings_of(tmp_path / "left", left), tmp_path / "anew")
    after = before.latest()
    assert int(after.generation[-6:]) == int(before.generation[-6:]) + 1
    assert answers(after) == answers(SearchIndex.open(tmp_path / "anew"))


def test_deleting_what_a_filter_finds_names_what_went(index: Path) -> None:
    gone = delete_matching(index, {"odd": True, "version": [1, 2, 3]})
    assert gone.known == {"d1", "d3"}
    assert len(SearchIndex.open(index)) == 28
    before = SearchIndex.open(index)
    assert delete_matching(index, {"version": 1}).known == frozenset()
    assert before.latest() is before
    with pytest.raises(UserError, match="version"):
        delete_matching(index, {"vresion": 1})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"identity": {"digest": "e2" * 32}}, "does not fit this index"),
        ({"instruction": "something else"}, "instruction 'something else'"),
    ],
)
def test_rows_of_another_kind_are_refused_and_change_nothing(
    index: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    before = SearchIndex.open(index)
    with pytest.raises(UserError, match=says):
        write_documents(index, given(edit(embeddings_of(tmp_path / "new", NEW), **changes)))
    assert before.latest() is before


def test_a_vector_that_is_not_sound_is_named_and_changes_nothing(
    index: Path, tmp_path: Path
) -> None:
    before = SearchIndex.open(index)
    rows = given(embeddings_of(tmp_path / "new", NEW))
    rows.rows.vectors[2, 1] = np.nan
    with pytest.raises(UserError, match="'new' in the documents given has norm nan"):
        write_documents(index, rows)
    assert before.latest() is before
    before.verify()


def test_a_write_that_fails_between_two_shards_leaves_the_set_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    build_sharded(embeddings_of(tmp_path / "first", DOCUMENTS), index, num_shards=3)
    before = SearchIndex.open(index)
    plain = plain_writes.write_documents

    def fail(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == shard_name(2, 3):
            raise OSError(28, "No space left on device")
        return plain(path, *args, **options)

    rows = given(embeddings_of(tmp_path / "new", {f"d{n}": 100 + n for n in range(20)}))
    with monkeypatch.context() as broken:
        broken.setattr(plain_writes, "write_documents", fail)
        with pytest.raises(OSError, match="No space"):
            write_documents(index, rows)
    assert before.latest() is before
    assert write_documents(index, rows).known == set(rows.ids)
    found = SearchIndex.open(index)
    assert found.payload(["d3"])[0] == {"version": 103, "odd": True}
    found.verify()


def test_another_writer_is_waited_for_as_long_as_it_is_said(index: Path) -> None:
    with hold_lock(index), pytest.raises(IndexBusyError, match="another process"):
        write_documents(index, None, delete=["d1"], patience_s=0.2)
    assert write_documents(index, None, delete=["d1"]).known == {"d1"}


def test_merging_the_small_segments_leaves_the_large_one_and_the_hits(
    index: Path, tmp_path: Path
) -> None:
    for number in range(5):
        rows = embeddings_of(tmp_path / f"{number}", {f"n{number}{k}": k for k in range(6)})
        write_documents(index, given(rows), delete=[f"d{number}"])
    before = SearchIndex.open(index)
    change = merge_segments(index, choose=lambda rows: pick_segments(rows, fan_in=4))
    assert change.merged >= 3
    after = SearchIndex.open(index)
    assert after.info()["segments"] < before.info()["segments"]
    assert answers(after) == answers(before)
    after.verify()
    assert merge_segments(index, choose=lambda rows: pick_segments(rows, fan_in=40)).merged == 0
    assert SearchIndex.open(index).generation == after.generation
