"""Building a set: in steps that may be cut off anywhere, and from embeddings that grow."""

import json
import os
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rematch_ray.errors import UserError
from rematch_ray.index.build import build_index
from rematch_ray.index.coarse import sizes
from rematch_ray.index.coarse import training as coarse_training
from rematch_ray.index.footprint import Corpus
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.sharding import build as shard_build
from rematch_ray.index.sharding import changes as shard_changes
from rematch_ray.index.sharding import training as shard_training
from rematch_ray.index.sharding.build import SetBuild, build_sharded, building
from rematch_ray.index.sharding.hashing import keys_of, shard_name, shard_of
from rematch_ray.index.sharding.routing import count_rows
from rematch_ray.index.sharding.rows import ShardRows
from rematch_ray.index.sharding.sets import ROUTED, TRAINED
from rematch_ray.index.sharding.task import build_shard
from rematch_ray.index.shards import EmbeddingShards
from tests.index.made import queries, unit, write_embeddings
from tests.index.sharding.test_opened import SOME, answers
from tests.index.test_changes import POOL, added, after, embeddings_of, gone, killed_writers


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    """d0 to d29 in two files."""
    return embeddings_of(tmp_path / "embeddings", {f"d{n}": n for n in range(30)})


def top_up(folder: Path, more: Path, *, without: int | None = None) -> None:
    """Takes the files of another embedding directory in, as a second embedding job does."""
    manifest = json.loads((folder / "manifest.json").read_text())
    kept = [entry for number, entry in enumerate(manifest["shards"]) if number != without]
    for entry in json.loads((more / "manifest.json").read_text())["shards"]:
        name = f"part-{len(list(folder.glob('*.parquet'))) + 10:05d}.parquet"
        shutil.copy(more / entry["file"], folder / name)
        kept.append({**entry, "file": name})
    manifest |= {"shards": kept, "embedded": sum(entry["rows"] for entry in kept)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def planned(embeddings: Path, out: Path, num_shards: int = 3) -> list[Any]:
    with building(embeddings, out, num_shards) as build:
        return [task.number if task.files is None else task for task in build.planned]


def assert_equals_one_index(out: Path, embeddings: Path) -> None:
    build_index(embeddings, out.parent / "one")
    opened = SearchIndex.open(out)
    assert answers(opened, SOME) == answers(SearchIndex.open(out.parent / "one"), SOME)
    opened.verify()


def test_a_second_run_builds_nothing(embeddings: Path, tmp_path: Path) -> None:
    first = build_sharded(embeddings, tmp_path / "out", 3)
    assert planned(embeddings, tmp_path / "out") == []
    assert build_sharded(embeddings, tmp_path / "out", 3) == first
    # other settings, and documents that the embeddings do not say
    with building(embeddings, tmp_path / "out", 3, coarse="first") as build:
        assert len(build.planned) == 3
    shard_changes.delete_documents(tmp_path / "out", ["d1"])
    assert planned(embeddings, tmp_path / "out") == [shard_of("d1", 3)]
    build_sharded(embeddings, tmp_path / "out", 3)
    assert_equals_one_index(tmp_path / "out", embeddings)


def test_a_build_that_was_cut_off_goes_on(embeddings: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with building(embeddings, out, 3) as build:
        counts = [count_rows(build.embeddings, entry, 3, build.routed) for entry in build.entries]
        tasks = build.tasks(counts)
        assert build_shard(tasks[1]) == tasks[1].rows > 0
        assert build_shard(tasks[1]) == 0, "it was built twice"
    with pytest.raises(UserError, match="is not an index"):
        SearchIndex.open(out)
    assert planned(embeddings, out) == [0, 2]
    build_sharded(embeddings, out, 3)
    assert_equals_one_index(out, embeddings)


def test_a_set_answers_while_it_is_built_anew(embeddings: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_sharded(embeddings, out, 3)
    before = answers(SearchIndex.open(out), SOME)
    other = embeddings_of(tmp_path / "other", {f"d{n}": 50 + n for n in range(30)})
    with building(other, out, 3) as build:
        counts = [count_rows(build.embeddings, entry, 3, build.routed) for entry in build.entries]
        for task in build.tasks(counts)[:2]:
            build_shard(task)
        assert answers(SearchIndex.open(out), SOME) == before
    # given up: the shards that are ahead are kept for this build, and go with any other change
    assert planned(other, out) == [2]
    assert answers(SearchIndex.open(out), SOME) == before
    assert planned(embeddings, out) == []
    build_sharded(other, out, 3)
    assert_equals_one_index(out, other)


def test_files_that_were_added_become_segments(embeddings: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_sharded(embeddings, out, 3)
    top_up(embeddings, embeddings_of(tmp_path / "more", {f"d{n}": n for n in range(30, 38)}))
    with building(embeddings, out, 3) as build:
        assert [task.files is None for task in build.planned] == [False] * 3
        new = {"part-00012.parquet", "part-00013.parquet"}
        assert {entry["file"] for entry in build.entries} == new
    build_sharded(embeddings, out, 3)
    assert SearchIndex.open(out).info()["segments"] == 6
    assert planned(embeddings, out) == []
    assert_equals_one_index(out, embeddings)


def test_documents_that_left_the_embeddings_leave_the_index(
    embeddings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    build_sharded(embeddings, out, 3)
    # the second file is packed anew: three rows of it are gone, two are new
    kept = {f"d{n}": n for n in range(15, 27)} | {"new": 200, "newer": 201}
    top_up(embeddings, embeddings_of(tmp_path / "more", kept), without=1)
    assert all(not isinstance(task, int) for task in planned(embeddings, out))
    build_sharded(embeddings, out, 3)
    assert sorted(SearchIndex.open(out).ids()) == sorted({f"d{n}" for n in range(15)} | set(kept))
    assert_equals_one_index(out, embeddings)
    # nothing but deletions
    fewer = json.loads((embeddings / "manifest.json").read_text())
    fewer["shards"] = fewer["shards"][:-1]
    fewer["embedded"] = sum(entry["rows"] for entry in fewer["shards"])
    (embeddings / "manifest.json").write_text(json.dumps(fewer))
    build_sharded(embeddings, out, 3)
    assert_equals_one_index(out, embeddings)


def test_many_new_rows_or_other_vectors_are_built_anew(embeddings: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_sharded(embeddings, out, 3)
    manifest = json.loads((embeddings / "manifest.json").read_text())
    (embeddings / "manifest.json").write_text(json.dumps({**manifest, "instruction": "other"}))
    assert planned(embeddings, out) == [0, 1, 2]
    (embeddings / "manifest.json").write_text(json.dumps(manifest))
    top_up(embeddings, embeddings_of(tmp_path / "more", {f"e{n}": n for n in range(40)}))
    assert planned(embeddings, out) == [0, 1, 2]


def test_a_damaged_shard_is_built_anew(embeddings: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_sharded(embeddings, out, 3)
    next((out / shard_name(1, 3)).rglob("keys.npy")).unlink()
    shutil.rmtree(out / shard_name(2, 3))
    assert planned(embeddings, out) == [1, 2]
    build_sharded(embeddings, out, 3)
    assert_equals_one_index(out, embeddings)


def test_bad_embeddings_are_refused_and_nothing_is_left(embeddings: Path, tmp_path: Path) -> None:
    file = embeddings / "part-00001.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:200] + bytes(5) + whole[205:])
    with pytest.raises(UserError, match="does not match its checksum"):
        build_sharded(embeddings, tmp_path / "out", 3)
    assert not (tmp_path / "out").exists()
    file.write_bytes(whole)
    manifest = json.loads((embeddings / "manifest.json").read_text())
    manifest["shards"][0]["rows"] += 1
    (embeddings / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="holds 15 rows, its manifest says 16"):
        build_sharded(embeddings, tmp_path / "out", 3)
    assert not (tmp_path / "out").exists()


def test_row_groups_without_rows_of_the_shard_are_not_read(
    embeddings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = EmbeddingShards.open(embeddings)
    for entry in shards.manifest["shards"]:  # each row group of one shard alone
        table = pq.read_table(embeddings / entry["file"])
        owners = keys_of(table["id"].to_pylist()) % np.uint64(3)
        with pq.ParquetWriter(embeddings / entry["file"], table.schema) as writer:
            for number in range(3):
                writer.write_table(table.filter(pa.array(owners == number)))
    taken: list[int] = []
    real = pq.ParquetFile.iter_batches

    def iter_batches(file: Any, *, row_groups: Any = None, **options: Any) -> Iterator[Any]:
        taken.extend(row_groups or [])
        return real(file, row_groups=row_groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    entries = shards.manifest["shards"]
    mine = [f"d{n}" for n in range(30) if shard_of(f"d{n}", 3) == 1]
    rows = ShardRows(shards.path, shards.manifest, 1, 3, entries, len(mine))
    assert [name for batch in rows.batches(4) for name in batch.ids] == mine
    assert taken == [1, 1]


# as in test_changes.py, over a set
WRITER = """
import sys
from pathlib import Path
from tests.index.sharding.test_build import one_change
folder, done = Path(sys.argv[1]), int(sys.argv[2])
while True:
    one_change(folder, done)
    done += 1
    print(done, flush=True)
"""


def one_change(folder: Path, number: int) -> None:
    index = folder / "index"
    if number % 5 == 4:
        shard_changes.merge_segments(index)
    elif number % 5 in (1, 3):
        shard_changes.delete_documents(index, gone(number))
    else:
        shard_changes.add_documents(index, folder / f"add-{number % 3}")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kills", "seed"), [(3, 0), pytest.param(50, 1, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_a_killed_writer_leaves_the_set_before_or_after_its_change(
    kills: int, seed: int, tmp_path: Path
) -> None:
    start = {f"d{n}": n for n in range(0, POOL, 2)}
    build_sharded(embeddings_of(tmp_path / "first", start), tmp_path / "index", 3)
    for which in range(3):
        embeddings_of(tmp_path / f"add-{which}", added(which))
    states = [start]
    for done in islice(killed_writers(tmp_path, seed, WRITER), kills):
        index = SearchIndex.open(tmp_path / "index")
        index.verify()
        ids = index.ids()
        payloads = index.payload(ids)
        found = {name: payload["version"] for name, payload in zip(ids, payloads) if payload}
        assert len(ids) == len(set(ids)) == len(found)
        assert found in (after(states, done), after(states, done + 1))


@pytest.mark.parametrize("direct", [0, 99])
def test_copies_in_the_order_of_shards_give_what_the_files_give(
    direct: int, embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_build, "DIRECT_SHARDS", direct)
    out = tmp_path / "out"
    with building(embeddings, out, 7) as build:
        counts = [count_rows(build.embeddings, e, 7, build.routed) for e in build.entries]
        assert (out / ROUTED).exists() == (direct == 0)
        # as after a kill: what is copied is not read again, and counted all the same
        if direct == 0:
            monkeypatch.setattr(EmbeddingShards, "verify_file", None)
        again = [count_rows(build.embeddings, e, 7, build.routed) for e in build.entries]
        np.testing.assert_array_equal(again, counts)
        for task in build.tasks(counts):
            wanted = [f"d{n}" for n in range(30) if shard_of(f"d{n}", 7) == task.number]
            batches = list(task.shard_rows().batches(2))
            assert [name for batch in batches for name in batch.ids] == wanted
            assert max((len(batch.ids) for batch in batches), default=0) <= 2
            build_shard(task)
        build.publish()
    monkeypatch.undo()
    assert not (out / ROUTED).exists()
    assert_equals_one_index(out, embeddings)


def copy_of(build: SetBuild, num_shards: int) -> Path:
    """The copy of the first embedding file for so many shards, made."""
    before = set(build.routed.iterdir())
    count_rows(build.embeddings, build.entries[0], num_shards, build.routed)
    [copy] = set(build.routed.iterdir()) - before
    return copy


def test_copies_that_a_killed_build_of_other_shards_left_are_not_read(
    embeddings: Path, tmp_path: Path
) -> None:
    out, left = tmp_path / "out", tmp_path / "left"
    with building(embeddings, out, 4) as build:
        for entry in build.entries:
            count_rows(build.embeddings, entry, 4, build.routed)
        shutil.copytree(out / ROUTED, left)
    out.mkdir()
    left.rename(out / ROUTED)
    build_sharded(embeddings, out, 3)
    assert_equals_one_index(out, embeddings)


def test_a_copy_in_another_order_is_refused(embeddings: Path, tmp_path: Path) -> None:
    with building(embeddings, tmp_path / "out", 4) as build:
        other, copy = copy_of(build, 3), copy_of(build, 4)
        other.replace(copy)
        counts = [count_rows(build.embeddings, entry, 4, build.routed) for entry in build.entries]
        tasks = build.tasks(counts)
        with pytest.raises(UserError, match=r"holds rows of other shards .* remove .*\.routed"):
            list(map(build_shard, tasks))


def test_a_copy_is_on_disk_before_it_has_its_name(
    embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    with building(embeddings, tmp_path / "out", 4) as build:
        copy = copy_of(build, 4)
        assert synced[-2:] == [copy.stat().st_ino, copy.parent.stat().st_ino]


def test_the_coarse_quantiser_is_trained_once_for_all_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_embeddings(
        tmp_path / "many", unit((2000, 8, 16), 1), unit((2000, 24), 2), num_shards=5
    )
    trained: list[Path] = []
    real = shard_training.train_coarse

    def train(path: Path, *given: Any, **options: Any) -> None:
        trained.append(path)
        real(path, *given, **options)

    monkeypatch.setattr(shard_training, "train_coarse", train)
    monkeypatch.setattr(coarse_training, "train_coarse", None)  # what a shard alone would call
    keys = ["fused", "first", "prefix"]
    options = {"coarse_kind": "ivf", "coarse_keys": keys, "coarse": "all"}
    out = tmp_path / "out"
    with building(folder, out, 3, **options) as build:
        counts = [count_rows(build.embeddings, entry, 3, build.routed) for entry in build.entries]
        build.training.run(build.embeddings)
        build_shard(build.tasks(counts)[1])  # and no more: as after a kill
    assert len(trained) == 3
    build_sharded(folder, out, 3, **options)
    assert len(trained) == 3, "a finished file was trained again"
    assert not (out / TRAINED).exists()
    names = [
        sorted(file.name for file in (out / shard_name(number, 3) / "coarse").iterdir())
        for number in range(3)
    ]
    assert len(names[0]) == 3 and names[0] == names[1] == names[2]
    index = SearchIndex.open(out)
    assert index.info()["coarse"] == dict.fromkeys(index.info()["coarse"], "ivf")
    index.verify()
    # looked through to the last list, they hold what those of one index hold
    monkeypatch.undo()
    build_index(folder, tmp_path / "one", **options)
    asked = {"candidates": 100, "coarse": "both", "nprobe": 10**6}
    found, expected = (
        each.search(queries(3), **asked) for each in (index, SearchIndex.open(tmp_path / "one"))
    )
    assert [result.hits for result in found] == [result.hits for result in expected]


def kinds_of(out: Path, num_shards: int) -> list[set[str]]:
    """Of each shard, the kinds of the coarse lists of its segments."""
    kinds = []
    for number in range(num_shards):
        segments = (out / shard_name(number, num_shards)).glob("segments/*/segment.json")
        coarse = [json.loads(file.read_text())["coarse"] for file in segments]
        kinds.append({entry["kind"] for lists in coarse for entry in lists.values()})
    return kinds


@pytest.mark.parametrize(
    ("count", "kind"), [(299, "scan"), (300, "scan4"), (599, "scan4"), (600, "scan1")]
)
@pytest.mark.parametrize("num_shards", [1, 2, 5])
def test_all_shards_have_the_kind_that_one_index_of_their_documents_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_shards: int, count: int, kind: str
) -> None:
    monkeypatch.setattr(sizes, "PACKED_FROM_DOCUMENTS", 300)
    monkeypatch.setattr(sizes, "BITS_FROM_DOCUMENTS", 600)
    vectors = unit((count, 8, 16), 1), unit((count, 24), 2)
    folder = write_embeddings(tmp_path / "embeddings", *vectors)
    build_index(folder, tmp_path / "one")
    assert set(SearchIndex.open(tmp_path / "one").info()["coarse"].values()) == {kind}
    build_sharded(folder, tmp_path / "out", num_shards)
    assert kinds_of(tmp_path / "out", num_shards) == [{kind}] * num_shards
    # as the planner of capacity has it
    assert Corpus(count).coarse_list == kind
    if kind != "scan1":  # of which each shard proposes for itself
        opened, one = (SearchIndex.open(tmp_path / name) for name in ("out", "one"))
        assert answers(opened) == answers(one)


def test_a_kind_by_size_is_kept_until_all_shards_are_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "PACKED_FROM_DOCUMENTS", 30)
    embeddings = embeddings_of(tmp_path / "embeddings", {f"d{n}": n for n in range(31)})
    out = tmp_path / "out"
    build_sharded(embeddings, out, 3)
    assert kinds_of(out, 3) == [{"scan4"}] * 3
    # writes are small and scanned; merged they are of the shard's kind again, chosen or all
    shard_changes.add_documents(
        out, embeddings_of(tmp_path / "more", {f"d{n}": n for n in (1, 2, 90)})
    )
    for choose in (lambda sizes: range(len(sizes)), None):
        shard_changes.merge_segments(out, choose=choose)
        newest = [SearchIndex.open(out / shard_name(number, 3)) for number in range(3)]
        assert [index.info()["coarse"]["fused"] for index in newest] == ["scan4"] * 3
    # one that is built anew joins those that stay, though the set would be scanned by now
    build_sharded(embeddings, out, 3)
    shard_changes.delete_documents(out, ["d1"])
    monkeypatch.setattr(sizes, "PACKED_FROM_DOCUMENTS", 300)
    with building(embeddings, out, 3) as build:
        assert [task.number for task in build.planned] == [shard_of("d1", 3)]
        assert build.training.kind == "scan4"
    build_sharded(embeddings_of(tmp_path / "other", {f"e{n}": n for n in range(31)}), out, 3)
    newest = [SearchIndex.open(out / shard_name(number, 3)) for number in range(3)]
    assert [index.info()["coarse"]["fused"] for index in newest] == ["scan"] * 3


def test_shards_too_small_to_train_are_refused_or_scanned(tmp_path: Path) -> None:
    folder = write_embeddings(tmp_path / "few", unit((600, 8, 16), 1), unit((600, 24), 2))
    with pytest.raises(UserError, match="are too few for coarse kind 'ivf'"):
        build_sharded(folder, tmp_path / "out", 3, coarse_kind="ivf")
    assert not (tmp_path / "out").exists()
