"""NeMo: rows that name documents of a corpus, or hold their texts."""

import json
from pathlib import Path

import pytest

from rematch_ray.data.readers import files
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


@pytest.mark.parametrize(
    "named",
    [
        "../wiki",
        "wiki/../../wiki",
        "/etc",
        "s3://bucket/wiki",
        "s3://bucket?endpoint_override=127.0.0.1:1&scheme=http",
        "memory://bucket/wiki",
        "file:///etc",
        "link",
    ],
)
def test_a_corpus_that_the_data_names_lies_beside_it(folder: Path, monkeypatch, named: str) -> None:
    (folder / "inside").mkdir()
    (folder / "inside" / "link").symlink_to(folder / "wiki")
    asked = []
    monkeypatch.setattr(files, "_native", lambda *bucket: asked.append(bucket))
    row = {"question": "what", "pos_doc": [{"id": "d1"}]}
    path = write_json(folder / "inside" / "train.json", [{"path": named}], [row])
    with pytest.raises(UserError, match=r"names the corpus .* not lie below .* with `corpus`"):
        list_data(path)
    assert not asked
    # unless the user says so
    [sample], _ = read(path, corpus=str(folder / "wiki"), corpus_copy=str(folder / "copy"))
    assert sample.positives[0].item.text == "text 1"


@pytest.mark.parametrize("named", ["wiki", "./wiki/", "wiki?region=x/../wiki", "WHOLE/wiki"])
def test_a_corpus_below_the_folder_is_found(folder: Path, named: str) -> None:
    row = {"question": "what", "pos_doc": [{"id": "d1"}]}
    named = named.replace("WHOLE", str(folder))
    path = write_json(folder / "train.json", [{"path": named}], [row])
    assert len(read(path, corpus_copy=str(folder / "copy"))[0]) == 1
    beside = write_json(folder / "wiki" / "train.json", [{"path": "."}], [row])
    assert len(read(beside, corpus_copy=str(folder / "copy"))[0]) == 1


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
