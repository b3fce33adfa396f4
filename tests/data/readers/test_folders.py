"""Image folders: captions beside images or in a table, and folders that are not as they should."""

import json
import pickle
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from rematch_ray.data.item import SchemaError
from rematch_ray.data.readers.files import look
from rematch_ray.data.readers.formats import detect, list_data
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import fingerprint
from rematch_ray.errors import UserError
from tests.data.readers.corpora import errors, good, read_items, texts, write_lines
from tests.tiny import png

RED, BLUE = png("red"), png("blue")


def write(folder: Path, **files: bytes | str | dict) -> None:
    """Files by name, `__` for a folder and `_` for the dot."""
    for spelled, content in files.items():
        path = folder / spelled.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_an_image_is_a_row_known_by_its_path(tmp_path: Path) -> None:
    write(tmp_path, b_JPG=BLUE, cats__a_png=RED, cats__note_doc="", README_md="")
    assert detect(look(tmp_path))[0].name == "images"
    rows = read_items(tmp_path, source="pets")
    assert [(r["id"], r["source"], texts(r)) for r in rows] == [
        ("b.JPG", "pets", [BLUE]),
        ("cats/a.png", "pets", [RED]),
    ]
    assert rows[1]["parts"][0]["uri"] == "cats/a.png"
    assert "payload" not in rows[1]


def test_captions_lie_beside_their_images(tmp_path: Path) -> None:
    write(tmp_path, a_png=RED, a_txt="\ufeffa red square\n", b_png=BLUE, c_png=RED)
    write(tmp_path, b_json={"caption": "blue", "year": 7, "tags": ["x"]}, other_txt="nobody's")
    rows = read_items(tmp_path)
    assert [texts(r) for r in rows] == [[RED, "a red square"], [BLUE], [RED]]
    write(tmp_path, a_txt="", c_json={"year": "late"})
    (tmp_path / "a.txt").unlink()
    rows = read_items(tmp_path)
    assert [texts(r) for r in rows] == [[RED], [BLUE, "blue"], [RED]]
    assert rows[1]["payload"]["tags"] == '["x"]'
    assert [r["payload"]["year"] for r in rows] == [None, "7", "late"]


def test_a_kind_of_caption_that_few_images_have_is_read(tmp_path: Path) -> None:
    write(tmp_path, **{f"i{n:03}_png": RED for n in range(200)})
    write(tmp_path, **{f"i{n:03}_json": {"n": n} for n in range(200) if n != 101})
    write(tmp_path, i101_txt="only one")
    rows = read_items(tmp_path)
    assert [texts(r)[1:] for r in rows if len(texts(r)) > 1] == [["only one"]]


def test_a_caption_that_comes_late_in_a_table_is_read(tmp_path: Path) -> None:
    write(tmp_path, a_png=RED)
    lines: list[dict] = [{"file_name": "a.png", "about": "x" * 500} for _ in range(2500)]
    lines += [{"file_name": "a.png", "caption": "c"}, {"file_name": "a.png", "text": "t"}]
    write_lines(tmp_path / "metadata.jsonl", lines)
    rows = read_items(tmp_path)
    assert [texts(r)[1:] for r in rows[-3:]] == [[], ["c"], ["t"]]


def test_json_fields_can_be_the_id_and_the_text(tmp_path: Path) -> None:
    write(tmp_path, a_png=RED, a_json={"uid": 12, "title": "t", "caption": "c"})
    [row] = read_items(tmp_path, columns="text=title,id=uid")
    assert (row["id"], texts(row)) == ("12", [RED, "t"])
    assert row["payload"] == {"caption": "c", "file_name": "a.png", "other_fields": None}
    with pytest.raises(SchemaError, match="no column 'headline' for text"):
        list_data(tmp_path, ReaderSettings(columns="text=headline"))


def test_files_that_cannot_be_read_are_rows_with_reasons(tmp_path: Path) -> None:
    write(tmp_path, a_png=RED, b_png=b"", c_png=RED, c_txt=b"\xff\xfe", d_png=RED, d_json="{")
    write(tmp_path, e_png=RED)
    units = list_data(tmp_path)
    assert sum(unit.num_rows or 0 for unit in units) == 5
    rows = read_items(tmp_path)
    assert [r["id"] for r in good(rows)] == ["a.png", "e.png"]
    assert [r["id"] for r in rows] == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    empty, words, broken = errors(rows)
    assert "b.png: its png file is empty" in empty
    assert "c.png: its txt file is not UTF-8" in words
    assert "d.png, its json file: not JSON" in broken


def test_an_image_that_went_away_is_a_row_with_a_reason(tmp_path: Path) -> None:
    from rematch_ray.data.readers.formats import read_data

    write(tmp_path, a_png=RED, b_png=RED)
    [unit] = list_data(tmp_path)
    (tmp_path / "a.png").unlink()
    rows = [row for batch in read_data(unit) for row in batch.to_pylist()]
    assert "a.png: cannot be opened" in rows[0]["error"]
    assert rows[1]["error"] is None


def test_pieces_are_bounded_in_files_and_bytes(tmp_path: Path) -> None:
    write(tmp_path, **{f"i{n}_png": RED for n in range(7)})
    assert [u.num_rows for u in list_data(tmp_path, ReaderSettings(unit_files=3))] == [3, 3, 1]
    small = ReaderSettings(unit_bytes=2 * len(RED))
    assert [u.num_rows for u in list_data(tmp_path, small)] == [2, 2, 2, 1]
    assert [r["id"] for r in read_items(tmp_path, unit_files=3)] == [f"i{n}.png" for n in range(7)]


def test_a_changed_file_or_caption_is_another_corpus(tmp_path: Path) -> None:
    write(tmp_path, a_png=RED, a_txt="red")
    before = fingerprint(list_data(tmp_path))
    assert fingerprint(list_data(tmp_path)) == before
    write(tmp_path, a_txt="rouge")
    assert fingerprint(list_data(tmp_path)) != before


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_the_rows_of_a_table_are_the_rows(tmp_path: Path, kind: str) -> None:
    write(tmp_path, train__a_png=RED, train__sub__b_png=BLUE, test__a_png=BLUE, test__z_png=RED)
    lines = [
        {"file_name": "a.png", "caption": "one, red", "label": 3},
        {"file_name": "sub/b.png", "caption": "two", "label": 4},
    ]
    for split, rows in (("test", lines[:1]), ("train", lines)):
        if kind == "jsonl":
            write_lines(tmp_path / split / "metadata.jsonl", rows)
        else:
            cells = "".join(f'{r["file_name"]},"{r["caption"]}",{r["label"]}\n' for r in rows)
            (tmp_path / split / "metadata.csv").write_text(f"file_name,caption,label\n{cells}")
    rows = read_items(tmp_path)
    assert [(r["id"], texts(r), r["payload"]["label"]) for r in rows] == [
        ("test/a.png", [BLUE, "one, red"], 3),
        ("train/a.png", [RED, "one, red"], 3),
        ("train/sub/b.png", [BLUE, "two"], 4),
    ]
    assert len(list_data(tmp_path, ReaderSettings(unit_files=1))) >= 3


def test_a_table_may_name_what_is_not_there_or_outside(tmp_path: Path) -> None:
    write(tmp_path, pets__a_png=RED, secret_png=BLUE)
    names = ["a.png", "gone.png", "../secret.png", ""]
    write_lines(tmp_path / "pets" / "metadata.jsonl", [{"file_name": name} for name in names])
    rows = read_items(tmp_path / "pets")
    assert [r["id"] for r in good(rows)] == ["a.png"]
    gone, outside, nothing = errors(rows)
    assert "cannot be opened" in gone
    assert "lies outside" in outside
    assert "neither text nor image" in nothing


def test_a_table_without_file_names_is_refused(tmp_path: Path) -> None:
    write(tmp_path, a_png=RED, metadata_csv="filename,text\na.png,x\n")
    with pytest.raises(SchemaError, match=r"no column 'file_name' for image; did you mean filenam"):
        list_data(tmp_path)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path, a_md="", b_exe="")
    with pytest.raises(UserError, match=r"not recognised. Found: a\.md, b\.exe\. Name the format"):
        list_data(tmp_path)
    with pytest.raises(UserError, match="no image file"):
        list_data(tmp_path, ReaderSettings(format="images"))


def test_images_that_a_table_refers_to_are_not_the_rows(tmp_path: Path) -> None:
    write(tmp_path, pictures__a_png=RED)
    write_lines(tmp_path / "rows.jsonl", [{"id": "x", "image": "pictures/a.png"}])
    assert [(r["id"], texts(r)) for r in read_items(tmp_path)] == [("x", [RED])]


def test_one_image_is_a_corpus(tmp_path: Path) -> None:
    write(tmp_path, a_png=RED)
    assert [r["id"] for r in read_items(tmp_path / "a.png")] == ["a.png"]


def test_listing_holds_few_bytes_for_an_image(tmp_path: Path) -> None:
    images, sidecars, folders = 12_000, 2000, 20
    for folder in range(folders):
        (tmp_path / f"{folder}").mkdir()
    for number in range(images):
        path = tmp_path / f"{number % folders}" / f"image-{number:08}.jpg"
        path.touch()
        if number < sidecars:
            path.with_suffix(".txt").touch()
    list_data(tmp_path)  # what is imported, and caches
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        units = list_data(tmp_path)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(unit.num_rows or 0 for unit in units) == images
    assert pa.total_allocated_bytes() == before
    assert len(pickle.dumps(units)) < 40 * images
    assert held < 60 * images
    # folders are listed one by one, at a hundred bytes for each of their files
    assert peak < 150 * images


def test_what_lies_beside_an_image_has_its_name_exactly(tmp_path: Path) -> None:
    write(tmp_path, a_b_PNG=RED, a_png=BLUE, c_png=RED, d__e_jpg=RED)
    for name in ("a.b.txt", "a.TXT", "c.json", "d/e.txt", "d.txt"):
        (tmp_path / name).write_text("{}" if name.endswith("json") else name)
    rows = read_items(tmp_path)
    assert [(r["id"], [part["text"] for part in r["parts"][1:]]) for r in rows] == [
        ("a.b.PNG", ["a.b.txt"]),
        ("a.png", []),
        ("c.png", []),
        ("d/e.jpg", ["d/e.txt"]),
    ]
    before = fingerprint(list_data(tmp_path))
    (tmp_path / "a.txt").write_text("late")
    assert fingerprint(list_data(tmp_path)) != before
