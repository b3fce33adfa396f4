"""MMEB-eval: queries, a corpus of every target once, judgements with the other candidates."""

from pathlib import Path

import pytest

from rematch_ray.data.readers.files import look
from rematch_ray.data.readers.formats import detect, list_data
from rematch_ray.data.readers.mmeb_eval_files import read_qrels
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.errors import UserError
from tests.data.readers.layouts import read, spelled, write_image, write_rows
from tests.tiny import png

INSTRUCTION = "<|image_1|>\nFind the caption."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """V1: captions of a picture; V2: pictures with instructions, on both sides."""
    for name, colour in (("q", "red"), ("a", "blue"), ("b", "green")):
        write_image(tmp_path / "images" / "S" / f"{name}.png", png(colour))
    captions = [
        {
            "qry_text": f"{INSTRUCTION} {n}",
            "qry_img_path": "S/q.png",
            "tgt_text": [right, "a dog", "a cat"],
            "tgt_img_path": ["", "", ""],
        }
        for n, right in enumerate(("a cat", "a bird", "a dog"))
    ]
    write_rows(tmp_path / "MSCOCO_i2t" / "test-00000-of-00001.parquet", captions, row_group_size=2)
    pictures = [
        {
            "qry_inst": "Find a picture.",
            "qry_text": "in blue",
            "qry_img_path": "",
            "tgt_inst": "<|image_1|> Represent it.",
            "tgt_text": ["", "", "the dog"],
            "tgt_img_path": ["S/a.png", "S/b.png", "S/b.png"],
        }
    ]
    write_rows(tmp_path / "RefCOCO" / "test-00000-of-00001.parquet", pictures)
    return tmp_path


def test_queries_are_numbered_within_their_subset(folder: Path) -> None:
    assert detect(look(folder))[0].name == "mmeb-eval"
    queries, errors = read(folder, part="queries", image_root=str(folder / "images"))
    assert not errors
    assert [query.id for query in queries] == [
        "MSCOCO_i2t/0",
        "MSCOCO_i2t/1",
        "MSCOCO_i2t/2",
        "RefCOCO/0",
    ]
    assert spelled(queries[2]) == [png("red"), "Find the caption. 2"]
    assert spelled(queries[3]) == ["Find a picture. in blue"]
    assert [query.source for query in queries] == ["MSCOCO_i2t"] * 3 + ["RefCOCO"]


def test_every_target_is_in_the_corpus_once(folder: Path) -> None:
    documents, errors = read(folder, image_root=str(folder / "images"))
    assert not errors
    captions = [spelled(item) for item in documents if item.source == "MSCOCO_i2t"]
    assert captions == [["a cat"], ["a dog"], ["a bird"]]
    plain, _, crop = [item for item in documents if item.source == "RefCOCO"]
    assert plain.id == "RefCOCO/S/a.png"
    assert spelled(plain) == [png("blue"), "Represent it."]
    # one picture is two targets where the text differs
    assert spelled(crop) == [png("green"), "Represent it. the dog"]
    assert len({item.id for item in documents}) == len(documents) == 6


def test_judgements_name_the_right_one_and_the_other_candidates(folder: Path) -> None:
    lines = read_qrels(folder).to_pylist()
    documents, _ = read(folder, image_root=str(folder / "images"))
    names = {item.id: item.text for item in documents}
    assert {line["document_id"] for line in lines} == set(names)
    of_first = {
        names[line["document_id"]]: line["score"]
        for line in lines
        if line["query_id"] == "MSCOCO_i2t/0"
    }
    assert of_first == {"a cat": 1.0, "a dog": 0.0}
    assert sum(line["score"] for line in lines) == 4


def test_an_image_that_is_missing_spoils_its_item_alone(folder: Path) -> None:
    (folder / "images" / "S" / "a.png").unlink()
    documents, [error] = read(folder / "RefCOCO", image_root=str(folder / "images"))
    assert len(documents) == 2
    assert "S/a.png" in error


def test_a_corpus_larger_than_a_unit_is_cut(tmp_path: Path) -> None:
    rows = [
        {
            "qry_text": "q",
            "qry_img_path": "",
            "tgt_text": [f"target {n}" for n in range(k, k + 900)],
        }
        for k in (0, 600)
    ]
    path = write_rows(tmp_path / "Big.parquet", rows)
    assert [unit.num_rows for unit in list_data(path)] == [1000, 500]
    documents, _ = read(path)
    assert [item.text for item in documents] == [f"target {n}" for n in range(1500)]


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "S.parquet", [{"qry_text": "q", "qry_img_path": "", "tgt": "t"}])
    with pytest.raises(UserError, match="no column 'tgt_text', which format mmeb-eval needs"):
        list_data(path, ReaderSettings(format="mmeb-eval"))
