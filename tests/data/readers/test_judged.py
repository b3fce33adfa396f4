"""Queries of any layout are read whole or not at all; judgements from wherever they are."""

from pathlib import Path

import pytest

from rematch_ray.data.readers.judged import read_judgements, read_queries
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.schema import Item, items_to_table, write_parquet
from rematch_ray.errors import UserError
from tests.data.readers.layouts import write_rows


def test_of_a_data_set_the_queries_are_read_and_of_our_own_the_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "beir" / "corpus.jsonl", [{"_id": "d", "text": "document"}])
    write_rows(tmp_path / "beir" / "queries.jsonl", [{"_id": "q", "text": "query"}])
    [query] = read_queries(tmp_path / "beir", ReaderSettings())
    assert query.id == "q"
    write_parquet(items_to_table([Item.of("own", id="o")]), tmp_path / "own.parquet")
    [query] = read_queries(tmp_path / "own.parquet", ReaderSettings())
    assert query.id == "o"


def test_mmeb_eval_judges_itself(tmp_path: Path) -> None:
    row = {"qry_text": "q", "qry_img_path": "", "tgt_text": ["right", "wrong"]}
    path = write_rows(tmp_path / "Sub" / "test-00000-of-00001.parquet", [row])
    [query] = read_queries(path, ReaderSettings())
    lines = read_judgements(path).to_pylist()
    assert {line["query_id"] for line in lines} == {query.id}
    assert [line["score"] for line in lines] == [1.0, 0.0]


def test_a_query_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    rows = [{"_id": "q", "text": "query"}, {"_id": "p", "text": ""}]
    path = write_rows(tmp_path / "queries.jsonl", rows)
    with pytest.raises(UserError, match=r"queries\.jsonl, row 1: there is neither text nor image"):
        read_queries(path, ReaderSettings())
