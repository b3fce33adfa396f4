"""The calibration of an index: written with it, carried through changes, void after many."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from rematch_ray.errors import UserError
from rematch_ray.index import choice, store
from rematch_ray.index.build import build_index
from rematch_ray.index.calibration import Calibration
from rematch_ray.index.calibration_writer import publish_calibration
from rematch_ray.index.changes import add_documents, delete_documents, merge_segments
from rematch_ray.index.plan import Plan
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.sharding import changes as change_shards
from rematch_ray.index.sharding.build import build_sharded
from rematch_ray.index.sharding.sets import calibrate_set, changing
from rematch_ray.scoring.budget import Budget
from tests.index.made import GROUPS, queries, unit, write_embeddings
from tests.index.tables import row, table

CASCADE = row("4x8", 100, 0.97, 1.0, narrowing=[("2x4", 40)])
ROWS = (CASCADE, row("4x8", 200, 0.995, 3.0), row("4x8", None, 1.0, 9.0))
NAMES = [f"doc-{number:04d}" for number in range(300)]


def calibrate(path: Path) -> SearchIndex:
    index = SearchIndex.open(path)
    publish_calibration(path, table(*ROWS, standing=index.standing))
    return SearchIndex.open(path)


def is_void(path: Path) -> bool:
    void = SearchIndex.open(path).info()["calibration"]["void"]
    return void is not None


def more(tmp_path: Path, count: int, first: int) -> Path:
    ids = [f"doc-{number:04d}" for number in range(first, first + count)]
    return write_embeddings(
        tmp_path / f"more-{first}", unit((count, 8, 16), 7), unit((count, 24), 8), ids=ids
    )


def test_what_is_written_is_read_again() -> None:
    written = json.loads(json.dumps(table(*ROWS).to_json()))
    assert Calibration.from_json(written) == table(*ROWS)


def test_a_search_goes_by_it_and_says_what_to_expect(index: SearchIndex, tmp_path: Path) -> None:
    before = index.search(queries(3))
    assert all(result.expected_recall == 1.0 and result.exact for result in before)
    calibrated = calibrate(tmp_path / "index")
    assert calibrated.generation != index.generation
    for result in calibrated.search(queries(3), target_recall=0.9):
        assert result.expected_recall == 0.97
        assert [stage["name"] for stage in result.stages][1:-1] == ["coarse:first", "2x4", "4x8"]
        assert Plan.from_json(result.plan) == CASCADE.plan
        assert result.plan["chosen_by"] == "calibration: target_recall 0.9"
    for result in calibrated.search(queries(3)):
        assert (result.candidates, result.expected_recall) == (200, 0.995)


def test_the_generation_has_the_same_segments_and_hits(index: SearchIndex, tmp_path: Path) -> None:
    calibrated = calibrate(tmp_path / "index")
    assert calibrated.info()["segments"] == index.info()["segments"]
    for ours, theirs in zip(
        calibrated.search(queries(4), candidates="all"), index.search(queries(4), candidates="all")
    ):
        assert ours.hits == theirs.hits
    assert len(list((tmp_path / "index" / "segments").iterdir())) == 1


def test_a_filter_widens_and_promises_nothing(index: SearchIndex, tmp_path: Path) -> None:
    calibrated = calibrate(tmp_path / "index")
    # few pass: all are scored, which is more than was asked for
    for result in calibrated.search(queries(2), filter={"group": GROUPS[0]}):
        assert (result.scored, result.exact, result.expected_recall) == (100, True, 1.0)
    for result in calibrated.search(queries(2), filter={"group": GROUPS[0]}, max_ms=2.0):
        assert (result.exact, result.expected_recall) == (True, 1.0)
    halves = {"inner.half": True}
    for result in calibrated.search(queries(2), filter=halves, max_ms=2.0):
        assert (result.exact, result.expected_recall) == (False, None)
    for result in calibrated.search(queries(2), group_by="group", max_ms=2.0):
        assert result.expected_recall is None


def test_an_nprobe_that_was_not_measured_promises_nothing(
    make_index: Callable[..., SearchIndex], tmp_path: Path
) -> None:
    make_index(unit((900, 8, 16), 1), unit((900, 24), 2), coarse_kind="ivf")
    calibrated = calibrate(tmp_path / "made-index")
    for plan in (None, CASCADE.plan):
        [stored] = calibrated.search(queries(1), plan=plan)
        [fewer] = calibrated.search(queries(1), plan=plan, nprobe=1)
        assert stored.expected_recall is not None
        # where few documents are there all are scored, and no list is looked through
        assert fewer.expected_recall == (1.0 if fewer.exact else None)
    with pytest.raises(UserError, match="target_recall and nprobe cannot be given together"):
        calibrated.search(queries(1), target_recall=0.9, nprobe=1)


@pytest.mark.parametrize(("changed", "void"), [(59, False), (60, True)])
def test_deleting_a_fifth_makes_it_void(
    index: SearchIndex, tmp_path: Path, changed: int, void: bool
) -> None:
    path = tmp_path / "index"
    calibrate(path)
    for names in (NAMES[:30], NAMES[30:changed]):
        delete_documents(path, names)
    assert is_void(path) == void
    if void:
        with pytest.raises(UserError, match=r"60 documents changed.*rematch-ray doctor --index"):
            SearchIndex.open(path).search(queries(1), target_recall=0.9)


@pytest.mark.parametrize(("changed", "void"), [(59, False), (60, True)])
@pytest.mark.parametrize("first", [0, 1000], ids=["replacing", "adding"])
def test_adding_or_replacing_a_fifth_makes_it_void(
    index: SearchIndex, tmp_path: Path, changed: int, void: bool, first: int
) -> None:
    path = tmp_path / "index"
    calibrate(path)
    add_documents(path, more(tmp_path, changed, first))
    assert is_void(path) == void


def test_what_is_added_and_what_is_deleted_count_together(
    index: SearchIndex, tmp_path: Path
) -> None:
    path = tmp_path / "index"
    calibrate(path)
    add_documents(path, more(tmp_path, 30, 1000))
    delete_documents(path, NAMES[:29])
    merge_segments(path)
    assert not is_void(path)
    delete_documents(path, NAMES[29:30])
    assert is_void(path)
    # measured again it counts from there
    calibrate(path)
    assert not is_void(path)


def test_an_index_that_is_built_anew_has_none(
    index: SearchIndex, embeddings: Path, tmp_path: Path
) -> None:
    path = tmp_path / "index"
    measured = table(*ROWS, standing=calibrate(path).standing)
    build_index(embeddings, path)
    assert SearchIndex.open(path).info()["calibration"] is None
    with pytest.raises(UserError, match="built anew"):
        publish_calibration(path, measured)


def test_a_set_whose_shards_are_built_anew_has_none(embeddings: Path, tmp_path: Path) -> None:
    path = tmp_path / "set"
    build_sharded(embeddings, path, 2)
    calibrate(path)
    # nothing to build, and changes: kept
    build_sharded(embeddings, path, 2)
    change_shards.delete_documents(path, NAMES[:2])
    change_shards.merge_segments(path)
    assert not is_void(path)
    # the shards of which documents were deleted
    build_sharded(embeddings, path, 2)
    assert SearchIndex.open(path).info()["calibration"] is None
    calibrate(path)
    # all of them, one that was lost among them
    shutil.rmtree(path / "shard-00000-of-00002")
    build_sharded(embeddings, path, 2, coarse_keys=["first"])
    assert SearchIndex.open(path).info()["calibration"] is None


@pytest.mark.parametrize(
    "built",
    [{"ladder": ["1x1", "4x8"]}, {"coarse_keys": ["fused"], "coarse_kind": "flat"}],
    ids=["ladder", "coarse"],
)
def test_a_void_table_lends_no_plan_that_the_index_cannot_run(
    built: dict[str, Any], embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "EXHAUSTIVE_COST", 0)  # as of many documents
    best = row("4x8", 40, 0.999, 1.0, narrowing=[("2x4", 20)], coarse="first")
    path = tmp_path / "set"
    build_sharded(embeddings, path, 2)
    measured = table(best, standing=SearchIndex.open(path).standing)
    publish_calibration(path, measured)
    assert Plan.from_json(SearchIndex.open(path).search(queries(1))[0].plan) == best.plan
    build_sharded(embeddings, path, 2, **built)
    with changing(path) as held:  # a set as an earlier version left it
        calibrate_set(path, held, measured.to_json())
    assert is_void(path)
    index = SearchIndex.open(path)
    for asked in ({}, {"budget": "4x8"}, {"filter": {"group": GROUPS[0]}}):
        [result] = index.search(queries(1), **asked)
        assert set(result.plan["name"].split()) <= {"all", ">", *index._manifest.ladder}


def test_a_coarse_list_of_another_kind_makes_it_void(index: SearchIndex) -> None:
    before = table(*ROWS, standing=index.standing)
    lists = (*index.standing.coarse, "first:ivf")
    assert before.void(index.standing) is None
    assert "first:ivf" in str(before.void(replace(index.standing, coarse=lists)))


def test_what_was_measured_on_a_device_holds_there_alone(
    make_index: Callable[..., SearchIndex], tmp_path: Path
) -> None:
    # on a device a list of one-bit codes scans all 8-bit ones: its recall is not the CPU's
    make_index(unit((300, 8, 16), 1), unit((300, 24), 2), coarse_kind="scan1")
    path = tmp_path / "made-index"
    there = SearchIndex.open(path, device="cpu")
    publish_calibration(path, table(*ROWS, standing=there.standing))
    asked = {"plan": CASCADE.plan}
    [found] = SearchIndex.open(path, device="cpu").search(queries(1), **asked)
    assert found.expected_recall == 0.97
    here = SearchIndex.open(path)
    assert here.search(queries(1), **asked)[0].expected_recall is None
    with pytest.raises(UserError, match=r"measured on device 'cpu'.*run on the CPU's kernels"):
        here.search(queries(1), max_ms=9.0)
    calibrate(path)
    assert SearchIndex.open(path).search(queries(1), **asked)[0].expected_recall == 0.97
    assert "on device 'cpu'" in SearchIndex.open(path, device="cpu").info()["calibration"]["void"]


def test_a_table_that_names_no_device_was_measured_on_the_cpu(index: SearchIndex) -> None:
    written = table(*ROWS, standing=index.standing).to_json()
    del written["standing"]["device"]
    read = Calibration.from_json(written)
    assert read.standing == index.standing and read.void(index.standing) is None
    assert read.void(replace(index.standing, device="cuda")) is not None


def test_one_that_cannot_be_read_is_void_and_no_reason_not_to_search(
    index: SearchIndex, tmp_path: Path
) -> None:
    path = tmp_path / "index"
    calibrated = calibrate(path)
    file = path / "generations" / f"{calibrated.generation}.json"
    manifest = json.loads(file.read_text())
    del manifest["calibration"]["rows"][0]["plan"]
    file.write_text(json.dumps(manifest))
    broken = SearchIndex.open(path)
    assert len(broken.search(queries(1))[0].hits) == 10
    assert "cannot be read" in broken.info()["calibration"]["void"]
    with pytest.raises(UserError, match="measure it again"):
        broken.search(queries(1), target_recall=0.9)


def _die(moment: str, path: Path, calibration: Calibration) -> None:
    original: Callable[..., object] = getattr(store, moment)

    def killed(*arguments: object) -> None:
        if moment == "sweep" and not (path / "generations" / "generation-000002.json").exists():
            original(*arguments)  # the sweep before the work
            return
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(store, moment, killed)
    publish_calibration(path, calibration)


@pytest.mark.parametrize(
    ("moment", "published"), [("write_manifest", False), ("write_durably", False), ("sweep", True)]
)
def test_a_crash_leaves_the_generation_before_it_or_the_one_after(
    index: SearchIndex, tmp_path: Path, moment: str, published: bool
) -> None:
    path = tmp_path / "index"
    measured = table(*ROWS, standing=index.standing)
    process = get_context("fork").Process(target=_die, args=(moment, path, measured))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = SearchIndex.open(path)
    assert (left.generation != index.generation) == published
    assert (left.info()["calibration"] is not None) == published
    # the next writer goes on
    assert calibrate(path).info()["calibration"]["void"] is None


def test_a_second_writer_is_refused(index: SearchIndex, tmp_path: Path) -> None:
    path = tmp_path / "index"
    measured = table(*ROWS, standing=index.standing)
    with store.writing(path), pytest.raises(UserError, match="another process"):
        publish_calibration(path, measured)
    assert SearchIndex.open(path).generation == index.generation


def test_a_plan_of_another_ladder_is_refused(index: SearchIndex) -> None:
    with pytest.raises(UserError, match="16x64"):
        index.search(queries(1), plan=Plan(Budget(16, 64), None))
    with pytest.raises(UserError, match="coarse 'nothing'"):
        index.search(queries(1), plan=Plan(Budget(4, 8), 100, (), "nothing"))


def test_an_index_of_several_shards_keeps_its_calibration_with_the_set(
    embeddings: Path, tmp_path: Path
) -> None:
    path = tmp_path / "split"
    build_sharded(embeddings, path, 3)
    before = SearchIndex.open(path)
    calibrated = calibrate(path)
    assert calibrated.generation != before.generation
    [found] = calibrated.search(queries(1), target_recall=0.9)
    assert found.expected_recall == 0.97
    assert not is_void(path)
    change_shards.delete_documents(path, NAMES[:30])
    assert not is_void(path)
    change_shards.delete_documents(path, NAMES[30:90])
    assert is_void(path)
    build_sharded(more(tmp_path, 300, 0), path, 3)
    with pytest.raises(UserError, match="was built anew while it was measured"):
        publish_calibration(path, table(*ROWS, standing=before.standing))
