"""Tevatron: passages in the row, or ids of documents in a corpus; ids are kept either way."""

from pathlib import Path

import pytest

from rematch_ray.data.readers import corpus as corpora
from rematch_ray.data.readers.corpus import open_corpus
from rematch_ray.data.readers.files import look
from rematch_ray.data.readers.formats import detect, list_data
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.errors import UserError
from tests.data.readers.layouts import read, spelled, write_image, write_rows
from tests.tiny import png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    documents = [
        {"docid": f"d{n}", "title": "", "text": f"text {n}", "image": None, "video": None}
        for n in range(600)
    ]
    documents[1]["image"] = {"bytes": png("blue"), "path": None}
    documents[2] |= {"title": "Title"}
    write_rows(tmp_path / "corpus" / "train-00000-of-00001.parquet", documents, row_group_size=100)
    rows = [
        {
            "query_id": 7,
            "query_text": "which",
            "query_image": {"bytes": png("red"), "path": None},
            "positive_document_ids": ["d1"],
            "negative_document_ids": ["d2", "d599"],
        },
        {
            "query_id": 8,
            "query_text": "lost",
            "query_image": None,
            "positive_document_ids": ["nowhere"],
            "negative_document_ids": [],
        },
        {
            "query_id": 9,
            "query_text": "nothing",
            "query_image": None,
            "positive_document_ids": [],
            "negative_document_ids": ["d1"],
        },
    ]
    write_rows(tmp_path / "train.parquet", rows)
    return tmp_path


def settings(folder: Path, **changes: object) -> dict:
    return {"corpus": str(folder / "corpus"), "corpus_copy": str(folder / "copy"), **changes}


def test_documents_are_joined_by_their_ids(folder: Path) -> None:
    assert detect(look(folder / "train.parquet"))[0].name == "tevatron"
    [sample], errors = read(folder / "train.parquet", **settings(folder))
    assert errors == ["document 'nowhere' is not in the corpus", "there is no positive document"]
    assert sample.query.id == "7"
    assert spelled(sample.query) == [png("red"), "which"]
    [right] = sample.positives
    assert (right.item.id, spelled(right.item)) == ("d1", [png("blue"), "text 1"])
    assert [(wrong.item.id, *spelled(wrong.item)) for wrong in sample.negatives] == [
        ("d2", "Title text 2"),
        ("d599", "text 599"),
    ]


def test_negatives_beyond_the_limit_are_not_fetched(folder: Path) -> None:
    [sample], _ = read(folder / "train.parquet", **settings(folder, max_negatives=1))
    assert [wrong.item.id for wrong in sample.negatives] == ["d2"]


def test_the_corpus_is_copied_once_and_anew_when_it_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(
        corpora, "_write", lambda entry, path: (written.append(entry.name), write(entry, path))
    )
    for _ in range(2):
        open_corpus.cache_clear()
        found = open_corpus(str(folder / "corpus"), str(folder / "copy")).rows(["d3", "x", "d0"])
        assert {name: row["text"] for name, row in found.items()} == {
            "d3": "text 3",
            "d0": "text 0",
        }
    assert len(written) == 1
    before = list_data(folder / "train.parquet", ReaderSettings(**settings(folder)))
    write_rows(folder / "corpus" / "train-00000-of-00001.parquet", [{"docid": "d0", "text": "new"}])
    open_corpus.cache_clear()
    found = open_corpus(str(folder / "corpus"), str(folder / "copy")).rows(["d0", "d3"])
    assert {name: row["text"] for name, row in found.items()} == {"d0": "new"}
    after = list_data(folder / "train.parquet", ReaderSettings(**settings(folder)))
    assert before[0].stamp != after[0].stamp


write = corpora._write


def test_a_corpus_of_lines_has_its_images_beside_it(folder: Path) -> None:
    write_image(folder / "lines" / "img" / "a.png", png("green"))
    rows = [{"docid": "d1", "text": "seen", "image": "img/a.png"}, {"_id": "d2", "text": "two"}]
    write_rows(folder / "lines" / "corpus.jsonl", [*rows, {"id": 599, "text": "x"}])
    lines = {"corpus": str(folder / "lines"), "corpus_copy": str(folder / "copy")}
    samples, errors = read(folder / "train.parquet", **lines)
    assert not samples
    assert errors[0] == "document 'd599' is not in the corpus"
    [sample], _ = read(folder / "train.parquet", **lines, max_negatives=1)
    assert spelled(sample.positives[0].item) == [png("green"), "seen"]


def test_a_corpus_that_cannot_be_one_is_refused(folder: Path) -> None:
    data = folder / "train.parquet"
    with pytest.raises(UserError, match="format tevatron names documents by their ids"):
        list_data(data, ReaderSettings())
    write_rows(folder / "none" / "a.jsonl", [{"text": "no id"}])
    with pytest.raises(UserError, match=r"a\.jsonl: no column is the id; looked for _id, id"):
        list_data(data, ReaderSettings(corpus=str(folder / "none")))
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="there is none"):
        list_data(data, ReaderSettings(corpus=str(folder / "empty")))
    write_rows(folder / "twice" / "a.jsonl", [{"docid": "a", "text": "1"}] * 2)
    with pytest.raises(UserError, match=r"1 ids stand there more than once, .* rows 0 and 1"):
        open_corpus(str(folder / "twice"), str(folder / "copy"))
    (folder / "file").write_text("")
    with pytest.raises(UserError, match=r"file cannot be written: .*set corpus_copy"):
        open_corpus(str(folder / "corpus"), str(folder / "file"))


def test_legacy_passages_stand_in_the_row(tmp_path: Path) -> None:
    row = {
        "query_id": "q1",
        "query": "what",
        "positive_passages": [{"docid": "d1", "title": "Tea", "text": "A drink."}],
        "negative_passages": [{"docid": "d2", "title": "", "text": "A cup."}],
        "answers": ["tea"],
    }
    rows = [row, row | {"positive_passages": []}, row | {"positive_passages": [{"docid": "d"}]}]
    path = write_rows(tmp_path / "train.jsonl", [*rows, {"query": "q", "query_id": "x"}])
    assert detect(look(path))[0].name == "tevatron-legacy"
    [sample], errors = read(path)
    assert (sample.query.id, sample.query.text) == ("q1", "what")
    assert [(p.item.id, p.item.text) for p in sample.positives] == [("d1", "Tea A drink.")]
    assert [(n.item.id, n.item.text) for n in sample.negatives] == [("d2", "A cup.")]
    assert errors[:2] == ["there is no positive document", "there is neither text nor image"]
    assert "positive_passages" in errors[2]
