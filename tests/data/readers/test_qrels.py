"""Judgements are read from every layout they come in, and bad ones are refused by name."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rematch_ray.data.readers.qrels import read_qrels
from rematch_ray.data.schema import QRELS_SCHEMA
from rematch_ray.errors import UserError

LINES = [("007", "d 1", 1.0), ("007", "d2", 0.0), ("8", "d2", 2.0)]


def rows(path: Path, **options: str) -> list[tuple[str, str, float]]:
    table = read_qrels(path, **options)
    assert table.schema == QRELS_SCHEMA
    return [tuple(row.values()) for row in table.to_pylist()]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("test.tsv", "query-id\tcorpus-id\tscore\n007\td 1\t1\n007\td2\t0\n8\td2\t2\n"),
        ("test.tsv", "007\td 1\t1\n007\td2\t0\n8\td2\t2\n"),
        ("qrels.trec", "007\t0\td 1\t1\n007\t0\td2\t0\n8\t0\td2\t2\n"),
        (
            "test.jsonl",
            '{"query-id": "007", "corpus-id": "d 1", "score": 1}\n'
            '{"query-id": "007", "corpus-id": "d2", "score": 0}\n'
            '{"query-id": "8", "corpus-id": "d2", "score": 2}\n',
        ),
    ],
)
def test_text_layouts_keep_ids_as_they_stand(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert rows(tmp_path / name) == LINES


def test_parquet_of_vidore_has_numbers_for_ids(tmp_path: Path) -> None:
    table = {"query-id": [1, 1], "corpus-id": [10, 11], "score": [1, 0], "content_type": ["t", "t"]}
    pq.write_table(pa.table(table), tmp_path / "test-00000-of-00001.parquet")
    assert rows(tmp_path) == [("1", "10", 1.0), ("1", "11", 0.0)]


def test_of_several_splits_the_test_split_or_the_named_one_is_read(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / "qrels").mkdir(exist_ok=True)
        text = f"query-id\tcorpus-id\tscore\n{split}\td\t1\n"
        (tmp_path / "qrels" / f"{split}.tsv").write_text(text)
    assert rows(tmp_path) == [("test", "d", 1.0)]
    assert rows(tmp_path, split="dev") == [("dev", "d", 1.0)]
    with pytest.raises(UserError, match=r"no qrels of split 'validation'; found: dev\.tsv"):
        read_qrels(tmp_path, split="validation")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("query-id\tdocument\tscore\nq\td\t1\n", r"no column 'document_id' \(or corpus-id"),
        ("query-id\tcorpus-id\tscore\nq\td\thigh\n", "column 'score'"),
        ("just one\n", "first line has 2 columns"),
    ],
)
def test_what_is_no_table_of_judgements_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "bad.tsv").write_text(text)
    with pytest.raises(UserError, match=rf"bad\.tsv.*{reason}"):
        read_qrels(tmp_path / "bad.tsv")


def test_a_row_without_an_id_is_named(tmp_path: Path) -> None:
    table = {"query_id": ["q", None], "document_id": ["d", "d"], "score": [1.0, 1.0]}
    pq.write_table(pa.table(table), tmp_path / "qrels.parquet")
    with pytest.raises(UserError, match="row 1 has no query_id"):
        read_qrels(tmp_path / "qrels.parquet")
    with pytest.raises(UserError, match=r"none\.tsv cannot be read as qrels: no such file"):
        read_qrels(tmp_path / "none.tsv")
