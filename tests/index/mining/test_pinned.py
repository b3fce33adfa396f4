"""A pinned state of an index is that state or a refusal, whatever is published meanwhile."""

import pickle
import shutil
from pathlib import Path

import pytest

from rematch_ray.errors import UserError
from rematch_ray.index.build import build_index
from rematch_ray.index.changes import add_documents, delete_documents
from rematch_ray.index.mining.pinned import IndexChangedError, PinnedIndex
from rematch_ray.index.sharding import changes as shard_changes
from rematch_ray.index.sharding.build import build_sharded
from tests.index.test_changes import embeddings_of

DOCUMENTS = {f"d{number}": number for number in range(12)}
GONE = r"has changed while it was read: .* is gone.* run the same command again"


@pytest.fixture(params=[1, 2], ids=["whole", "split"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    embeddings = embeddings_of(tmp_path / "embeddings", DOCUMENTS)
    if request.param == 1:
        build_index(embeddings, tmp_path / "index")
    else:
        build_sharded(embeddings, tmp_path / "index", request.param)
    return tmp_path / "index"


def delete(index: Path, name: str) -> None:
    changes = delete_documents if (index / "CURRENT").exists() else shard_changes.delete_documents
    changes(index, [name])


def test_it_opens_the_same_rows_after_a_change(index: Path) -> None:
    pinned = PinnedIndex.of(index)
    ids = pinned.open().ids()
    delete(index, "d1")
    asked = pickle.loads(pickle.dumps(pinned))
    assert asked == pinned != PinnedIndex.of(index)
    assert hash(asked) == hash(pinned)
    assert asked.open().ids() == ids
    assert asked.open().live.all()


def test_it_is_refused_by_name_once_its_files_are_gone(index: Path) -> None:
    pinned = PinnedIndex.of(index)
    held = pinned.open()
    # every shard is changed, more often than it keeps
    for name in list(DOCUMENTS)[:10]:
        delete(index, name)
    with pytest.raises(IndexChangedError, match=GONE) as told:
        pinned.open()
    assert "\n" not in str(told.value)
    assert held.live.all()


def test_an_index_that_is_built_anew_under_the_same_name_is_another(index: Path) -> None:
    pinned = PinnedIndex.of(index)
    is_whole = (index / "CURRENT").exists()
    shutil.rmtree(index)
    other = embeddings_of(index.parent / "others", {f"e{number}": number for number in range(12)})
    if is_whole:
        build_index(other, index)
    else:
        build_sharded(other, index, 2)
    assert PinnedIndex.of(index).name == pinned.name
    with pytest.raises(IndexChangedError, match=GONE):
        pinned.open()


def test_rows_that_only_grow_do_not_show(tmp_path: Path) -> None:
    build_index(embeddings_of(tmp_path / "embeddings", DOCUMENTS), tmp_path / "index")
    pinned = PinnedIndex.of(tmp_path / "index")
    add_documents(tmp_path / "index", embeddings_of(tmp_path / "more", {"new": 50}))
    assert pinned.open().rows == 12


def test_a_damaged_index_is_not_called_changed(index: Path) -> None:
    pinned = PinnedIndex.of(index)
    next(index.glob("**/payload.sqlite")).unlink()
    with pytest.raises(UserError, match="damaged") as told:
        pinned.open()
    assert not isinstance(told.value, IndexChangedError)
