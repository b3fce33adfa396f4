"""ms-swift: messages with <image> tags, images listed per conversation, labels of matches."""

from pathlib import Path

import pytest

from rematch_ray.data.readers.files import look
from rematch_ray.data.readers.formats import detect
from tests.data.readers.layouts import read, spelled, write_image, write_rows
from tests.tiny import png


def said(content: str, role: str = "user") -> dict:
    return {"role": role, "content": content}


def row(**changes: object) -> dict:
    return {"messages": [said("which")], "positive_messages": [[said("this")]], **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
        write_image(tmp_path / "images" / f"{name}.png", png(colour))
    return tmp_path


def test_messages_and_their_images_become_items(folder: Path) -> None:
    rich = row(
        messages=[said("Find it.", "system"), said("<image>like this")],
        images=["images/a.png"],
        positive_messages=[[said("<image>")]],
        positive_images=[["images/b.png"]],
        negative_messages=[[said("<image> or <image>")], [said("none"), said("of them")]],
        negative_images=[["images/c.png", "images/a.png"], []],
    )
    path = write_rows(folder / "train.jsonl", [rich, row()])
    assert detect(look(path))[0].name == "ms-swift"
    [shown, plain], errors = read(path)
    assert not errors
    assert shown.instruction == "Find it."
    assert spelled(shown.query) == [png("red"), "like this"]
    assert spelled(shown.positives[0].item) == [png("blue")]
    assert [spelled(negative.item) for negative in shown.negatives] == [
        [png("green"), "or", png("red")],
        ["none\nof them"],
    ]
    assert (plain.instruction, spelled(plain.query), plain.negatives) == (None, ["which"], ())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"messages": [said("<image><image>")], "images": ["images/a.png"]}, "2 placeholders"),
        ({"messages": [said("<image>")], "images": ["images/z.png"]}, "images/z.png"),
        ({"messages": [said("<image>")], "images": ["../secret.png"]}, "lies outside"),
        ({"label": 0}, "label 0 is not that of a match"),
        ({"videos": ["a.mp4"]}, "holds videos"),
        ({"positive_images": [[], []]}, "positive_images has 2 entries and positive_messages 1"),
        ({"positive_messages": []}, "no positive document"),
        ({"messages": "which"}, "messages is not a list of messages"),
        ({"messages": [said(7)]}, "content of a message is a int"),
        ({"positive_messages": 7}, "the row is not one of ms-swift: TypeError"),
    ],
)
def test_a_bad_row_says_what_is_wrong(folder: Path, changes: dict, reason: str) -> None:
    path = write_rows(folder / "train.jsonl", [row(), row(**changes)])
    good, [error] = read(path, format="ms-swift")
    assert len(good) == 1
    assert reason in error


def test_lines_that_are_not_json_are_bad_rows_and_empty_lines_none(folder: Path) -> None:
    path = write_rows(folder / "train.jsonl", [row()])
    path.write_text(path.read_text() + '\n{"messages": [\n\n7\n')
    good, errors = read(path)
    assert len(good) == 1
    assert errors[0].startswith("line 1: not JSON")
    assert errors[1] == "line 2: a int, not an object with fields"
