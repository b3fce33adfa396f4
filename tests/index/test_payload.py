"""Ids and payload values that differ only behind a NUL character are different ones."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rematch_ray.index.build import build_index
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.sharding.build import build_sharded
from rematch_ray.index.sharding.changes import add_documents, delete_documents
from tests.index.made import queries, unit, write_embeddings

IDS = ["a", "a\0b", "a\0c", "\0", "b"]
NAMES = ["x", "x\0y", "\0", "x\0y", "z"]


def embeddings_of(path: Path, ids: list[str], names: list[str]) -> Path:
    vectors, fused = unit((len(ids), 8, 16), 1), unit((len(ids), 24), 2)
    return write_embeddings(path, vectors, fused, ids=ids, payloads=[{"name": n} for n in names])


@pytest.fixture(params=[None, 2])
def made(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """An index of IDS, whole and split into two shards."""
    folder, index = embeddings_of(tmp_path / "embeddings", IDS, NAMES), tmp_path / "index"
    if request.param is None:
        build_index(folder, index)
    else:
        build_sharded(folder, index, request.param)
    return index


@pytest.fixture
def found(made: Path) -> Callable[..., set[str]]:
    """Ids of the documents that pass a filter."""

    def find(**filter: object) -> set[str]:
        [result] = SearchIndex.open(made).search(queries(1), top_k=10, filter=filter or None)
        return {hit.id for hit in result.hits}

    return find


@pytest.mark.parametrize("name", IDS)
def test_only_the_document_of_that_very_id_is_deleted(
    made: Path, found: Callable[..., set[str]], name: str
) -> None:
    assert found() == set(IDS)
    change = delete_documents(made, [name, "a\0", "b\0"])
    assert (change.deleted, change.unknown) == (1, 2)
    assert found() == set(IDS) - {name}


def test_only_the_document_of_that_very_id_is_replaced(
    made: Path, found: Callable[..., set[str]], tmp_path: Path
) -> None:
    change = add_documents(made, embeddings_of(tmp_path / "more", ["a\0b", "a\0d"], ["new"] * 2))
    assert (change.added, change.replaced) == (1, 1)
    assert found() == {*IDS, "a\0d"}
    assert found(name="new") == {"a\0b", "a\0d"}


def test_filters_compare_whole_texts(found: Callable[..., set[str]]) -> None:
    for name in set(NAMES):
        assert found(name=name) == {i for i, held in zip(IDS, NAMES, strict=True) if held == name}
    assert found(name=["x\0y", "z", "x\0"]) == {"a\0b", "\0", "b"}
    assert found(id=["a\0c", "b"]) == {"a\0c", "b"}
    assert found(id="a") == {"a"}
