"""sentence-transformers: roles by order, cells of many kinds, a teacher's scores."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rematch_ray.data.item import SchemaError
from rematch_ray.data.readers.files import look
from rematch_ray.data.readers.formats import detect, list_data, read_links
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.schema import sample_from_row
from tests.data.readers.layouts import read, spelled, write_image, write_rows
from tests.tiny import png

TRIPLET = {"anchor": "a", "positive": "p", "negative_1": "x", "negative_2": "y"}


def test_the_first_column_asks_the_second_answers_the_others_are_wrong(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", [TRIPLET, TRIPLET | {"negative_2": None}])
    assert detect(look(path))[0].name == "sentence-transformers"
    [full, short], errors = read(path, source="pairs")
    assert not errors
    assert spelled(full.query) == ["a"]
    assert [spelled(entry.item) for entry in full.positives] == [["p"]]
    assert [spelled(entry.item) for entry in full.negatives] == [["x"], ["y"]]
    assert [spelled(entry.item) for entry in short.negatives] == [["x"]]
    assert full.source == "pairs"


def test_cells_may_be_images_paths_both_or_messages(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", png("red"))
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "see"}, {"image": "a.png"}]},
    ]
    rows = [
        {"query": "a.png", "positive": {"text": "words", "image": "a.png"}},
        {"query": messages, "positive": "not a path: a.png"},
    ]
    [first, second], errors = read(write_rows(tmp_path / "train.jsonl", rows))
    assert not errors
    assert spelled(first.query) == [png("red")]
    assert spelled(first.positives[0].item) == [png("red"), "words"]
    assert spelled(second.query) == ["see", png("red")]
    assert spelled(second.positives[0].item) == ["not a path: a.png"]


def test_paths_start_from_the_folder_of_their_file(tmp_path: Path) -> None:
    for part, colour in (("a", "red"), ("b", "blue")):
        write_image(tmp_path / part / "img" / "x.png", png(colour))
        row = {"anchor": "img/x.png", "positive": part}
        write_rows(tmp_path / part / "pairs.jsonl", [row, {"anchor": "../y.png", "positive": "z"}])
    samples, errors = read(tmp_path)
    assert [spelled(sample.query) for sample in samples] == [[png("red")], [png("blue")]]
    assert all("y.png" in error for error in errors)
    write_image(tmp_path / "root" / "img" / "x.png", png("green"))
    [sample, _], _ = read(tmp_path, image_root=str(tmp_path / "root"))
    assert spelled(sample.query) == [png("green")]


def test_images_of_the_hub_come_as_bytes(tmp_path: Path) -> None:
    cell = {"bytes": png("blue"), "path": "7.png"}
    rows = [{"query": "q", "image": cell, "negative_0": cell}]
    path = write_rows(tmp_path / "train-00000-of-00001.parquet", rows)
    [sample], _ = read(tmp_path)
    assert detect(look(path))[0].name == "sentence-transformers"
    assert spelled(sample.positives[0].item) == [png("blue")]
    assert spelled(sample.negatives[0].item) == [png("blue")]


def test_a_list_of_scores_is_a_teachers(tmp_path: Path) -> None:
    row = TRIPLET | {"scores": [0.9, 0.4, 0.1], "dataset_name": "kd"}
    rows = [row, row | {"negative_1": None}, row | {"negative_1": None, "scores": [0.9, 0.1]}]
    [full, short, shorter], _ = read(write_rows(tmp_path / "train.jsonl", rows))
    assert [negative.teacher_score for negative in full.negatives] == pytest.approx([0.4, 0.1])
    for sample in (short, shorter):
        assert [negative.teacher_score for negative in sample.negatives] == pytest.approx([0.1])


def test_every_row_has_the_roles_of_the_first(tmp_path: Path) -> None:
    turned = dict(reversed(TRIPLET.items())) | {"extra": "not a negative", "negative_3": "z"}
    samples, _ = read(write_rows(tmp_path / "train.jsonl", [TRIPLET, turned]))
    assert spelled(samples[0].query) == spelled(samples[1].query) == ["a"]
    assert [spelled(wrong.item) for wrong in samples[1].negatives] == [["x"], ["y"], ["z"]]


def test_ids_are_no_texts_and_roles_may_be_named(tmp_path: Path) -> None:
    row = {"id": "7", "hard": "x", "answer": "p", "query_id": "q7", "question": "a", "more": "y"}
    path = write_rows(tmp_path / "train.jsonl", [row])
    columns = "anchor=question,positive=answer,negative=hard+more"
    [sample], _ = read(path, columns=columns)
    assert spelled(sample.query) == ["a"]
    assert spelled(sample.positives[0].item) == ["p"]
    assert [spelled(negative.item) for negative in sample.negatives] == [["x"], ["y"]]
    [sample], _ = read(path)
    assert spelled(sample.query) == ["x"]  # by order, without ids
    named = {"format": "sentence-transformers"}
    with pytest.raises(SchemaError, match=r"train\.jsonl: no column 'qestion'.*mean question\?"):
        list_data(path, ReaderSettings(columns="anchor=qestion,positive=answer", **named))
    with pytest.raises(SchemaError, match="which column is the anchor and which the positive"):
        list_data(path, ReaderSettings(columns="negative=hard", **named))
    with pytest.raises(SchemaError, match="anchor is a role in training rows"):
        list_data(path, ReaderSettings(columns="anchor=hard", format="jsonl"))
    lonely = write_rows(tmp_path / "lonely.jsonl", [{"id": "1", "anchor": "a"}])
    with pytest.raises(SchemaError, match="an anchor and a positive are needed"):
        list_data(lonely, ReaderSettings(**named))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"anchor": "a", "positive": None}, "no positive document"),
        ({"anchor": "", "positive": "p"}, "neither text nor image"),
        ({"anchor": "a"}, "no positive document"),
        ({"anchor": "a", "positive": "p", "label": 1}, "column 'label' holds 1; allowed: a list"),
        ({"anchor": "a", "positive": "p", "scores": [1.0, 2.0]}, "a list of 1 teacher's scores"),
        ({"anchor": "a", "positive": {"audio": "a.wav"}}, "holds audio"),
        ({"anchor": "a", "positive": 7}, "an image is a int"),
        ({"anchor": "a", "positive": "none.png"}, "none.png"),
    ],
)
def test_a_bad_row_says_what_is_wrong(tmp_path: Path, row: dict, reason: str) -> None:
    path = write_rows(tmp_path / "train.jsonl", [TRIPLET, row])
    good, [error] = read(path)
    assert len(good) == 1
    assert reason in error


def test_a_row_that_python_cannot_hold_is_a_bad_row(tmp_path: Path) -> None:
    texts = pa.array([b"fine", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"query": texts, "positive": ["a", "b"]}), tmp_path / "train.parquet")
    found, errors = read(tmp_path)
    assert [sample.query.text for sample in found] == ["fine"]
    assert errors[0].startswith("row 1: column 'query' cannot be read: 'utf-8' codec")
    write_rows(tmp_path / "train.parquet", [TRIPLET, TRIPLET, TRIPLET], row_group_size=2)
    content = bytearray((tmp_path / "train.parquet").read_bytes())
    content[4:24] = b"\xff" * 20
    (tmp_path / "train.parquet").write_bytes(content)
    found, errors = read(tmp_path)
    assert (len(found), len(errors), len(set(errors))) == (1, 2, 2)


def test_brackets_without_end_are_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"query": "a", "positive": "b"}\n' + "[" * 100_000)
    found, errors = read(tmp_path)
    assert (len(found), len(errors)) == (1, 1)
    assert "line 1: not JSON" in errors[0]


@pytest.mark.parametrize("size", [10, 28_000])
def test_pieces_of_one_row_group_are_taken_in_any_order(tmp_path: Path, size: int) -> None:
    rows = [{"query": f"q{i}", "positive": "p" * size} for i in range(2_500)]
    write_rows(tmp_path / "train.parquet", rows, row_group_size=2_500, use_dictionary=False)
    units = list_data(tmp_path)
    for number in (2, 0, 1):
        table = pa.Table.from_batches(read_links(units[number]))
        first = sample_from_row(table.slice(0, 1).to_pylist()[0]).query
        assert (first.text, len(table)) == (f"q{1000 * number}", 500 if number == 2 else 1000)
