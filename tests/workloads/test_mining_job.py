"""An unfinished mining job goes on with what still holds, and with nothing of another index."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rematch_ray.data.item import Item
from rematch_ray.errors import UserError
from rematch_ray.index.build import build_index
from rematch_ray.index.changes import add_documents, delete_documents
from rematch_ray.index.mining.documents import write_items
from rematch_ray.index.mining.pinned import PinnedIndex
from rematch_ray.index.mining.references import ReferenceMaker
from rematch_ray.workloads.mining_galleries import _align
from rematch_ray.workloads.mining_job import Job, hold_workspace
from rematch_ray.workloads.mining_tasks import Workspace
from tests.index.test_changes import embeddings_of

JOB = Job(model="m", data="d", corpus="c", index="state 1", settings={"seed": 0})


def mined(workspace: Workspace) -> list[Path]:
    """What a run leaves: from the index, then not from it."""
    return [
        workspace.lines("items"),
        workspace.rows(0),
        workspace.counts(0),
        workspace.scan(0),
        workspace.queries(0),
        workspace.items(0),
    ]


def interrupted(out: Path) -> list[Path]:
    with hold_workspace(out, JOB) as workspace:
        left = mined(workspace)
        for file in left:
            file.write_text("left")
    return left


def test_the_same_job_goes_on_with_all_that_is_there(tmp_path: Path) -> None:
    left = interrupted(tmp_path / "out")
    with hold_workspace(tmp_path / "out", JOB):
        assert all(file.exists() for file in left)


def test_after_a_change_of_the_index_rows_are_mined_anew_and_the_rest_is_kept(
    tmp_path: Path,
) -> None:
    left = interrupted(tmp_path / "out")
    with hold_workspace(tmp_path / "out", replace(JOB, index="state 2")):
        assert [file.exists() for file in left] == [False] * 3 + [True] * 3
    with hold_workspace(tmp_path / "out", replace(JOB, index="state 2")):
        assert left[3].exists()


def test_another_job_is_refused_whatever_its_index(tmp_path: Path) -> None:
    left = interrupted(tmp_path / "out")
    other = replace(JOB, index="state 2", settings={"seed": 1})
    with (
        pytest.raises(UserError, match="was made with setting seed 0, asked for is 1"),
        hold_workspace(tmp_path / "out", other),
    ):
        pass
    assert all(file.exists() for file in left)


def test_lines_are_those_of_the_pinned_rows_and_a_deleted_document_may_be_unknown(
    tmp_path: Path,
) -> None:
    documents = {f"d{number}": number for number in range(6)}
    build_index(embeddings_of(tmp_path / "embeddings", documents), tmp_path / "index")
    delete_documents(tmp_path / "index", ["d0"])
    pinned = PinnedIndex.of(tmp_path / "index")
    add_documents(tmp_path / "index", embeddings_of(tmp_path / "more", {"new": 50}))
    items = [Item.of(f"text {name}", id=name) for name in documents if name != "d0"]
    workspace, make = Workspace(tmp_path), ReferenceMaker(10_000)
    workspace.items(0).parent.mkdir()
    write_items(workspace.items(0), [(item.id, item, make.of(item)) for item in items])
    _align(workspace, "items", pinned)
    lines = np.load(workspace.lines("items"))
    live = pinned.open().live
    named = [name for name, is_live in zip(pinned.open().ids(), live, strict=True) if is_live]
    assert [items[row].id for row in lines["row"][live]] == named
    assert len(lines) == 6
