"""The finishing step: every row accounted for, by itself and over many runs."""

import errno
import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from rematch_ray.errors import UserError
from rematch_ray.index.manifest import hash_file
from rematch_ray.index.shards import EmbeddingShards
from rematch_ray.workloads import shard_files, shards
from rematch_ray.workloads.disk import held
from rematch_ray.workloads.embedding_job import is_finished, manifest_in, read_manifest
from rematch_ray.workloads.staging import Staging
from tests.workloads.staged import (
    D,
    F,
    R,
    Row,
    done_keys,
    finished,
    job,
    rows_of,
    set_input,
    stage,
)

on_a_cluster = pytest.mark.usefixtures("ray_cluster")


class Here:
    """Stands for a remote function: the call is made here and now."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call


@pytest.fixture(autouse=True)
def _without_a_cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "ray_cluster" not in request.fixturenames:
        monkeypatch.setattr(shards, "_scan", Here(shard_files.scan))
        monkeypatch.setattr(shards, "_write_shard", Here(shard_files.write_shard))
        monkeypatch.setattr(shards, "_get", list)


def ids_of(target: Path) -> list[str]:
    return EmbeddingShards.open(target).read().ids


def files_of(manifest: dict[str, Any]) -> set[str]:
    return {shard["file"] for shard in manifest["shards"]}


def snapshot(target: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in target.glob("*.*")}


@on_a_cluster
def test_every_row_is_embedded_or_quarantined_and_the_manifest_says_what_lies_there(
    tmp_path: Path,
) -> None:
    good, bad = rows_of(["a", "b", "c", "d"]), rows_of(["x", "y"], status="no picture")
    set_input(tmp_path, [[good[0], bad[0], good[1]], [good[2], good[3], bad[1]]])
    stage(tmp_path, [good[0], bad[0], good[1]], name="0.parquet")
    stage(tmp_path, [bad[1]], name="1.parquet")
    stage(tmp_path, [good[3], good[2]], name="2.parquet")
    manifest = finished(tmp_path, limits={"max_text_tokens": 64})
    assert (manifest["rows_in"], manifest["embedded"], manifest["quarantined"]) == (6, 4, 2)
    assert manifest["limits"] == {"max_text_tokens": 64}
    assert {"python", "ray", "pyarrow", "pillow"} <= manifest["software"].keys()
    batch = EmbeddingShards.open(tmp_path).read()
    assert batch.ids == ["a", "b", "d", "c"]
    expected = np.stack([row.vectors for row in [good[0], good[1], good[3], good[2]]])
    np.testing.assert_array_equal(batch.vectors, expected.astype(np.float16))
    for shard in manifest["shards"]:
        file = tmp_path / shard["file"]
        assert (hash_file(file), file.stat().st_size) == (shard["sha256"], shard["bytes"])
        assert pq.read_metadata(file).num_rows == shard["rows"]
    schema = pq.read_schema(tmp_path / "part-00000.parquet")
    assert schema.names == ["row_key", "id", "source", "payload", "vectors", "fused"]
    known = {b"R": b"6", b"D": b"16", b"F": b"24", b"side": b"document", b"dtype": b"float16"}
    assert {key: schema.metadata[key] for key in known} == known
    quarantine = pq.read_table(tmp_path / "quarantine.parquet").to_pylist()
    assert [(q["id"], q["source"], q["reason"], q["path"], q["row"]) for q in quarantine] == [
        ("x", "notes", "no picture", "a.jsonl", 1),
        ("y", "notes", "no picture", "b.jsonl", 2),
    ]


def test_a_top_up_keeps_shards_and_leaves_out_what_was_changed_or_removed(tmp_path: Path) -> None:
    first = rows_of([f"d{n}" for n in range(8)])
    lost = Row("bad", status="no picture")
    set_input(tmp_path, [[*first, lost]])
    stage(tmp_path, first[:4], name="0.parquet")
    stage(tmp_path, [*first[4:], lost], name="1.parquet")
    before = finished(tmp_path, rows_per_shard=4)
    kept = snapshot(tmp_path)["part-00000.parquet"]
    # d5 changed, d6 and the bad row are gone, d8 and another bad row are new
    changed, new, worse = Row("d5", version=1), Row("d8"), Row("worse", status="empty")
    second = [worse, *first[:5], changed, first[7], new]
    set_input(tmp_path, [second])
    stage(tmp_path, [changed, new, worse])
    manifest = finished(tmp_path, rows_per_shard=4, data="two")
    assert sorted(ids_of(tmp_path)) == ["d0", "d1", "d2", "d3", "d4", "d5", "d7", "d8"]
    batch = EmbeddingShards.open(tmp_path).read()
    assert batch.payloads[batch.ids.index("d5")] == {"version": 1}
    np.testing.assert_array_equal(
        batch.vectors[batch.ids.index("d5")], changed.vectors.astype(np.float16)
    )
    assert (manifest["rows_in"], manifest["embedded"], manifest["quarantined"]) == (9, 8, 1)
    assert [row["id"] for row in pq.read_table(tmp_path / "quarantine.parquet").to_pylist()] == [
        "worse"
    ]
    assert files_of(manifest) & files_of(before) == {"part-00000.parquet"}
    assert snapshot(tmp_path)["part-00000.parquet"] == kept
    assert {path.name for path in tmp_path.glob("part-*")} == files_of(manifest)


def test_small_shards_of_many_top_ups_become_few(tmp_path: Path) -> None:
    rows: list[Row] = []
    for number in range(6):
        rows.append(Row(f"d{number}"))
        set_input(tmp_path, [rows])
        stage(tmp_path, rows[-1:])
        manifest = finished(tmp_path, rows_per_shard=3, data=str(number))
    assert sorted(shard["rows"] for shard in manifest["shards"]) == [3, 3]
    assert sorted(ids_of(tmp_path)) == [row.id for row in rows]


def test_a_row_staged_by_two_runs_counts_once_and_so_does_one_that_a_shard_holds(
    tmp_path: Path,
) -> None:
    rows = rows_of(["a", "b", "c"])
    set_input(tmp_path, [rows])
    stage(tmp_path, rows[:2])
    stage(tmp_path, rows[1:])
    assert finished(tmp_path)["embedded"] == 3
    # cut off between the manifest and the removal of what was staged
    stage(tmp_path, rows)
    assert finished(tmp_path)["embedded"] == 3
    assert sorted(ids_of(tmp_path)) == ["a", "b", "c"]


def row_of(name: str, version: int) -> Row:
    """A version's outcome is what its content makes it."""
    row = Row(name, version)
    return Row(name, version, "no picture") if row.key % 4 == 0 else row


@pytest.mark.parametrize("seed", range(24))
def test_any_history_of_runs_kills_and_lost_shards_ends_in_the_rows_of_the_last_input(
    tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    corpus: dict[str, Row] = {}
    for number in range(8):
        for _ in range(draw.randint(1, 6)):
            name = f"d{draw.randrange(12)}"
            corpus[name] = row_of(name, draw.randrange(3))
        for name in draw.sample(sorted(corpus), draw.randint(0, len(corpus) // 3)):
            del corpus[name]
        rows = draw.sample(list(corpus.values()), len(corpus))
        half = draw.randint(0, len(rows))
        if draw.random() < 0.2 and (parts := sorted(tmp_path.glob("part-*"))):
            draw.choice(parts).unlink()
        set_input(tmp_path, [rows[:half], rows[half:]])
        done = done_keys(tmp_path)
        new = [row for row in rows if row.key not in done]
        if draw.random() < 0.3:  # killed: some files are written, and count as done
            stage(tmp_path, new[: len(new) // 2])
            continue
        stage(tmp_path, new)
        good = {row.id: row for row in rows if row.status == "ok"}
        if not good:
            continue
        manifest = finished(
            tmp_path,
            data=str(number),
            max_bad_share=1.0,
            rows_per_shard=draw.randint(1, 6),
            settles=draw.random() < 0.7,
        )
        batch = EmbeddingShards.open(tmp_path).read()
        assert sorted(batch.ids) == sorted(good)
        for name, vectors in zip(batch.ids, batch.vectors, strict=True):
            np.testing.assert_array_equal(vectors, good[name].vectors.astype(np.float16))
        places = {row.id: (i >= half, i - half * (i >= half)) for i, row in enumerate(rows)}
        bad = pq.read_table(tmp_path / "quarantine.parquet").to_pylist()
        assert {row["id"]: (row["path"] == "b.jsonl", row["row"]) for row in bad} == {
            name: places[name] for name in corpus.keys() - good.keys()
        }
        assert len(rows) == manifest["embedded"] + manifest["quarantined"]
        assert {file.name for file in tmp_path.glob("part-*")} == files_of(manifest)


@pytest.mark.parametrize("stage_at_end", ["write_manifest", "_describe"])
def test_finishing_is_repeatable_wherever_it_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage_at_end: str
) -> None:
    first, more = rows_of(["a", "b"]), rows_of(["c", "d"])
    set_input(tmp_path, [first])
    stage(tmp_path, first)
    finished(tmp_path)
    set_input(tmp_path, [[*first[:1], *more]])
    stage(tmp_path, more)

    def cut(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards, stage_at_end, cut)
        with pytest.raises(KeyboardInterrupt):
            finished(tmp_path, data="two")
    (tmp_path / ".part-00001.parquet.0123abcd.unfinished").write_bytes(b"of a killed process")
    # the earlier embeddings are whole until the new manifest stands
    assert ids_of(tmp_path) == ["a", "b"]
    assert finished(tmp_path, data="two")["embedded"] == 3
    assert sorted(ids_of(tmp_path)) == ["a", "c", "d"]
    assert not list(tmp_path.glob(".part-*"))


def test_every_file_is_on_disk_before_the_manifest_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*rows_of(["a", "b"]), Row("bad", status="no picture")]
    set_input(tmp_path, [rows])
    stage(tmp_path, rows)
    synced: list[str] = []
    fsync, write_manifest = os.fsync, shards.write_manifest

    def note(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(
        shards,
        "write_manifest",
        lambda *given: (synced.append("manifest"), write_manifest(*given)),
    )
    finished(tmp_path)
    # each under the name that it is written under, then the folder that gives it its own
    told = [".".join(name.split(".")[1:3]) if name[0] == "." else name for name in synced]
    folder = tmp_path.name
    moved = ["part-00000.parquet", "shards", folder]
    assert told[:6] == [*moved, "quarantine.parquet", folder, "manifest"]


def test_ids_that_occur_twice_are_refused_with_their_places_in_the_input(tmp_path: Path) -> None:
    same, other = Row("same"), Row("same", version=1)
    copy = Row("copy")
    set_input(tmp_path, [[Row("a"), same, copy], [other, copy]])
    stage(tmp_path, [other, Row("a")])
    # a killed run may have staged only one of the copies
    stage(tmp_path, [copy, same])
    with pytest.raises(UserError) as told:
        finished(tmp_path)
    assert str(told.value) == (
        "2 ids occur more than once: 'same' (a.jsonl row 1, b.jsonl row 0); 'copy' (a.jsonl row "
        "2, b.jsonl row 1); give every item of a corpus an id of its own"
    )
    assert not list(tmp_path.glob("*.parquet"))
    # once the input is mended nothing has to be embedded again
    set_input(tmp_path, [[Row("a"), same], [copy]])
    assert finished(tmp_path)["embedded"] == 3


def test_a_copy_of_a_bad_row_is_quarantined_as_often_as_it_occurs(tmp_path: Path) -> None:
    bad = Row("bad", status="no picture")
    set_input(tmp_path, [[Row("a"), bad, Row("b")], [bad, Row("c")]])
    stage(tmp_path, [bad, *rows_of(["a", "b", "c"])])
    manifest = finished(tmp_path)
    assert (manifest["embedded"], manifest["quarantined"]) == (3, 2)
    rows = pq.read_table(tmp_path / "quarantine.parquet").to_pylist()
    assert [(row["path"], row["row"]) for row in rows] == [("a.jsonl", 1), ("b.jsonl", 0)]


@pytest.mark.parametrize("settles", [True, False])
def test_bad_rows_count_as_done_unless_they_are_to_be_tried_again(
    tmp_path: Path, settles: bool
) -> None:
    good, bad = rows_of(["a", "b"]), rows_of(["x", "y"], status="more memory than there is")
    set_input(tmp_path, [[*good, *bad]])
    stage(tmp_path, [good[0], bad[0]], name="0.parquet")
    stage(tmp_path, [bad[1]], name="1.parquet")
    stage(tmp_path, good[1:], name="2.parquet")
    assert finished(tmp_path, settles=settles)["quarantined"] == 2
    staging = set_input(tmp_path, [[*good, *bad]])
    assert done_keys(tmp_path) == {row.key for row in [*good, *bad]}
    staging.note_finished(tmp_path, manifest_in(tmp_path), retry_quarantined=True)
    assert done_keys(tmp_path) == {row.key for row in good}
    # one can be embedded now, the other cannot for another reason
    stage(tmp_path, [replace(bad[0], status="ok"), replace(bad[1], status="damaged")])
    manifest = finished(tmp_path)
    assert (manifest["embedded"], manifest["quarantined"]) == (3, 1)
    assert sorted(ids_of(tmp_path)) == ["a", "b", "x"]
    (left,) = pq.read_table(tmp_path / "quarantine.parquet").to_pylist()
    assert (left["id"], settles and left["reason"]) == ("y", settles and "damaged")


def test_too_many_bad_rows_are_refused_with_reasons_and_listed(tmp_path: Path) -> None:
    good, bad = rows_of(["a", "b", "c"]), rows_of(["x", "y"], status="no picture")
    set_input(tmp_path, [[*good, *bad]])
    stage(tmp_path, [*good, *bad])
    with pytest.raises(UserError, match=r"2 of 5 rows .*0\.3 allows \(a\.jsonl row 3: no picture"):
        finished(tmp_path, max_bad_share=0.3)
    assert pq.read_table(tmp_path / "refused.parquet")["id"].to_pylist() == ["x", "y"]
    assert not (tmp_path / "manifest.json").exists()
    assert finished(tmp_path, max_bad_share=0.4)["quarantined"] == 2
    assert not (tmp_path / "refused.parquet").exists()


def test_a_corpus_of_bad_rows_alone_is_refused_whatever_share_is_accepted(tmp_path: Path) -> None:
    bad = rows_of(["x"], status="no picture")
    set_input(tmp_path, [bad])
    stage(tmp_path, bad)
    with pytest.raises(UserError, match="1 of 1 rows cannot be embedded"):
        finished(tmp_path, max_bad_share=1.0)


def test_rows_that_are_nowhere_stop_the_run_with_the_first_place(tmp_path: Path) -> None:
    rows = rows_of(["a", "b", "c"])
    set_input(tmp_path, [rows])
    stage(tmp_path, [rows[0]])
    with pytest.raises(
        UserError, match=r"2 of 3 rows .* the first is a\.jsonl row 1; delete .*/\.progress and"
    ):
        finished(tmp_path)
    stage(tmp_path, rows[1:])
    manifest = finished(tmp_path)
    (tmp_path / manifest["shards"][0]["file"]).unlink()
    with pytest.raises(UserError, match="what was written for them is gone"):
        finished(tmp_path)


def test_a_piece_of_the_data_that_was_not_noted_does_not_go_unnoticed(tmp_path: Path) -> None:
    rows = rows_of(["a", "b"])
    set_input(tmp_path, [rows])
    stage(tmp_path, rows)
    with pytest.raises(RuntimeError, match="2 pieces of the data were to be read, 1 were noted"):
        finished(tmp_path, num_units=2)
    assert not (tmp_path / "manifest.json").exists()


def test_one_process_at_a_time_writes_a_directory(tmp_path: Path) -> None:
    second = held(tmp_path, tmp_path)
    with held(tmp_path, tmp_path), pytest.raises(UserError, match="written by another process"):
        second.__enter__()
    with held(tmp_path, tmp_path):
        pass


def test_an_input_without_rows_is_refused(tmp_path: Path) -> None:
    set_input(tmp_path, [[], []])
    stage(tmp_path, [])
    with pytest.raises(UserError, match="the data holds no rows"):
        finished(tmp_path)


@on_a_cluster
def test_shards_of_an_earlier_version_are_refused_by_name(tmp_path: Path) -> None:
    rows = rows_of(["a", "b"])
    set_input(tmp_path, [rows])
    stage(tmp_path, rows)
    manifest = finished(tmp_path)
    file = tmp_path / manifest["shards"][0]["file"]
    pq.write_table(pq.read_table(file).drop_columns(["row_key"]), file)
    manifest["shards"][0]["bytes"] = file.stat().st_size
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"part-00000\.parquet has no column 'row_key'") as told:
        finished(tmp_path)
    assert "Traceback" not in str(told.value)


def test_int8_shards_are_half_as_large_and_read_back_within_the_bound(tmp_path: Path) -> None:
    rows = rows_of([f"d{n}" for n in range(40)])
    for name, dtype in (("wide", "float16"), ("narrow", "int8")):
        set_input(tmp_path / name, [rows])
        stage(tmp_path / name, rows)
        assert finished(tmp_path / name, dtype=dtype)["dtype"] == dtype
    schema = pq.read_schema(tmp_path / "narrow" / "part-00000.parquet")
    assert schema.field("vectors").type == pa.list_(pa.int8(), R * D)
    assert schema.field("scales").type == pa.list_(pa.float32(), R)
    assert schema.field("fused").type == pa.list_(pa.float16(), F)
    wide, narrow = (EmbeddingShards.open(tmp_path / name).read() for name in ("wide", "narrow"))
    assert narrow.ids == wide.ids
    difference = np.linalg.norm(
        narrow.vectors.astype(np.float32) - wide.vectors.astype(np.float32), axis=2
    )
    assert 0 < difference.max() < 0.02
    assert np.abs(np.linalg.norm(narrow.vectors.astype(np.float32), axis=2) - 1).max() < 2e-3


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_prefix_of_the_vectors_is_the_first_ones(tmp_path: Path, dtype: str) -> None:
    rows = rows_of(["a", "b"])
    set_input(tmp_path, [rows])
    stage(tmp_path, rows)
    manifest = finished(tmp_path, num_vectors=3, dtype=dtype)
    assert (manifest["R"], manifest["D"], manifest["F"]) == (3, D, F)
    batch = EmbeddingShards.open(tmp_path).read()
    assert batch.vectors.shape == (2, 3, D)
    expected = np.stack([row.vectors[:3] for row in rows])
    assert np.abs(batch.vectors - expected).max() < 0.01
    # rows of an earlier run are taken over as they are stored
    more = [*rows[:1], Row("c")]
    set_input(tmp_path, [more])
    stage(tmp_path, more[1:])
    finished(tmp_path, num_vectors=3, dtype=dtype, data="two", rows_per_shard=5)
    again = EmbeddingShards.open(tmp_path).read()
    assert again.ids == ["a", "c"]
    np.testing.assert_array_equal(again.vectors[0], batch.vectors[0])


def test_another_request_for_a_finished_directory_is_refused_by_name(tmp_path: Path) -> None:
    rows = rows_of(["a"])
    set_input(tmp_path, [rows])
    stage(tmp_path, rows)
    manifest = finished(tmp_path)
    assert read_manifest(tmp_path, job()) == read_manifest(tmp_path, job(data="two")) == manifest
    other = {**job().identity, "digest": "e2" * 32}
    for changes, told in [
        ({"identity": other}, "made with model"),
        ({"precision": "bf16"}, "made with precision None, asked for is 'bf16'"),
        ({"dtype": "int8"}, "made with dtype 'float16', asked for is 'int8'"),
        ({"num_vectors": 3}, "made with R 6, asked for is 3"),
        ({"instruction": "find"}, "made with instruction None, asked for is 'find'"),
        ({"side": "query"}, "made with side 'document', asked for is 'query'"),
    ]:
        with pytest.raises(UserError, match=told):
            read_manifest(tmp_path, job(**changes))


def test_a_directory_is_finished_when_all_that_its_manifest_names_is_there(tmp_path: Path) -> None:
    rows = [*rows_of(["a", "b"]), Row("bad", status="no picture")]
    set_input(tmp_path, [rows])
    stage(tmp_path, rows)
    manifest = finished(tmp_path, settles=False)
    assert not is_finished(tmp_path, manifest, job())  # what was staged is still there
    Staging.latest(tmp_path).settle(tmp_path, manifest)
    assert is_finished(tmp_path, manifest, job())
    assert not is_finished(tmp_path, manifest, job(data="two"))
    assert not is_finished(tmp_path, {**manifest, "data": ""}, job(data=""))
    for name in ("quarantine.parquet", "part-00000.parquet"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        assert not is_finished(tmp_path, manifest, job())
        (tmp_path / name).write_bytes(whole)
    assert is_finished(tmp_path, manifest, job())
    (tmp_path / "part-00000.parquet").write_bytes(whole[:-1])
    assert not is_finished(tmp_path, manifest, job())


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "part-00000.parquet").write_bytes(b"not ours")
    with pytest.raises(UserError, match=r"holds 'part-00000\.parquet', which is no embedding"):
        read_manifest(tmp_path, job())
    with pytest.raises(UserError, match="is a file"):
        read_manifest(tmp_path / "part-00000.parquet", job())
    assert read_manifest(tmp_path / "new", job()) is None


def test_a_prefix_that_is_no_rung_is_refused_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"num_vectors 5 .*document side .*allowed: 1, 3, 6"):
        job(num_vectors=5)
    with pytest.raises(UserError, match=r"num_vectors 6 .*query side .*allowed: 1, 2, 4"):
        job(side="query", num_vectors=6)


def test_a_full_disk_is_told_in_one_line_and_finishing_goes_on_when_there_is_room(
    tmp_path: Path,
) -> None:
    rows = rows_of(["a", "b"])
    set_input(tmp_path, [rows])
    stage(tmp_path, rows)
    blocked = tmp_path / ".manifest.json.new"
    blocked.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot be written: No space left on device.*free some"):
        finished(tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    blocked.unlink()
    assert finished(tmp_path)["embedded"] == 2


@on_a_cluster
def test_a_disk_that_fills_while_a_task_writes_a_shard_is_told_without_its_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(["a", "b"])
    set_input(tmp_path, [rows])
    stage(tmp_path, rows)

    @ray.remote(num_cpus=0.5)
    def write_to_full_disk(*arguments: Any) -> None:
        with open("/dev/full", "r+b", buffering=0) as file:
            file.write(b"x")

    monkeypatch.setattr(shards, "_write_shard", write_to_full_disk)
    with pytest.raises(UserError, match="No space left on device") as told:
        finished(tmp_path)
    assert "Traceback" not in str(told.value)
    cause = told.value.__cause__
    assert getattr(cause, "cause", cause).errno == errno.ENOSPC
    assert not (tmp_path / "manifest.json").exists()
    monkeypatch.undo()
    assert finished(tmp_path)["embedded"] == 2
