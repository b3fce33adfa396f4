"""What a build leaves on disk, what it refuses, and that no failure harms the index before it."""

import errno
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

from rematch_ray.errors import UserError
from rematch_ray.index import build, planes, shards, store
from rematch_ray.index.build import build_index
from rematch_ray.index.changes import delete_documents, merge_segments
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.sharding.build import build_sharded
from tests.index.made import Vectors, queries, unit, write_embeddings


def segment_of(path: Path) -> Path:
    [segment] = (path / "segments").iterdir()
    return segment


def other_embeddings(path: Path) -> Path:
    ids = [f"new-{row}" for row in range(50)]
    return write_embeddings(path, unit((50, 8, 16), 11), unit((50, 24), 12), ids=ids)


def snapshot(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def test_every_file_opens_with_plain_libraries(index: SearchIndex, tmp_path: Path) -> None:
    path = tmp_path / "index"
    name = (path / "CURRENT").read_text().strip()
    generation = json.loads((path / "generations" / f"{name}.json").read_text())
    segment = path / "segments" / generation["segments"][0]["name"]
    manifest = json.loads((segment / "segment.json").read_text())
    vectors = unit((300, 8, 16), 1).astype(np.float16)
    for start, stop in manifest["planes"]:
        kinds = ("codes", "scales", "errors", "originals")
        files = [segment / f"{kind}_{start}_{stop}.npy" for kind in kinds]
        codes, scales, errors, plane = (np.load(file, allow_pickle=False) for file in files)
        np.testing.assert_array_equal(plane, vectors[:, start:stop])
        off = plane - scales[..., None] * (codes.astype(np.float64) - 128)
        assert (np.linalg.norm(off, axis=-1).max(axis=1) <= errors).all()
        assert errors.max() < 0.02
    fused = np.load(segment / "originals_fused.npy")
    np.testing.assert_array_equal(fused[:, 0], unit((300, 24), 2).astype("f2"))
    with sqlite3.connect(segment / "payload.sqlite") as database:
        rows = database.execute("SELECT id, payload FROM documents ORDER BY row").fetchall()
    assert [name for name, _ in rows] == [f"doc-{row:04d}" for row in range(300)]
    assert json.loads(rows[4][1])["name"] == "name 4"
    for file, entry in manifest["files"].items():
        data = (segment / file).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    assert sorted(manifest["files"]) == sorted(
        file.name for file in segment.iterdir() if file.name != "segment.json"
    )


def test_a_coarse_list_opens_with_faiss_alone(embeddings: Path, tmp_path: Path) -> None:
    build_index(embeddings, tmp_path / "index", coarse_kind="flat")
    assert (
        faiss.read_index(str(segment_of(tmp_path / "index") / "coarse_fused.faiss")).ntotal == 300
    )


def test_the_embedding_shards_open_with_pyarrow_alone(embeddings: Path) -> None:
    table = pq.read_table(embeddings / "part-00000.parquet")
    assert not any(str(kind).startswith("extension") for kind in table.schema.types)


def test_an_index_of_int8_shards_gives_the_hits_of_the_vectors_themselves(
    make_index: Callable[..., SearchIndex],
) -> None:
    vectors, fused = unit((300, 8, 16), 1), unit((300, 24), 2)
    exact = make_index(vectors, fused, name="wide")
    index = make_index(vectors, fused, name="narrow", dtype="int8")
    for budget in ("1x1", "4x8"):
        for wide, narrow in zip(
            exact.search(queries(5), budget=budget, candidates="all"),
            index.search(queries(5), budget=budget, candidates="all"),
            strict=True,
        ):
            scores = {hit.id: hit.score for hit in wide.hits}
            found = [hit for hit in narrow.hits if hit.id in scores]
            assert len(found) >= 8
            assert all(abs(hit.score - scores[hit.id]) < 0.01 for hit in found)


def test_a_stored_prefix_gives_an_index_the_rungs_within_it(
    make_index: Callable[..., SearchIndex],
) -> None:
    vectors, fused = unit((300, 8, 16), 1), unit((300, 24), 2)
    whole = make_index(vectors, fused, name="whole")
    index = make_index(vectors[:, :4], fused, name="prefix")
    assert [str(rung) for rung in index.ladder.rungs] == ["1x1", "2x4"]
    for name in ("full", "2x4", "1x1", "fused"):
        wanted = "2x4" if name == "full" else name
        found = index.search(queries(3), budget=name, candidates="all")
        expected = whole.search(queries(3), budget=wanted, candidates="all")
        assert [each.hits for each in found] == [each.hits for each in expected]
    with pytest.raises(UserError, match="budget '4x8' does not exist here"):
        index.search(queries(1), budget="4x8")


def test_a_prefix_below_every_rung_is_refused(make_index: Callable[..., SearchIndex]) -> None:
    with pytest.raises(UserError, match="2 vectors per document, fewer than any rung"):
        make_index(unit((9, 2, 16), 1), None, ladder=["2x4", "4x8"])


def test_a_small_budget_never_touches_the_planes_above_it(
    index: SearchIndex, tmp_path: Path
) -> None:
    for kind in ("codes", "scales", "errors", "originals"):
        (segment_of(tmp_path / "index") / f"{kind}_4_8.npy").write_bytes(b"")
    assert len(index.search(queries(1), budget="2x4", candidates="all")[0].hits) == 10
    with pytest.raises(UserError, match=r"_4_8\.npy cannot be mapped"):
        index.search(queries(1), budget="4x8", candidates="all")


@pytest.mark.parametrize("shift", [1, -1])
def test_planes_sliced_one_vector_off_change_the_scores_of_every_rung_but_the_top(
    embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    """What the equality with brute force in test_search rests on."""
    build_index(embeddings, tmp_path / "right")
    append = shards.EmbeddingBatch
    monkeypatch.setattr(
        build.EmbeddingShards,
        "batches",
        lambda self, rows, read=build.EmbeddingShards.batches: (
            append(b.ids, np.roll(b.vectors, shift, axis=1), b.fused, b.sources, b.payloads)
            for b in read(self, rows)
        ),
    )
    build_index(embeddings, tmp_path / "wrong")
    right, wrong = (
        SearchIndex.open(tmp_path / name).score_all(queries(3)) for name in ("right", "wrong")
    )
    same = {rung for rung in right if np.array_equal(right[rung], wrong[rung])}
    assert same == {"fused", "4x8"}


def test_planes_follow_the_ladder_that_is_asked_for(embeddings: Path, tmp_path: Path) -> None:
    build_index(embeddings, tmp_path / "index", ladder=["1x2", "2x6"])
    names = sorted(file.name for file in segment_of(tmp_path / "index").glob("codes_?_?.npy"))
    assert names == ["codes_0_2.npy", "codes_2_6.npy"]
    index = SearchIndex.open(tmp_path / "index")
    assert set(index.score_all(queries(2))) == {"fused", "1x2", "2x6"}


@pytest.mark.parametrize("batch_rows", [1, 7, 299, 300, 5000])
def test_batches_change_no_byte(embeddings: Path, tmp_path: Path, batch_rows: int) -> None:
    build_index(embeddings, tmp_path / "one", batch_rows=64)
    build_index(embeddings, tmp_path / "two", batch_rows=batch_rows)
    one, two = (snapshot(segment_of(tmp_path / name)) for name in ("one", "two"))
    vectors = [name for name in one if name.endswith((".npy", ".faiss"))]
    assert {name: one[name] for name in vectors} == {name: two[name] for name in vectors}


def test_a_rebuild_replaces_the_documents_and_keeps_the_generation_before(
    embeddings: Path, tmp_path: Path
) -> None:
    build_index(embeddings, tmp_path / "index")
    before = SearchIndex.open(tmp_path / "index")
    other = other_embeddings(tmp_path / "other")
    info = build_index(other, tmp_path / "index")
    assert (info.generation, info.documents) == ("generation-000002", 50)
    # a reader of the generation before goes on, with files it has not mapped yet
    assert len(before.search(queries(1), candidates="all", top_k=300)[0].hits) == 300
    assert len(SearchIndex.open(tmp_path / "index")) == 50
    build_index(other, tmp_path / "index")
    kept = sorted(file.stem for file in (tmp_path / "index" / "generations").iterdir())
    assert kept == ["generation-000002", "generation-000003"]
    assert len(list((tmp_path / "index" / "segments").iterdir())) == 2


@pytest.mark.parametrize("failing_write", [0, 1, 3, 5, 8])
def test_a_failed_write_leaves_the_index_before_it(
    embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_write: int
) -> None:
    build_index(embeddings, tmp_path / "index")
    before = snapshot(tmp_path / "index")
    fail_at(monkeypatch, failing_write)
    other = other_embeddings(tmp_path / "other")
    with pytest.raises(OSError, match="disk full"):
        build_index(other, tmp_path / "index", batch_rows=16)
    assert snapshot(tmp_path / "index") == before


def test_a_failed_first_build_leaves_nothing(
    embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, 3)
    with pytest.raises(OSError, match="disk full"):
        build_index(embeddings, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def fail_at(monkeypatch: pytest.MonkeyPatch, failing_write: int) -> None:
    append = planes.PlaneWriter.append
    written = iter(range(10_000))

    def fail(self: planes.PlaneWriter, block: np.ndarray) -> None:
        if next(written) == failing_write:
            raise OSError("disk full")
        append(self, block)

    monkeypatch.setattr(planes.PlaneWriter, "append", fail)


BUILD_UNTIL_KILLED = """
import os, signal, sys
from rematch_ray.index import build, manifest, planes
real, calls = {point}, []
def fatal(*given, **named):
    calls.append(given)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*given, **named)
{point} = fatal
build.build_index(sys.argv[1], sys.argv[2], batch_rows=16)
"""


@pytest.mark.parametrize(
    ("point", "call"),
    [
        ("planes.PlaneWriter.append", 6),
        ("planes.PlaneWriter.finish", 2),
        ("manifest.os.replace", 1),  # the segment's manifest
        ("manifest.os.replace", 2),  # the generation's
        ("manifest.os.replace", 3),  # CURRENT
        ("build.publish", 1),
    ],
)
def test_a_killed_build_leaves_the_index_before_it_and_the_next_one_cleans_up(
    embeddings: Path, tmp_path: Path, repository: Path, point: str, call: int
) -> None:
    build_index(embeddings, tmp_path / "index")
    other = other_embeddings(tmp_path / "other")
    program = BUILD_UNTIL_KILLED.format(point=point, call=call)
    killed = subprocess.run(
        [sys.executable, "-c", program, str(other), str(tmp_path / "index")],
        cwd=repository,
        timeout=60,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    index = SearchIndex.open(tmp_path / "index")
    index.verify()
    assert len(index) == 300
    assert build_index(other, tmp_path / "index").documents == 50
    named = {
        segment["name"]
        for file in (tmp_path / "index" / "generations").glob("*.json")
        for segment in json.loads(file.read_text())["segments"]
    }
    assert {segment.name for segment in (tmp_path / "index" / "segments").iterdir()} == named
    assert not list((tmp_path / "index").rglob(".*"))


def test_what_cannot_be_removed_yet_stops_no_writer(
    index: SearchIndex,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "index"
    removes, busy = shutil.rmtree, segment_of(path)

    def rmtree(folder: Path, **options: Any) -> None:
        # as a network file system has it while a reader maps a file
        if Path(folder) == busy:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(folder))
        removes(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    for number in range(3):
        delete_documents(path, [f"doc-{number:04d}"])
        merge_segments(path)
    assert busy.exists()
    assert f"{busy} is not needed any more and could not be removed" in caplog.text
    assert len(SearchIndex.open(path)) == 297
    monkeypatch.setattr(shutil, "rmtree", removes)
    delete_documents(path, ["doc-0100"])
    assert not busy.exists()


@pytest.mark.parametrize("folder", ["generations", "segments", "tombstones", "coarse"])
def test_a_stray_file_or_folder_stops_no_writer(
    index: SearchIndex, tmp_path: Path, folder: str
) -> None:
    path = tmp_path / "index"
    (path / folder / "stray.txt").write_text("stray")
    (path / folder / "strays").mkdir()
    (path / folder / "strays" / "one").write_text("stray")
    assert delete_documents(path, ["doc-0000"]).deleted == 1
    assert len(SearchIndex.open(path)) == 299
    assert not [left for left in (path / folder).iterdir() if left.name.startswith("stray")]


def test_an_older_generation_that_cannot_be_read_stops_no_writer(
    index: SearchIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "index"
    delete_documents(path, ["doc-0000"])
    (path / "generations" / "generation-000001.json").write_text("{")
    delete_documents(path, ["doc-0001"])
    assert len(SearchIndex.open(path)) == 298
    assert "generation-000001.json is not JSON" in caplog.text


def test_one_writer_at_a_time(embeddings: Path, tmp_path: Path) -> None:
    build_index(embeddings, tmp_path / "index")
    with (
        store.writing(tmp_path / "index"),
        pytest.raises(UserError, match="is being written by another process"),
    ):
        build_index(embeddings, tmp_path / "index")


def test_a_directory_of_something_else_is_left_alone(embeddings: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    with pytest.raises(UserError, match=r"holds 'cat\.png', which is not part of an index"):
        build_index(embeddings, tmp_path / "photos")
    assert snapshot(tmp_path / "photos") == {"cat.png": b"cat"}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        build_index(embeddings, tmp_path / "file")


def test_repeated_ids_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    ids = [f"doc-{row}" for row in range(20)]
    ids[13] = "doc-4"
    write_embeddings(tmp_path / "e", unit((20, 8, 16), 1), unit((20, 24), 2), ids=ids)
    with pytest.raises(UserError, match=r"occur more than once: 'doc-4' \(2 times\)"):
        build_index(tmp_path / "e", tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_payloads_that_json_cannot_hold_are_refused_by_name(tmp_path: Path) -> None:
    payloads = [{"thumbnail": b"\x89PNG"} for _ in range(4)]
    write_embeddings(tmp_path / "e", unit((4, 8, 16), 1), None, payloads=payloads)
    with pytest.raises(
        UserError, match="payload field 'thumbnail' of document 'doc-0000' holds byt"
    ):
        build_index(tmp_path / "e", tmp_path / "index")


# Arrow's uint64, one more than SQLite takes
LARGE = np.uint64(2**63)


@pytest.mark.parametrize(
    ("value", "field"), [(LARGE, "count"), ([LARGE, LARGE], "count"), ({"of": LARGE}, "count.of")]
)
def test_whole_numbers_that_sqlite_cannot_hold_are_refused_by_name(
    tmp_path: Path, value: Any, field: str
) -> None:
    payloads = [{"count": value} for _ in range(4)]
    write_embeddings(tmp_path / "e", unit((4, 8, 16), 1), None, payloads=payloads)
    with pytest.raises(UserError, match=f"document 'doc-0000': payload field '{field}' is [0-9]+"):
        build_index(tmp_path / "e", tmp_path / "index")


@pytest.mark.parametrize(
    ("dim", "fused_dim", "named"), [(4097, 24, "vectors of 4097"), (16, 5000, "fused vectors of")]
)
def test_vectors_too_long_to_be_searched_are_refused_by_a_build(
    dim: int, fused_dim: int, named: str, tmp_path: Path
) -> None:
    vectors, fused = unit((4, 1, dim), 1), unit((4, fused_dim), 2)
    write_embeddings(tmp_path / "e", vectors, fused, ladder=["1x1"])
    for make in (build_index, partial(build_sharded, num_shards=2)):
        with pytest.raises(UserError, match=rf"holds {named} .* at most 4096"):
            make(tmp_path / "e", tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_the_longest_vectors_are_searched(tmp_path: Path) -> None:
    vectors, fused = unit((4, 1, 4096), 1), unit((4, 4096), 2)
    write_embeddings(tmp_path / "e", vectors, fused, ladder=["1x1"])
    build_index(tmp_path / "e", tmp_path / "index")
    index = SearchIndex.open(tmp_path / "index")
    for asked in ({"candidates": "all"}, {"candidates": 2}, {"budget": "fused"}):
        found = index.search(Vectors(vectors, fused), top_k=1, **asked)
        assert [result.hits[0].id for result in found] == [f"doc-{row:04d}" for row in range(4)]


def test_a_ladder_that_the_vectors_do_not_cover_is_refused(
    embeddings: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=r"ladder ends at 4x16, but .* holds 8 vectors per document"
    ):
        build_index(embeddings, tmp_path / "index", ladder=["1x1", "4x16"])


def test_query_side_embeddings_are_refused(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "e", unit((4, 8, 16), 1), unit((4, 24), 2), side="query")
    with pytest.raises(UserError, match="of the query side: an index needs the document side"):
        build_index(tmp_path / "e", tmp_path / "index")


def test_what_is_not_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not an index: it has no CURRENT file"):
        SearchIndex.open(tmp_path)


def test_a_truncated_file_is_named_when_the_index_is_opened(
    index: SearchIndex, tmp_path: Path
) -> None:
    plane = segment_of(tmp_path / "index") / "scales_1_4.npy"
    os.truncate(plane, plane.stat().st_size - 2)
    with pytest.raises(UserError, match=r"scales_1_4\.npy has .* bytes, its manifest says"):
        SearchIndex.open(tmp_path / "index")
    plane.unlink()
    with pytest.raises(UserError, match=r"scales_1_4\.npy is missing"):
        SearchIndex.open(tmp_path / "index")


def strip_parts(fields: dict[str, Any]) -> None:
    """Files lose their checksum, segments their name."""
    for part in (*fields.get("files", {}).values(), *fields.get("segments", ())):
        part.pop("sha256", None)
        part.pop("name", None)


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a key is missing": lambda fields: fields.pop("dim"),
    "a key is unknown": lambda fields: fields.update(unknown=1),
    "a number is a text": lambda fields: fields.update(dim="16"),
    "a number is null": lambda fields: fields.update(dim=None),
    "a mapping is a list": lambda fields: fields.update(files=[], coarse_trained=[]),
    "a list is a number": lambda fields: fields.update(planes=3, segments=3),
    "a part lacks a key": lambda fields: strip_parts(fields),
    "it is a list": lambda fields: None,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", ["generation-000001.json", "segment.json"])
def test_a_damaged_manifest_is_named_when_the_index_is_opened(
    index: SearchIndex, tmp_path: Path, which: str, damage: str
) -> None:
    [file] = (tmp_path / "index").rglob(which)
    fields = json.loads(file.read_text())
    DAMAGES[damage](fields)
    file.write_text(json.dumps([fields] if damage == "it is a list" else fields))
    with pytest.raises(UserError, match=f"{which} (is no manifest|has format version None)"):
        SearchIndex.open(tmp_path / "index")


@pytest.mark.parametrize(
    "other", [np.zeros(299, np.uint64), np.zeros(300, np.float64), np.zeros((300, 1), np.uint64)]
)
def test_keys_of_another_shape_or_type_are_refused_by_name(
    index: SearchIndex, tmp_path: Path, other: np.ndarray
) -> None:
    segment = segment_of(tmp_path / "index")
    np.save(segment / "keys.npy", other)
    manifest = json.loads((segment / "segment.json").read_text())
    manifest["files"]["keys.npy"]["bytes"] = (segment / "keys.npy").stat().st_size
    (segment / "segment.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"keys\.npy holds .*, its manifest says uint64 \(300,\)"):
        SearchIndex.open(tmp_path / "index").search(queries(1))


def test_a_bitmap_of_another_shape_is_refused_by_name(index: SearchIndex, tmp_path: Path) -> None:
    delete_documents(tmp_path / "index", ["doc-0007"])
    [bitmap] = (tmp_path / "index" / "tombstones").iterdir()
    np.save(bitmap, np.zeros(3, np.uint8))
    with pytest.raises(UserError, match=r"holds uint8 \(3,\), its manifest says uint8 \(38,\)"):
        SearchIndex.open(tmp_path / "index")


def test_one_flipped_bit_is_found_by_verify(index: SearchIndex, tmp_path: Path) -> None:
    assert index.verify()["documents"] == 300
    plane = segment_of(tmp_path / "index") / "originals_4_8.npy"
    data = bytearray(plane.read_bytes())
    data[-1] ^= 1
    plane.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"originals_4_8\.npy does not match its checksum"):
        SearchIndex.open(tmp_path / "index").verify()


def test_a_flipped_bit_of_a_bitmap_is_found_by_verify(index: SearchIndex, tmp_path: Path) -> None:
    delete_documents(tmp_path / "index", ["doc-0007"])
    SearchIndex.open(tmp_path / "index").verify()
    [bitmap] = (tmp_path / "index" / "tombstones").iterdir()
    data = bytearray(bitmap.read_bytes())
    data[-1] ^= 1
    bitmap.write_bytes(bytes(data))
    with pytest.raises(UserError, match=rf"{bitmap.name} does not match its checksum"):
        SearchIndex.open(tmp_path / "index").verify()


def test_an_unknown_format_version_is_refused(index: SearchIndex, tmp_path: Path) -> None:
    [file] = (tmp_path / "index" / "generations").iterdir()
    file.write_text(file.read_text().replace('"format_version": 2', '"format_version": 99'))
    with pytest.raises(UserError, match="has format version 99, this software reads 2"):
        SearchIndex.open(tmp_path / "index")


def test_tombstones_hide_documents_from_every_stage(index: SearchIndex, tmp_path: Path) -> None:
    path = tmp_path / "index"
    [hit] = index.search(queries(1), candidates="all", top_k=1)[0].hits
    deleted = np.zeros(300, bool)
    deleted[int(hit.id[4:])] = True
    (path / "tombstones").mkdir(exist_ok=True)
    np.save(path / "tombstones" / "one.npy", np.packbits(deleted, bitorder="little"))
    [file] = (path / "generations").iterdir()
    manifest = json.loads(file.read_text())
    manifest["segments"][0] |= {"tombstones": "tombstones/one.npy", "deleted": 1}
    file.write_text(json.dumps(manifest))
    after = SearchIndex.open(path)
    assert len(after) == len(after.ids()) == 299
    for candidates in ("all", 299, 50):
        [found] = after.search(queries(1), candidates=candidates, top_k=50)
        assert hit.id not in {other.id for other in found.hits}
        assert found.live == 299
    assert after.payload([hit.id]) == [None]


def test_two_segments_answer_as_one_does(index: SearchIndex, tmp_path: Path) -> None:
    """The generation names several segments: the layout that additions will make."""
    path = tmp_path / "index"
    parts = []
    for number, rows in enumerate((slice(0, 120), slice(120, 300))):
        source = write_embeddings(
            tmp_path / f"part-{number}",
            unit((300, 8, 16), 1)[rows],
            unit((300, 24), 2)[rows],
            ids=[f"doc-{row:04d}" for row in range(300)][rows],
        )
        build_index(source, tmp_path / f"index-{number}")
        [file] = (tmp_path / f"index-{number}" / "generations").iterdir()
        entry = json.loads(file.read_text())["segments"][0]
        name = f"segment-{number}"
        home = tmp_path / f"index-{number}" / "segments" / entry["name"]
        shutil.copytree(home, path / "segments" / name)
        parts.append({**entry, "name": name})
    one = {
        candidates: index.search(queries(9), candidates=candidates, top_k=30)
        for candidates in ("all", 40)
    }
    scores = index.score_all(queries(9))
    [file] = (path / "generations").iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), "segments": parts}))
    two = SearchIndex.open(path)
    assert two.info()["segments"] == 2
    for name, matrix in two.score_all(queries(9)).items():
        np.testing.assert_array_equal(matrix, scores[name])
    for candidates, expected in one.items():
        found = two.search(queries(9), candidates=candidates, top_k=30)
        pairs = [[(hit.id, hit.score) for hit in result.hits] for result in found]
        assert pairs == [[(hit.id, hit.score) for hit in result.hits] for result in expected]
