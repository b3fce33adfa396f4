"""PDF files: a row a page, its text, the size it is drawn at, and files that cannot be opened."""

import io
from pathlib import Path

import pytest
from PIL import Image

from rematch_ray.data.readers import pdf as pdf_reader
from rematch_ray.data.readers.files import look
from rematch_ray.data.readers.formats import detect, list_data
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.errors import UserError
from tests.data.readers.corpora import errors, good, read_items
from tests.data.readers.pdfs import pdf

pytest.importorskip("pypdfium2")


def drawn(row: dict) -> Image.Image:
    [part] = row["parts"]
    return Image.open(io.BytesIO(part["image"]))


def test_a_page_is_a_row_with_its_text_and_file(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "a.PDF").write_bytes(pdf(["first page", "second page"]))
    (tmp_path / "b.pdf").write_bytes(pdf(["other file"]))
    assert detect(look(tmp_path))[0].name == "pdf"
    rows = read_items(tmp_path, source="reports")
    assert [(r["id"], r["parent_id"]) for r in rows] == [
        ("b.pdf#page=1", "b.pdf"),
        ("reports/a.PDF#page=1", "reports/a.PDF"),
        ("reports/a.PDF#page=2", "reports/a.PDF"),
    ]
    assert rows[2]["payload"] == {
        "file": "reports/a.PDF",
        "page": 2,
        "num_pages": 2,
        "text": "second page",
    }
    # 200 x 100 points at 144 dots per inch
    assert drawn(rows[0]).size == (400, 200)
    assert drawn(rows[0]).convert("L").getextrema() == (0, 255)


def test_resolution_is_set_and_capped(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(["x"]))
    assert drawn(read_items(tmp_path, pdf_dpi=72)[0]).size == (200, 100)
    width, height = drawn(read_items(tmp_path, pdf_pixels=5000)[0]).size
    assert 4900 <= width * height <= 5200
    (tmp_path / "a.pdf").write_bytes(pdf(["x"], box="0 0 14400 14400"))
    width, height = drawn(read_items(tmp_path, pdf_pixels=10_000)[0]).size
    assert width * height <= 10_300


def test_files_that_cannot_be_opened_are_rows_with_reasons(tmp_path: Path) -> None:
    encrypted = pdf(["x"], trailer="/Encrypt 4 0 R /ID [<00> <00>]")
    (tmp_path / "encrypted.pdf").write_bytes(encrypted)
    (tmp_path / "broken.pdf").write_bytes(pdf(["x"])[:60])
    (tmp_path / "empty.pdf").write_bytes(b"")
    (tmp_path / "none.pdf").write_bytes(pdf([]))
    (tmp_path / "text.pdf").write_text("no PDF")
    (tmp_path / "good.pdf").write_bytes(pdf(["x"]))
    rows = read_items(tmp_path)
    assert [r["id"] for r in good(rows)] == ["good.pdf#page=1"]
    reasons = errors(rows)
    assert [r["id"] for r in rows if r["error"]] == [
        "broken.pdf", "empty.pdf", "encrypted.pdf", "none.pdf", "text.pdf",
    ]  # fmt: skip
    assert len(reasons) == 5
    assert "password" in reasons[2]
    assert all("cannot be opened" in r or "opened" in r or "no pages" in r for r in reasons)


def test_a_page_that_cannot_be_drawn_spoils_no_other(tmp_path: Path) -> None:
    broken = pdf(["one", "two", "three"]).replace(b"7 0 R", b"3 0 R")
    (tmp_path / "a.pdf").write_bytes(broken)
    rows = read_items(tmp_path)
    assert [r["payload"]["text"] for r in good(rows)] == ["one", "three"]
    assert errors(rows) == ["a.pdf, page 2: cannot be drawn: Failed to load page."]
    assert (rows[1]["id"], rows[1]["parent_id"]) == ("a.pdf#page=2", "a.pdf")


@pytest.mark.parametrize("box", ["0 0 40000 20", "0 0 20 40000", "0 0 1000000 0.001"])
def test_a_page_of_any_shape_is_drawn_within_what_a_jpeg_holds(tmp_path: Path, box: str) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(["x"], box=box))
    (tmp_path / "b.pdf").write_bytes(pdf(["fine"]))
    strip, page = read_items(tmp_path)
    assert 60_000 < max(drawn(strip).size) <= 65_001
    width, height = [float(n) for n in box.split()[2:]]
    sides = drawn(strip).size
    assert sides[0] * sides[1] < 4_100_000
    assert (sides[0] > sides[1]) == (width > height)
    assert page["payload"]["text"] == "fine"


def test_what_cannot_be_encoded_is_a_row_with_a_reason(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(["x", "y"]))
    save, failures = Image.Image.save, [OSError("encoder error -2 when writing image file")]

    def once(self: Image.Image, *given: object, **named: object) -> None:
        if failures:
            raise failures.pop()
        save(self, *given, **named)

    monkeypatch.setattr(Image.Image, "save", once)
    rows = read_items(tmp_path)
    assert "a.pdf, page 1: cannot be drawn: encoder error" in errors(rows)[0]
    assert [r["payload"]["text"] for r in good(rows)] == ["y"]


def counting(pages: list[str], count: int) -> bytes:
    """A PDF that says it has so many pages."""
    return pdf(pages).replace(f"/Count {len(pages)}".encode(), f"/Count {count}".encode())


@pytest.mark.parametrize("others", [0, 1])
def test_pages_that_are_only_counted_are_one_bad_row(tmp_path: Path, others: int) -> None:
    (tmp_path / "a.pdf").write_bytes(counting(["one"], 20_000))
    for n in range(others):
        (tmp_path / f"b{n}.pdf").write_bytes(pdf(["other"]))
    assert len(list_data(tmp_path)) == 1
    rows = read_items(tmp_path)
    assert good(rows)[0]["id"] == "a.pdf#page=1"
    assert len(good(rows)) == 1 + others
    assert errors(rows) == [
        "a.pdf: 32 pages from page 2 on are not there; pages 2 to 20000 are left out"
    ]
    assert [(r["id"], r["parent_id"]) for r in rows if r["error"]] == [("a.pdf#page=2", "a.pdf")]


def test_pages_behind_a_gap_are_read_by_the_piece_that_begins_there(tmp_path: Path) -> None:
    whole = pdf([f"page {n}" for n in range(200)])
    for n in range(10, 110):
        whole = whole.replace(b" %d 0 R" % (5 + 2 * n), b" 3 0 R")
    (tmp_path / "a.pdf").write_bytes(whole)
    units = list_data(tmp_path, ReaderSettings(unit_files=50))
    assert [(unit.begin, unit.end) for unit in units] == [(0, 100), (100, 150), (150, 2**31)]
    rows = read_items(tmp_path, unit_files=50)
    assert [r["payload"]["page"] for r in good(rows)] == [*range(1, 11), *range(111, 201)]
    first, *single = errors(rows)
    assert "32 pages from page 11 on are not there; pages 11 to 100 are left out" in first
    assert len(single) == 10
    assert "a.pdf, page 101: cannot be drawn" in single[0]


def test_many_small_files_are_one_piece_and_a_long_one_several(tmp_path: Path) -> None:
    for n in range(70):
        (tmp_path / f"{n:02}.pdf").write_bytes(pdf([f"file {n}"]))
    assert [len(unit.members) for unit in list_data(tmp_path)] == [64, 6]
    (tmp_path / "long").mkdir()
    (tmp_path / "long" / "a.pdf").write_bytes(pdf([f"page {n}" for n in range(5)]))
    units = list_data(tmp_path / "long", ReaderSettings(unit_files=2))
    assert len(units) == 3
    rows = read_items(tmp_path / "long", unit_files=2)
    assert [r["payload"]["text"] for r in rows] == [f"page {n}" for n in range(5)]


def test_only_so_much_is_read_to_count_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pdf([f"page {n}" for n in range(5)])
    for n in range(6):
        (tmp_path / f"{n}.pdf").write_bytes(content)
    read: list[str] = []
    read_bytes = pdf_reader.read_bytes

    def counted(path: str, *, limit: int) -> bytes:
        read.append(path)
        return read_bytes(path, limit=limit)

    monkeypatch.setattr(pdf_reader, "read_bytes", counted)
    monkeypatch.setattr(pdf_reader, "COUNTED_BYTES", 2 * len(content))
    # each file is alone
    settings = ReaderSettings(unit_files=2, unit_bytes=1)
    units = list_data(tmp_path, settings)
    assert len(read) == 2
    assert [unit.members[0] for unit in units] == [
        *["0.pdf"] * 3, *["1.pdf"] * 3, "2.pdf", "3.pdf", "4.pdf", "5.pdf",
    ]  # fmt: skip
    rows = read_items(tmp_path, unit_files=2, unit_bytes=1)
    assert [r["id"] for r in rows] == [f"{n}.pdf#page={k}" for n in range(6) for k in range(1, 6)]


def test_settings_of_other_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(["x"]))
    with pytest.raises(UserError, match=r"pdf .1 PDF files., which does not use columns"):
        list_data(tmp_path, ReaderSettings(columns="text=a"))
    with pytest.raises(UserError, match=r"format pdf does not use columns .it uses: pdf_dpi"):
        list_data(tmp_path, ReaderSettings(format="pdf", columns="text=a"))


def test_a_piece_says_which_file_and_page_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf([f"page {n}" for n in range(5)]))
    units = list_data(tmp_path, ReaderSettings(unit_files=2))
    assert [unit.place for unit in units] == [f"{tmp_path}/a.pdf"] * 3
    assert [unit.first_row for unit in units] == [0, 2, 4]
    (tmp_path / "b.pdf").write_bytes(pdf(["x"]))
    [unit] = list_data(tmp_path)
    assert unit.place == f"{tmp_path} (a.pdf to b.pdf)"
