"""NeMo: rows that name documents of a corpus, or hold their texts."""

import json
from pathlib import Path

import pytest

from rematch_ray.data.readers.files import look
from rematch_ray.data.readers.formats import detect, list_data
from rematch_ray.errors import UserError
from tests.data.readers.layouts import read, spelled, write_rows


def write_json(path: Path, corpus: object, rows: list) -> Path:
    path.write_text(json.dumps({"corpus": corpus, "data": rows}))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    documents = [{"id": f"d{n}", "text": f"text {n}"} for n in range(5)]
    write_rows(tmp_path / "wiki" / "part.parquet", documents)
    (tmp_path / "wiki" / "merlin_metadata.json").write_text('{"class": "x", "corpus_id": "wiki"}')
    return tmp_path


def test_rows_name_documents_of_the_corpus_beside_them(folder: Path) -> None:
    row = {
        "question_id": "q1",
        "question": "what",
        "corpus_id": "wiki",
        "pos_doc": [{"id": "d1"}],
        "neg_doc": [{"id": "d2"}, "d3"],
    }
    bad = [row | {"pos_doc": [{"id": "none"}]}, row | {"pos_doc": [{}]}, row | {"question": ""}]
    path = write_json(folder / "train.json", [{"path": "wiki"}], [row, *bad, 7])
    assert detect(look(path))[0].name == "nemo"
    [sample], errors = read(path, corpus_copy=str(folder / "copy"))
    assert (sample.query.id, spelled(sample.query)) == ("q1", ["what"])
    assert [(p.item.id, p.item.text) for p in sample.positives] == [("d1", "text 1")]
    assert [n.item.id for n in sample.negatives] == ["d2", "d3"]
    assert errors[:3] == [
        "document 'none' is not in the corpus",
        "a document has no id",
        "there is neither text nor image",
    ]
    assert errors[3].startswith("the row is not one of nemo: TypeError")


def test_what_cannot_be_read_is_refused(folder: Path) -> None:
    two = write_json(folder / "two.json", [{"path": "wiki"}, {"path": "more"}], [])
    with pytest.raises(UserError, match="names 2 corpora; one is read for a source"):
        list_data(two)
    lost = write_json(folder / "lost.json", {"path": "gone"}, [{"question": "q", "pos_doc": []}])
    with pytest.raises(UserError, match="gone: no such file or folder"):
        list_data(lost)
    empty = write_json(folder / "empty.json", {"path": "wiki"}, [])
    with pytest.raises(UserError, match="no rows in"):
        list_data(empty)


def test_inline_rows_hold_their_texts(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "pos_doc": "right", "neg_doc": ["wrong", {"id": "d", "text": "too"}]},
        {"question": "p", "pos_doc": ["right"]},
        {"question": "p", "pos_doc": []},
    ]
    path = write_rows(tmp_path / "train.jsonl", rows)
    assert detect(look(path))[0].name == "nemo-inline"
    [first, second], [error] = read(path)
    assert [spelled(n.item) for n in first.negatives] == [["wrong"], ["too"]]
    assert first.negatives[1].item.id == "d"
    assert (second.query.text, second.positives[0].item.text) == ("p", "right")
    assert error == "there is no positive document"
