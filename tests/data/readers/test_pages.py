"""Pages as positives: ColPali's training set names them, VisRAG's does not."""

from pathlib import Path

from rematch_ray.data.readers.files import look
from rematch_ray.data.readers.formats import detect
from tests.data.readers.layouts import read, spelled, write_rows
from tests.tiny import png


def colpali(number: int, **changes: object) -> dict:
    return {
        "image": {"bytes": png("red"), "path": "x.png"},
        "image_filename": f"docs/{number}.png",
        "query": f"query {number}",
        "answer": "['an answer']",
        "source": "docvqa",
        "options": None,
        "page": "",
        "model": None,
        "prompt": "",
        "answer_type": None,
        **changes,
    }


def test_a_page_is_known_by_its_name(tmp_path: Path) -> None:
    rows = [colpali(0), colpali(1, image_filename="docs/0.png"), colpali(2)]
    path = write_rows(tmp_path / "data" / "train-00000-of-00001.parquet", rows, row_group_size=2)
    write_rows(tmp_path / "data" / "test-00000-of-00001.parquet", [colpali(9)])
    assert detect(look(path))[0].name == "pages"
    samples, errors = read(tmp_path)
    assert not errors
    assert [spelled(sample.query) for sample in samples] == [[f"query {n}"] for n in range(3)]
    assert [sample.positives[0].item.id for sample in samples] == [
        "docs/0.png",
        "docs/0.png",
        "docs/2.png",
    ]
    assert spelled(samples[0].positives[0].item) == [png("red")]
    assert samples[0].source == "docvqa"
    [held_out], _ = read(tmp_path, split="test")
    assert spelled(held_out.query) == ["query 9"]


def test_pages_without_a_name_are_known_by_their_bytes(tmp_path: Path) -> None:
    rows = [
        {"query": f"q{n}", "image": {"bytes": png(colour), "path": None}, "source": "ArxivQA"}
        for n, colour in enumerate(("red", "red", "blue"))
    ]
    path = write_rows(tmp_path / "visrag.parquet", rows)
    assert detect(look(path))[0].name == "pages"
    first, second, other = (sample.positives[0].item.id for sample in read(path)[0])
    assert first == second != other


def test_a_row_without_query_or_page_is_bad(tmp_path: Path) -> None:
    lost = {"bytes": None, "path": "lost.png"}
    rows = [colpali(0), colpali(1, query=None), colpali(2, image=lost), colpali(3, image=None)]
    good, errors = read(write_rows(tmp_path / "train.parquet", rows))
    assert len(good) == 1
    no_query, no_file, no_image = errors
    assert no_query == "there is neither text nor image"
    assert "lost.png" in no_file
    assert no_image.startswith("an image is empty")
