"""Payloads: ids and values are compared whole, and a field keeps its kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rematch_ray.errors import UserError
from rematch_ray.index.build import build_index
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.sharding.build import build_sharded
from rematch_ray.index.sharding.changes import (
    add_documents,
    delete_documents,
    merge_segments,
)
from rematch_ray.index.sharding.hashing import shard_of
from tests.index.made import queries, unit, write_embeddings

IDS = ["a", "a\0b", "a\0c", "\0", "b"]
NAMES = ["x", "x\0y", "\0", "x\0y", "z"]


def embeddings_of(path: Path, ids: list[str], names: list[str]) -> Path:
    return payloads_of(path, ids, [{"name": name} for name in names])


def payloads_of(path: Path, ids: list[str], payloads: list[dict[str, Any]]) -> Path:
    vectors, fused = unit((len(ids), 8, 16), 1), unit((len(ids), 24), 2)
    return write_embeddings(path, vectors, fused, ids=ids, payloads=payloads, num_shards=1)


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


def test_an_added_field_keeps_the_kind_that_the_index_holds(made: Path, tmp_path: Path) -> None:
    steps = iter(range(100))

    def add(document: str, **payload: Any) -> None:
        add_documents(made, payloads_of(tmp_path / f"add-{next(steps)}", [document], [payload]))

    def refused(document: str, says: str, **payload: Any) -> None:
        before = SearchIndex.open(made)
        with pytest.raises(UserError, match=f"add-.*: payload field {says}"):
            add(document, **payload)
        assert before.latest() is before

    refused("n", "'name' is a number, the index holds a text there", name=7)
    refused("n", "'name.first' crosses 'name'", name={"first": "x"})
    # what is null has no kind, and takes none away
    add("n0", name=None, inner=None)
    for name in ("n1", "n2"):  # of two shards, where there are any
        add(name, name="y", inner={"year": 1984}, tags=[])
    for name in ("n1", "n2"):
        refused(name, "'name' is a boolean", name=True)
        refused(name, "'inner.year' is a text", inner={"year": "1984"})
        refused(name, "'tags' is a text", tags="all")
        merge_segments(made)
    add("n3", inner={"year": 19.84}, tags=["all"])
    refused("n4", "'tags' is a list of numbers, the index holds a list of texts", tags=[1])
    assert SearchIndex.open(made).info()["fields"]["name"] == "string"


def test_a_new_field_has_its_kind_in_all_shards(tmp_path: Path) -> None:
    build_sharded(embeddings_of(tmp_path / "e", IDS, NAMES), tmp_path / "index", 2)
    one, other = (next(n for n in "pqrstu" if shard_of(n, 2) == number) for number in (0, 1))
    add_documents(tmp_path / "index", payloads_of(tmp_path / "one", [one], [{"year": 1}]))
    texts = payloads_of(tmp_path / "other", [other], [{"year": "one"}])
    with pytest.raises(UserError, match="payload field 'year' is a text"):
        add_documents(tmp_path / "index", texts)
