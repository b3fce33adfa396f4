"""The coarse quantiser is trained once, used by later writers, and trained again when outgrown."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest

from rematch_ray import cli
from rematch_ray.errors import UserError
from rematch_ray.index.build import build_index
from rematch_ray.index.changes import add_documents, delete_documents, merge_segments
from rematch_ray.index.coarse.building import build_coarse, train_coarse
from rematch_ray.index.coarse.entries import Entries
from rematch_ray.index.coarse.keys import COARSE_CHOICES
from rematch_ray.index.coarse.kinds import COARSE_KINDS
from rematch_ray.index.coarse.lists import CoarseList
from rematch_ray.index.coarse.sizes import SCANS
from rematch_ray.index.coarse.training import CoarseWriter
from rematch_ray.index.manifest import hash_file
from rematch_ray.index.search import SearchIndex
from tests.index.made import queries, unit, write_embeddings

TRAINABLE = [kind for kind in COARSE_KINDS if kind not in ("auto", *SCANS, "flat")]
KEYS = ("fused", "first", "prefix")


def embed(path: Path, count: int, seed: int, *, first_id: int = 0) -> Path:
    ids = [f"d{first_id + row}" for row in range(count)]
    return write_embeddings(path, unit((count, 8, 16), seed), unit((count, 24), seed + 1), ids=ids)


def trained(index: Path) -> dict[str, dict]:
    name = (index / "CURRENT").read_text().strip()
    return json.loads((index / "generations" / f"{name}.json").read_text())["coarse_trained"]


def kinds(index: Path) -> list[dict[str, str]]:
    name = (index / "CURRENT").read_text().strip()
    generation = json.loads((index / "generations" / f"{name}.json").read_text())
    manifests = [
        json.loads((index / "segments" / entry["name"] / "segment.json").read_text())
        for entry in generation["segments"]
    ]
    return [{key: e["kind"] for key, e in manifest["coarse"].items()} for manifest in manifests]


@pytest.mark.parametrize("kind", TRAINABLE)
def test_training_is_repeatable_and_holds_no_entries(tmp_path: Path, kind: str) -> None:
    sample = unit((600, 24), 1)
    for name in ("a", "b"):
        train_coarse(tmp_path / name, sample, kind=kind, num_entries=600, seed=5)
    assert hash_file(tmp_path / "a") == hash_file(tmp_path / "b")
    assert faiss.read_index(str(tmp_path / "a")).ntotal == 0


# a graph is built by several threads and is another each time
@pytest.mark.parametrize("kind", [kind for kind in TRAINABLE if kind != "hnsw"])
def test_a_filled_copy_answers_as_a_list_that_was_trained_in_place(
    tmp_path: Path, kind: str
) -> None:
    vectors = unit((600, 24), 1).astype(np.float16)
    train_coarse(tmp_path / "t", vectors.astype(np.float32), kind=kind, num_entries=600)
    one = build_coarse(tmp_path / "one", vectors, kind=kind)
    other = build_coarse(tmp_path / "other", vectors, kind=kind, trained=tmp_path / "t")
    assert {**one, "file": ""} == {**other, "file": ""}
    lists = [CoarseList(tmp_path, description) for description in (one, other)]
    for query in unit((5, 24), 2):
        (_, scores), (_, others) = (coarse.search(query, 20) for coarse in lists)
        np.testing.assert_array_equal(np.sort(scores), np.sort(others))
    assert hash_file(tmp_path / "t") != hash_file(tmp_path / "other")


def test_a_quantiser_of_another_dim_is_refused(tmp_path: Path) -> None:
    train_coarse(tmp_path / "t", unit((600, 24), 1), kind="ivf", num_entries=600)
    with pytest.raises(UserError, match="trained for vectors of dim 24, these have 16"):
        build_coarse(tmp_path / "c", unit((600, 16), 1), kind="ivf", trained=tmp_path / "t")


def test_later_writers_use_what_the_first_build_trained(tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index(embed(tmp_path / "a", 900, 1), index, coarse="all", coarse_kind="ivf_sq8")
    first = trained(index)
    assert sorted(first) == sorted(KEYS)
    for entry in first.values():
        assert hash_file(index / entry["file"]) == entry["sha256"]
        assert entry["documents"] == 900
    add_documents(index, embed(tmp_path / "few", 20, 11, first_id=1000))
    add_documents(index, embed(tmp_path / "many", 400, 21, first_id=2000))
    assert [set(found.values()) for found in kinds(index)] == [{"ivf_sq8"}, {"scan"}, {"ivf_sq8"}]
    assert trained(index) == first
    merge_segments(index)
    assert [set(found.values()) for found in kinds(index)] == [{"ivf_sq8"}]
    assert trained(index) == first
    build_index(embed(tmp_path / "b", 1000, 31), index, coarse="all", coarse_kind="ivf_sq8")
    assert trained(index) == first
    assert len(list((index / "coarse").iterdir())) == 3


def test_what_outgrew_its_quantiser_is_trained_again(tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index(embed(tmp_path / "a", 300, 1), index, coarse="first", coarse_kind="ivf")
    first = trained(index)["first"]
    add_documents(index, embed(tmp_path / "b", 1300, 11, first_id=1000))
    assert [found["first"] for found in kinds(index)] == ["ivf", "scan"]
    merge_segments(index)
    second = trained(index)["first"]
    assert (first["documents"], second["documents"]) == (300, 1600)
    assert (index / first["file"]).exists()
    # forgotten with the last generation that names it
    for row in range(2):
        delete_documents(index, [f"d{row}"])
    assert not (index / first["file"]).exists()
    assert hash_file(index / second["file"]) == second["sha256"]


def test_another_kind_or_model_is_trained_anew(tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index(embed(tmp_path / "a", 600, 1), index, coarse_kind="ivf")
    before = trained(index)
    build_index(embed(tmp_path / "b", 600, 1), index, coarse_kind="ivf_sq8")
    assert {entry["kind"] for entry in trained(index).values()} == {"ivf_sq8"}
    other = embed(tmp_path / "c", 600, 31)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["identity"]["digest"] = "e2" * 32
    (other / "manifest.json").write_text(json.dumps(manifest))
    build_index(embed(tmp_path / "d", 600, 1), index, coarse_kind="ivf")
    assert trained(index) == before
    build_index(other, index, coarse_kind="ivf")
    assert trained(index).keys() == before.keys()
    assert trained(index) != before


def test_a_merge_of_too_few_documents_for_a_kind_is_scanned(tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index(embed(tmp_path / "a", 300, 1), index, coarse_kind="ivf")
    delete_documents(index, [f"d{row}" for row in range(290)])
    merge_segments(index)
    assert {kind for found in kinds(index) for kind in found.values()} == {"scan"}


def test_a_build_of_too_few_documents_for_a_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="40 documents are too few for coarse kind 'ivf_pq'"):
        build_index(embed(tmp_path / "a", 40, 1), tmp_path / "index", coarse_kind="ivf_pq")
    assert not (tmp_path / "index").exists()
    with pytest.raises(UserError, match="coarse kind 'tree' does not exist"):
        build_index(embed(tmp_path / "b", 40, 1), tmp_path / "index", coarse_kind="tree")


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_trained_file_is_named(tmp_path: Path, damage: str) -> None:
    index = tmp_path / "index"
    build_index(embed(tmp_path / "a", 600, 1), index, coarse_kind="ivf")
    path = index / trained(index)["first"]["file"]
    if damage == "missing":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
    delete_documents(index, ["d3"])
    with pytest.raises(UserError, match="is missing or does not match its checksum"):
        merge_segments(index)
    with pytest.raises(UserError, match="is missing or does not match its checksum"):
        SearchIndex.open(index).verify()
    assert len(SearchIndex.open(index)) == 599


def test_several_indexes_share_one_trained_file(tmp_path: Path) -> None:
    vectors = unit((500, 16), 1).astype(np.float16)
    train_coarse(tmp_path / "shared", unit((900, 16), 3), kind="ivf", num_entries=500)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        writer = CoarseWriter(tmp_path / name, keys=("first",), kind="ivf")
        writer.adopt("first", tmp_path / "shared", kind="ivf", documents=500)
        writer.write(tmp_path / name, "first", Entries.of(vectors))
        assert writer.trained["first"].sha256 == hash_file(tmp_path / "shared")
    assert hash_file(tmp_path / "one" / "coarse_first.faiss") == hash_file(
        tmp_path / "two" / "coarse_first.faiss"
    )
    assert os.listdir(tmp_path / "one" / "coarse") == os.listdir(tmp_path / "two" / "coarse")


def test_a_trained_file_that_is_taken_over_is_on_disk_before_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_coarse(tmp_path / "shared", unit((900, 16), 3), kind="ivf", num_entries=500)
    (tmp_path / "index").mkdir()
    synced, sync, replace = set(), os.fsync, os.replace

    def note(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)
        sync(handle)

    def name(source: Path, target: Path) -> None:
        assert os.stat(source).st_ino in synced
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", name)
    writer = CoarseWriter(tmp_path / "index", keys=("first",), kind="ivf")
    writer.adopt("first", tmp_path / "shared", kind="ivf", documents=500)
    assert (tmp_path / "index" / writer.trained["first"].file).is_file()


@pytest.mark.parametrize("kind", [*SCANS, "flat", *TRAINABLE])
def test_deleted_and_replaced_documents_never_come_back(tmp_path: Path, kind: str) -> None:
    index = tmp_path / "index"
    build_index(embed(tmp_path / "a", 400, 1), index, coarse="all", coarse_kind=kind)
    gone = [f"d{row}" for row in range(0, 400, 3)]
    delete_documents(index, gone)
    add_documents(index, embed(tmp_path / "b", 40, 11, first_id=380))
    opened = SearchIndex.open(index)
    truth = [
        {hit.id: hit.score for hit in result.hits}
        for result in opened.search(queries(4), candidates="all", top_k=500)
    ]
    for coarse in COARSE_CHOICES:
        found = opened.search(queries(4), candidates=60, top_k=60, coarse=coarse)
        for result, known in zip(found, truth):
            assert len(result.hits) == 60
            assert not {hit.id for hit in result.hits} & {f"d{row}" for row in range(0, 380, 3)}
            assert all(known[hit.id] == hit.score for hit in result.hits)


def test_the_prefix_choice_gives_the_best_documents_of_two_by_four(
    make_index: Callable[..., SearchIndex],
) -> None:
    index = make_index(
        unit((700, 8, 16), 1), unit((700, 24), 2), coarse="prefix", coarse_kind="flat"
    )
    found = index.search(queries(5), budget="2x4", candidates=30, top_k=30)
    best = index.search(queries(5), budget="2x4", candidates="all", top_k=30)
    assert [result.hits for result in found] == [result.hits for result in best]
    assert found[0].stages[1]["name"] == "coarse:prefix"


def test_a_scan_of_the_prefix_finds_the_best_but_for_8_bits(
    make_index: Callable[..., SearchIndex],
) -> None:
    index = make_index(unit((700, 8, 16), 1), unit((700, 24), 2))
    found = index.search(queries(5), budget="2x4", candidates=30, top_k=20, coarse="prefix")
    best = index.search(queries(5), budget="2x4", candidates="all", top_k=20)
    assert [result.hits for result in found] == [result.hits for result in best]


def test_an_index_offers_the_choices_that_its_keys_allow(
    make_index: Callable[..., SearchIndex],
) -> None:
    vectors, fused = unit((50, 8, 16), 1), unit((50, 24), 2)
    plain = make_index(vectors, fused, name="plain", coarse_kind="flat")
    with pytest.raises(UserError, match="coarse 'prefix' does not exist here; allowed: fused, fi"):
        plain.search(queries(1), coarse="prefix")
    narrow = make_index(vectors, fused, name="narrow", coarse_keys=["prefix"], coarse_kind="flat")
    assert narrow.info()["coarse"] == {"prefix": "flat"}
    assert narrow.search(queries(1), candidates=20)[0].stages[1]["name"] == "coarse:prefix"
    with pytest.raises(UserError, match="coarse 'all' does not exist here; allowed: prefix"):
        narrow.search(queries(1), coarse="all")
    refused: list[tuple[dict, str]] = [
        ({"coarse_keys": ["frist"]}, "coarse key 'frist' does not exist here; did you mean first"),
        ({"coarse_keys": []}, "coarse key '' does not exist here"),
        ({"coarse_keys": ["first"], "coarse": "fused"}, "coarse 'fused' does not exist here"),
        ({"coarse": "last"}, "coarse 'last' does not exist here"),
    ]
    for number, (options, message) in enumerate(refused):
        with pytest.raises(UserError, match=message):
            make_index(vectors, fused, name=f"refused-{number}", **options)


def test_the_command_line_chooses_keys_kind_and_default(
    embeddings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--embeddings", str(embeddings), "--out", str(tmp_path / "index")]
    chosen = ["--coarse-keys", "first,prefix", "--coarse", "prefix", "--coarse-kind", "sq8"]
    assert cli.main(["index", "build", *given, *chosen]) == 0
    info = SearchIndex.open(tmp_path / "index").info()
    assert info["coarse"] == {"first": "sq8", "prefix": "sq8"}
    assert info["default_coarse"] == "prefix"
    assert cli.main(["index", "build", *given, "--coarse-kind", "sq9"]) == 2
    assert "did you mean sq8?" in capsys.readouterr().err


def test_scores_of_a_list_and_of_a_scan_are_of_one_scale(tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index(embed(tmp_path / "a", 900, 1), index, coarse="prefix", coarse_kind="ivf_sq8")
    add_documents(index, embed(tmp_path / "b", 200, 11, first_id=2000))
    assert [found["prefix"] for found in kinds(index)] == ["ivf_sq8", "scan"]
    opened = SearchIndex.open(index)
    found = opened.search(queries(20), budget="2x4", candidates=100, top_k=20, nprobe=1000)
    best = opened.search(queries(20), budget="2x4", candidates="all", top_k=20)
    added = {f"d{row}" for row in range(2000, 2200)}
    from_scan = [sum(hit.id in added for result in r for hit in result.hits) for r in (found, best)]
    assert 0.8 * from_scan[1] <= from_scan[0] <= 1.2 * from_scan[1]
