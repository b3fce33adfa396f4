"""Quotes in CSV: one that is never closed costs one row, wherever the file is cut."""

import base64
import gzip
import random
from pathlib import Path

import pytest

from rematch_ray.data.readers import csv_records
from rematch_ray.data.readers.csv_records import records
from rematch_ray.data.readers.formats import list_data
from tests.data.readers.corpora import errors, good, read_items, texts
from tests.tiny import png


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("id,text\n" + "".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize("unit_bytes", [100, 5000, 10**9])
def test_a_quote_that_is_never_closed_costs_its_own_row(tmp_path: Path, unit_bytes: int) -> None:
    lines = [f"{n},fine" for n in range(3000)]
    path = write(tmp_path / "rows.csv", [*lines[:4], '4,"unclosed', *lines[5:]])
    rows = read_items(path, unit_bytes=unit_bytes)
    assert len(rows) == 3000
    assert [r["id"] for r in good(rows)] == [str(n) for n in range(3000) if n != 4]
    [reason] = errors(rows)
    assert "rows.csv, byte 36: bad quoting: a quote is opened and not closed" in reason
    assert rows[4]["error"] == reason
    units = list_data(path)
    assert [unit.num_rows for unit in units] == [3000]


def test_a_quote_that_another_quoted_field_ends_costs_its_own_row_too(tmp_path: Path) -> None:
    lines = ['a,"open', "b,fine", 'c,"quoted, ""twice"""', 'd,"two\nlines"', 'e,"open', "f,fine"]
    rows = read_items(write(tmp_path / "rows.csv", lines))
    assert [(r["id"], *texts(r)) for r in good(rows)] == [
        ("b", "fine"),
        ("c", 'quoted, "twice"'),
        ("d", "two\nlines"),
        ("f", "fine"),
    ]
    assert len(errors(rows)) == 2


def test_a_stray_quote_that_a_later_one_closes_does_not_swallow_thousands_of_rows(
    tmp_path: Path,
) -> None:
    lines = ['a,"unclosed', *(f"{n},fine" for n in range(5000)), 'z,a screen of 5"']
    rows = read_items(write(tmp_path / "rows.csv", lines))
    assert len(good(rows)) == 5001
    assert len(errors(rows)) == 1
    assert texts(rows[-1]) == ['a screen of 5"']


def test_long_fields_stay_whole(tmp_path: Path) -> None:
    image = png("red") + bytes(range(256)) * 500
    wrapped = base64.encodebytes(image).decode().replace("\n", "\r\n")
    plain = base64.b64encode(image).decode()
    prose = "".join(f"line {n}, and\nmore of it\nin three\n" for n in range(2000))
    (tmp_path / "rows.csv").write_text(
        "id,image,text\n"
        f'a,"data:image/png;base64,{wrapped}",short\n'
        f'b,"data:image/png;base64,{plain}","two\nlines"\n'
        f'c,,"{prose}"\n',
        newline="",
    )
    rows = read_items(tmp_path / "rows.csv")
    assert not errors(rows)
    assert texts(rows[0]) == ["short", image]
    assert texts(rows[1]) == ["two\nlines", image]
    assert texts(rows[2]) == [prose]


def test_the_lines_of_a_record_have_a_limit_of_bytes_beside_the_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_records, "RECORD_BYTES", 3000)
    fitting = f"{'x' * 5000}\n{'y' * 2900}"
    lines = [f'a,"{fitting}"', 'b,"open', *("no comma" for _ in range(1000)), "c,fine"]
    rows = read_items(write(tmp_path / "rows.csv", lines))
    assert [(r["id"], *texts(r)) for r in good(rows)] == [("a", fitting), ("c", "fine")]
    assert len(errors(rows)) == 1001


LINES = (
    "a,b", "a,b", 'a,"b"', 'a,"b', 'b",c', 'a,5"', '"a"b,c', 'a,"b ""c"""', 'a,""', '"', "",
    'a"b,"c', "no comma", "a,b,c", 'a,"""', "a\rb,c",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_a_file_can_be_cut_between_any_two_records(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_records, "ROW_LINES", 4)
    lines, place = [], 0
    chosen = random.Random(seed).choices(LINES, k=40)
    for line in (f"{line}\n".encode() for line in chosen):
        lines.append((place, line))
        place += len(line)
    whole = list(records(iter(lines), ",", 2))
    begins = [begin for begin, _ in whole]
    assert begins == sorted(set(begins))
    for first in range(len(begins)):
        for end in (*begins[first + 1 :], place):
            piece = [(b, line) for b, line in lines if begins[first] <= b < end]
            expected = [record for record in whole[first:] if record[0] < end]
            assert list(records(iter(piece), ",", 2)) == expected


def test_rows_before_the_damage_of_a_compressed_file_are_read_behind_a_stray_quote(
    tmp_path: Path,
) -> None:
    lines = [f"{n},{n * 7919 % 1000003}" for n in range(200_000)]
    path = write(tmp_path / "rows.csv", ['x,"unclosed', *lines])
    packed = gzip.compress(path.read_bytes(), compresslevel=1)
    path.unlink()
    (tmp_path / "rows.csv.gz").write_bytes(packed[: len(packed) * 2 // 3])
    rows = read_items(tmp_path)
    assert [r["id"] for r in good(rows)] == [str(n) for n in range(len(rows) - 2)]
    assert len(rows) > 50_000
    first, last = errors(rows)
    assert "bad quoting" in first
    assert rows[-1]["error"] == last
    assert "rows.csv.gz: cannot be read: Truncated compressed stream" in last
