"""MMEB-train: placeholders, paths below the image folder, negatives that may be missing."""

from pathlib import Path

import pytest

from rematch_ray.data.item import SchemaError
from rematch_ray.data.readers.files import look
from rematch_ray.data.readers.formats import detect, list_data
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.errors import UserError
from tests.data.readers.layouts import read, read_plain, spelled, write_image, write_rows
from tests.tiny import png

TASK = "<|image_1|>\nFind a picture like this: "


def row(number: int, **changes: object) -> dict:
    return {
        "qry": f"{TASK}number {number}",
        "qry_image_path": f"CIRR/q{number}.png",
        "pos_text": "<|image_1|>\nRepresent the picture.",
        "pos_image_path": "CIRR/shared.png",
        **changes,
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name, colour in (("q0", "red"), ("q1", "blue"), ("shared", "green")):
        write_image(tmp_path / "image" / "CIRR" / f"{name}.png", png(colour))
    return tmp_path / "image"


def test_a_row_becomes_interleaved_query_and_positive(tmp_path: Path, images: Path) -> None:
    write_rows(tmp_path / "CIRR" / "original-00000-of-00001.parquet", [row(0), row(1)])
    samples, errors = read(tmp_path / "CIRR", image_root=str(images), source="CIRR")
    assert not errors
    assert spelled(samples[1].query) == [png("blue"), "Find a picture like this: number 1"]
    [positive] = samples[1].positives
    assert spelled(positive.item) == [png("green"), "Represent the picture."]
    assert samples[1].negatives == ()
    assert [sample.source for sample in samples] == ["CIRR", "CIRR"]
    # a document that two queries share is known by its content
    assert samples[0].positives[0].item.id == positive.item.id
    assert samples[0].query.id != samples[1].query.id


def test_negatives_may_be_empty_one_or_many(tmp_path: Path, images: Path) -> None:
    one = [row(0, neg_text="a wrong caption", neg_image_path="")]
    none = [row(0, neg_text="", neg_image_path=""), row(0, neg_text=None, neg_image_path=None)]
    write_rows(tmp_path / "a" / "one.parquet", one + none)
    samples, _ = read(tmp_path / "a", image_root=str(images))
    assert [[spelled(n.item) for n in sample.negatives] for sample in samples] == [
        [["a wrong caption"]],
        [],
        [],
    ]
    many = [row(0, neg_text=["x", ""], neg_image_path=["", "CIRR/shared.png"])]
    write_rows(tmp_path / "b" / "many.parquet", many)
    [sample], _ = read(tmp_path / "b", image_root=str(images))
    assert [spelled(n.item) for n in sample.negatives] == [["x"], [png("green")]]


def test_bad_rows_say_what_is_wrong_and_leave_the_others(tmp_path: Path, images: Path) -> None:
    rows = [
        row(0),
        row(7),
        row(0, qry_image_path=""),
        row(0, pos_text="", pos_image_path=""),
        row(0, qry=f"{TASK}<|image_2|>"),
    ]
    write_rows(tmp_path / "CIRR.parquet", rows)
    samples, errors = read(tmp_path / "CIRR.parquet", image_root=str(images))
    assert len(samples) == 1
    missing, unfilled, empty, crowded = errors
    assert "CIRR/q7.png" in missing
    assert unfilled.startswith("the text has 1 placeholders for images and the row 0 images")
    assert empty == "there is neither text nor image"
    assert crowded.startswith("the text has 2 placeholders for images and the row 1 images")


def test_the_named_split_is_read_and_original_otherwise(tmp_path: Path, images: Path) -> None:
    for split, text in (("original", "plain"), ("diverse_instruction", "diverse")):
        changed = row(0, qry=text, qry_image_path="")
        write_rows(tmp_path / "CIRR" / f"{split}-00000-of-00001.parquet", [changed])
    folder = tmp_path / "CIRR"
    [plain], _ = read(folder, image_root=str(images))
    [diverse], _ = read(folder, image_root=str(images), split="diverse_instruction")
    assert (plain.query.text, diverse.query.text) == ("plain", "diverse")
    with pytest.raises(UserError, match="has no split 'orginal'; did you mean original"):
        list_data(folder, ReaderSettings(split="orginal"))


def test_large_row_groups_are_cut_into_counted_units(tmp_path: Path) -> None:
    rows = [row(n, qry=f"query {n}", qry_image_path="", pos_image_path="") for n in range(2300)]
    for entry in rows:
        entry["pos_text"] = "text"
    path = write_rows(tmp_path / "big.parquet", rows, row_group_size=2100)
    units = list_data(path)
    assert [unit.num_rows for unit in units] == [1000, 1000, 100, 200]
    assert [unit.first_row for unit in units] == [0, 1000, 2000, 2100]
    read_back = [entry["query"]["parts"][0]["text"] for entry in read_plain(path)]
    assert read_back == [entry["qry"] for entry in rows]


def test_a_missing_column_is_named_with_what_resembles_it(tmp_path: Path) -> None:
    changed = row(0)
    changed["pos_txt"] = changed.pop("pos_text")
    path = write_rows(tmp_path / "CIRR.parquet", [changed])
    with pytest.raises(SchemaError, match=r"CIRR\.parquet: no column 'pos_text'.*mean pos_txt\?"):
        list_data(path, ReaderSettings(format="mmeb"))


def test_the_layout_is_recognised(tmp_path: Path) -> None:
    write_rows(tmp_path / "CIRR" / "original-00000-of-00001.parquet", [row(0)])
    known, reason = detect(look(tmp_path))
    assert known.name == "mmeb"
    assert "qry_image_path" in reason
