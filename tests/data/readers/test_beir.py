"""Corpora and queries in BEIR's style: text, images, ids under any of their names."""

from pathlib import Path

import pytest

from rematch_ray.data.readers.files import look
from rematch_ray.data.readers.formats import detect, list_data
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.errors import UserError
from tests.data.readers.layouts import read, read_plain, spelled, write_rows
from tests.tiny import png


def test_beirs_folder_holds_corpus_and_queries(tmp_path: Path) -> None:
    corpus = [
        {"_id": "007", "title": "Tea", "text": "A drink.", "metadata": {}},
        {"_id": "d2", "title": "", "text": "Alone.", "metadata": {"url": "x"}},
    ]
    write_rows(tmp_path / "corpus.jsonl", corpus)
    write_rows(tmp_path / "queries.jsonl", [{"_id": "q1", "text": "what?", "metadata": {}}])
    write_rows(tmp_path / "other.jsonl", [{"a": 1}])
    assert detect(look(tmp_path))[0].name == "beir"
    documents, errors = read(tmp_path, source="scifact")
    assert not errors
    assert [(item.id, item.text, item.source) for item in documents] == [
        ("007", "Tea A drink.", "scifact"),
        ("d2", "Alone.", "scifact"),
    ]
    [query], _ = read(tmp_path, part="queries")
    assert (query.id, query.text) == ("q1", "what?")
    # a file stands for itself
    [query], _ = read(tmp_path / "queries.jsonl")
    assert query.id == "q1"


def test_vidore_numbers_its_pages(tmp_path: Path) -> None:
    pages = [
        {"corpus-id": n, "image": {"bytes": png(colour), "path": "p.png"}, "doc-id": "report"}
        for n, colour in enumerate(("red", "blue"))
    ]
    queries = [{"query-id": 5, "query": "blue?", "language": "english", "answer": "no"}]
    write_rows(tmp_path / "corpus" / "test-00000-of-00001.parquet", pages)
    write_rows(tmp_path / "queries" / "test-00000-of-00001.parquet", queries)
    judged = [{"query-id": 5, "corpus-id": 1, "score": 1}]
    write_rows(tmp_path / "qrels" / "test-00000-of-00001.parquet", judged)
    assert detect(look(tmp_path))[0].name == "beir"
    found, _ = read(tmp_path)
    assert [(item.id, *spelled(item)) for item in found] == [("0", png("red")), ("1", png("blue"))]
    [query], _ = read(tmp_path, part="queries")
    assert (query.id, query.text) == ("5", "blue?")


def test_mteb_puts_the_instruction_beside_the_query(tmp_path: Path) -> None:
    rows = [{"id": "q", "text": "which", "instruction": "only blue ones"}]
    path = write_rows(tmp_path / "queries.parquet", rows)
    [query], _ = read(path, format="beir")
    assert query.text == "which only blue ones"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"_id": "", "text": "a"}, "there is no id"),
        ({"_id": "d", "text": ""}, "neither text nor image"),
        ({"_id": "d", "text": ["a"]}, "the row is not one of beir: TypeError"),
        ({"_id": "d", "text": "a", "video": "a.mp4"}, "'video' is given"),
        ({"_id": "d", "image": "none.png"}, "none.png"),
    ],
)
def test_a_bad_row_says_what_is_wrong(tmp_path: Path, row: dict, reason: str) -> None:
    path = write_rows(tmp_path / "corpus.jsonl", [{"_id": "a", "text": "b"}, row])
    good, [error] = read(path)
    assert len(good) == 1
    assert reason in error
    # what is put aside is known by its id
    assert read_plain(path)[1]["id"] == (row["_id"] or None)


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "corpus" / "test-00000-of-00001.parquet", [{"_id": "a", "text": "b"}])
    with pytest.raises(UserError, match="has no split 'dev'; allowed: test"):
        list_data(tmp_path, ReaderSettings(split="dev"))
