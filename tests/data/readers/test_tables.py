"""Parquet, JSONL and CSV of any columns: the mapping, the pieces, and hostile files."""

import base64
import csv
import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rematch_ray.data.item import SchemaError
from rematch_ray.data.readers import lines, references
from rematch_ray.data.readers.formats import list_data, read_data
from rematch_ray.data.readers.keys import row_keys
from rematch_ray.data.readers.lines import lines_between
from rematch_ray.data.readers.row_group import group_batches
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.errors import UserError
from tests.data.readers.corpora import errors, good, read_items, texts, write_lines
from tests.tiny import png

COLUMNS = "image=img,text=title+caption,id=key"


def row(number: int, **changes: object) -> dict:
    return {
        "key": f"k{number}",
        "title": f"title {number}",
        "caption": f"caption {number}",
        "img": "pictures/red.png",
        "year": 2000 + number,
        **changes,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "red.png").write_bytes(png("red"))
    return tmp_path


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif path.suffix == ".jsonl":
        write_lines(path, rows)
    else:
        with path.open("w", newline="") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl", "rows.csv", "rows.tsv"])
def test_named_columns_become_the_item_and_the_others_its_payload(folder: Path, name: str) -> None:
    path = write(folder / name, [row(i) for i in range(5)])
    rows = read_items(path, columns=COLUMNS, source="album")
    assert not errors(rows)
    assert [r["id"] for r in rows] == ["k0", "k1", "k2", "k3", "k4"]
    assert texts(rows[1]) == [png("red"), "title 1", "caption 1"]
    assert rows[1]["source"] == "album"
    assert {k: v for k, v in rows[1]["payload"].items() if v is not None} == {"year": 2001}


def test_columns_with_the_very_names_need_no_mapping(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [{"id": 7, "text": "a", "source": "s"}])
    [found] = read_items(path)
    assert (found["id"], texts(found), found["source"]) == ("7", ["a"], "s")


def test_the_payload_can_be_chosen_or_left_out(folder: Path) -> None:
    path = write(folder / "rows.parquet", [row(0, extra="x")])
    assert read_items(path, columns=f"{COLUMNS},payload=extra")[0]["payload"] == {"extra": "x"}
    assert "payload" not in read_items(path, columns=f"{COLUMNS},payload=")[0]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl", "rows.csv"])
def test_the_text_itself_is_payload_where_it_is_named(folder: Path, name: str) -> None:
    path = write(folder / name, [row(0, extra="x")])
    for chosen, expected in (
        ("caption", {"caption": "caption 0"}),
        ("caption+*", {"caption": "caption 0", "year": 2000, "extra": "x"}),
        ("*", {"year": 2000, "extra": "x"}),
    ):
        [found] = read_items(path, columns=f"{COLUMNS},payload={chosen}")
        kept = {k: v for k, v in found["payload"].items() if v is not None}
        assert (kept, texts(found)[1:]) == (expected, ["title 0", "caption 0"])


def test_an_id_that_is_payload_too_is_still_the_id(folder: Path) -> None:
    path = write(folder / "rows.jsonl", [{"id": "a", "text": "one"}])
    [found] = read_items(path, columns="payload=id")
    assert (found["id"], found["payload"]["id"]) == ("a", "a")


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl", "rows.csv"])
def test_a_wrong_column_is_named_with_the_one_it_resembles(folder: Path, name: str) -> None:
    path = write(folder / name, [row(0)])
    with pytest.raises(SchemaError, match=r"no column 'captoin' for text; did you mean caption\?"):
        list_data(path, ReaderSettings(columns="text=captoin"))
    with pytest.raises(SchemaError, match=r"no column is text or image .columns: key, title"):
        list_data(path, ReaderSettings(format=path.suffix[1:]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("caption", "not of the form role=column"),
        ("words=caption", "'words' is no role of a column"),
        ("id=a+b", "id can be one column only"),
        ("text=", "text= names no column"),
    ],
)
def test_a_mapping_that_means_nothing_is_refused(given: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReaderSettings(columns=given)


def test_images_may_be_bytes_data_uris_structs_and_lists(folder: Path) -> None:
    uri = "data:image/png;base64," + base64.b64encode(png("blue")).decode()
    path = write_lines(folder / "rows.jsonl", [{"image": ["pictures/red.png", uri]}])
    [found] = read_items(path)
    assert texts(found) == [png("red"), png("blue")]
    assert [part["uri"] for part in found["parts"]] == ["pictures/red.png", None]
    image = [{"bytes": png("green"), "path": None}, {"bytes": None, "path": "pictures/red.png"}]
    pq.write_table(pa.table({"image": image}), folder / "rows.parquet")
    assert [texts(r) for r in read_items(folder / "rows.parquet")] == [[png("green")], [png("red")]]
    pq.write_table(pa.table({"image": [png("red")]}), folder / "bytes.parquet")
    assert texts(read_items(folder / "bytes.parquet")[0]) == [png("red")]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("pictures/gone.png", "cannot be opened"),
        ("../secret.png", "lies outside"),
        ("/etc/hostname", "lies outside"),
        ("pictures/../../secret.png", "lies outside"),
        ("file:///etc/hostname", "lies outside"),
        ("pictures/link.png", "lies outside"),
        ("pictures/\0.png", "lies outside"),
        ("http://example.org/a.png", "over https only"),
        ("https://example.org/a.png", "is not allowed"),
        ("data:image/png;base64,%%%", "is not base64"),
        ("data:image/png;base64,", "is empty"),
        (7, "an image is a int"),
    ],
)
def test_an_image_that_cannot_be_had_is_a_row_with_a_reason(
    folder: Path, image: object, reason: str
) -> None:
    (folder.parent / "secret.png").write_bytes(png("red"))
    (folder / "pictures" / "link.png").symlink_to(folder.parent / "secret.png")
    path = write_lines(folder / "rows.jsonl", [row(0, img=image), row(1)])
    rows = read_items(path, columns=COLUMNS, source="album")
    assert len(good(rows)) == 1
    [found] = errors(rows)
    assert reason in found
    assert "rows.jsonl, byte 0" in found
    assert (rows[0]["id"], rows[0]["source"]) == ("k0", "album")


def test_images_may_lie_in_another_folder(folder: Path, tmp_path_factory) -> None:
    path = write_lines(tmp_path_factory.mktemp("tables") / "rows.jsonl", [row(0, img="red.png")])
    rows = read_items(path, columns=COLUMNS, image_root=str(folder / "pictures"))
    assert texts(rows[0])[0] == png("red")


BROKEN = [
    "{",
    "[1, 2]",
    '{"id": "a", "text": "\\ud800"}',
    '{"id": "b", "text": ' + "[" * 30_000 + "]" * 30_000 + "}",
    '{"id": "c", "text": {"not": "text"}}',
    '{"id": "d"}',
    '{"id": "e", "text": "   "}',
]


def test_lines_that_cannot_be_read_are_rows_with_reasons_of_their_own(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [{"id": "x", "text": "fine"}, *BROKEN, "", "  "])
    rows = read_items(path)
    assert [r["id"] for r in good(rows)] == ["x"]
    reasons = errors(rows)
    assert len(reasons) == len(set(reasons)) == len(BROKEN)
    assert "byte 28: not JSON" in reasons[0]
    assert "a list, not an object" in reasons[1]
    assert [r["id"] for r in rows] == ["x", None, None, "a", None, "c", "d", "e"]


def test_a_file_of_something_else_is_refused_with_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"rows\.jsonl, byte 0 .*not JSON"):
        list_data(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_file_without_rows_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("\n" if name == "rows.jsonl" else "id,text\n")
    with pytest.raises(UserError, match="no rows in"):
        list_data(tmp_path / name)


@pytest.mark.parametrize("unit_bytes", [1, 7, 50, 1000])
def test_pieces_hold_every_line_once_wherever_they_are_cut(tmp_path: Path, unit_bytes: int) -> None:
    given = [{"id": str(i), "text": "é" * (i % 9 + 1)} for i in range(40)]
    path = write_lines(tmp_path / "rows.jsonl", given)
    assert [r["id"] for r in read_items(path, unit_bytes=unit_bytes)] == [r["id"] for r in given]


def test_the_last_line_needs_no_end(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"ab\n\nc")
    assert list(lines_between(str(tmp_path / "a"), 0, 9)) == [(0, b"ab\n"), (3, b"\n"), (4, b"c")]
    assert list(lines_between(str(tmp_path / "a"), 1, 4)) == [(3, b"\n")]


@pytest.mark.parametrize("unit_bytes", [1, 40, 1000])
def test_quoted_line_ends_and_quotes_survive_any_cut(tmp_path: Path, unit_bytes: int) -> None:
    given = [{"id": f"0{i}", "text": f'line\n"{i}", and\r\nmore\n\n', "n": i} for i in range(20)]
    path = write(tmp_path / "rows.csv", given)
    rows = read_items(path, unit_bytes=unit_bytes)
    assert [texts(r)[0] for r in rows] == [r["text"] for r in given]
    assert [(r["id"], r["payload"]["n"]) for r in rows] == [(r["id"], r["n"]) for r in given]
    units = list_data(path, ReaderSettings(unit_bytes=unit_bytes))
    assert len(units) == {1: 20, 40: 10, 1000: 1}[unit_bytes]
    assert [u.first_row for u in units] == sorted({u.first_row for u in units})


def test_csv_rows_with_other_fields_or_quoting_are_rows_with_reasons(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(
        b'\xef\xbb\xbfid,text\na,fine\nb,too,many\nc\n"d"x,bad\n\ne,\xff\xfe\nf,last\ng,"open\nh,i\n'
    )
    rows = read_items(tmp_path / "rows.csv")
    assert [r["id"] for r in good(rows)] == ["a", "f", "h"]
    reasons = errors(rows)
    assert ["3 fields, the header has 2" in reasons[0], "1 fields" in reasons[1]] == [True, True]
    assert "bad quoting" in reasons[2]
    assert "does not fit" in reasons[3]
    assert "a quote is opened and not closed as it should be" in reasons[4]


def test_csv_headers_are_checked(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,text,text\na,b,c\n")
    with pytest.raises(SchemaError, match="column names repeat: id, text, text"):
        list_data(tmp_path / "rows.csv")


def test_semicolons_separate_where_there_are_more(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id;text\na;x, y\n")
    assert texts(read_items(tmp_path / "rows.csv")[0]) == ["x, y"]


def test_fields_that_come_later_or_change_their_type_are_kept_as_json(tmp_path: Path) -> None:
    first = [{"id": str(i), "text": "a", "n": 1, "tags": ["x"]} for i in range(9)]
    write_lines(tmp_path / "a.jsonl", [*first, "", *["{}"] * 10])
    late = {"id": "late", "text": "b", "n": "many", "new": {"deep": 1}, "tags": None}
    write_lines(tmp_path / "b.jsonl", [*[{"id": "z", "text": "c", "pad": "x" * 40_000}], late])
    rows = read_items(tmp_path)
    assert rows[0]["payload"]["tags"] == '["x"]'
    assert json.loads(rows[-1]["payload"]["other_fields"]) == {"n": "many", "new": {"deep": 1}}


def late_rows(folder: Path, late: list[dict], *, count: int = 3000) -> Path:
    """JSONL that begins with more rows of text alone than are looked at."""
    first = [{"text": f"text {i} {'x' * 400}", "n": i} for i in range(count)]
    return write_lines(folder / "rows.jsonl", [*first, *late])


def test_a_role_that_comes_late_is_read_as_one_that_comes_first(folder: Path) -> None:
    [before] = list_data(late_rows(folder, []), ReaderSettings())
    keys = [key for batch in read_data(before) for key in row_keys(batch).to_pylist()]
    late = [
        {"text": "both", "image": "pictures/red.png", "n": 1},
        {"image": "pictures/red.png", "id": "alone", "source": "album", "n": 2},
        {"text": "named", "id": "k", "n": 3},
    ]
    path = late_rows(folder, late)
    rows = read_items(path)
    assert not errors(rows)
    assert [texts(r) for r in rows[-3:]] == [["both", png("red")], [png("red")], ["named"]]
    assert [(r["id"], r["source"]) for r in rows[-2:]] == [("alone", "album"), ("k", None)]
    assert [r["payload"] for r in rows[-3:]] == [{"n": n, "other_fields": None} for n in (1, 2, 3)]
    # what was read before stays what it was, in pieces as large as before
    [unit] = list_data(path)
    found = [key for batch in read_data(unit) for key in row_keys(batch).to_pylist()]
    assert found[:3000] == keys
    assert len(list_data(path, ReaderSettings(unit_files=10))) == 1


def test_a_column_that_comes_late_can_be_named_and_is_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = late_rows(folder, [{"img": "pictures/red.png", "title": "a", "key": "k"}])
    rows = read_items(path, columns="image=img,text=title,id=key")
    assert [(r["id"], texts(r)) for r in good(rows)] == [("k", [png("red"), "a"])]
    assert len(errors(rows)) == 3000
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3
    assert "no column 'img' for image in the rows that were looked at first" in told[0]
    assert "allowed: n, text" in told[0]
    packed = folder / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert len(good(read_items(packed, columns="image=img"))) == 1


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_column_that_no_row_has_is_refused_where_all_were_looked_at(
    folder: Path, name: str
) -> None:
    rows = write_lines(folder / "plain", [{"text": "a"}] * 900).read_bytes()
    (folder / name).write_bytes(gzip.compress(rows) if name.endswith("gz") else rows)
    with pytest.raises(SchemaError, match="no column 'txet' for text; did you mean text"):
        list_data(folder / name, ReaderSettings(columns="text=txet"))


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.gz"])
def test_compressed_files_are_one_piece(tmp_path: Path, name: str) -> None:
    given = [{"id": str(i), "text": "t" * 50} for i in range(200)]
    plain = write(tmp_path / name.removesuffix(".gz"), given)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / name).write_bytes(gzip.compress(plain.read_bytes()))
    rows = read_items(tmp_path / "packed", unit_bytes=100)
    assert [r["id"] for r in rows] == [r["id"] for r in given]
    assert len(list_data(tmp_path / "packed", ReaderSettings(unit_bytes=100))) == 1


def test_files_whose_types_do_not_go_together_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["b"], "n": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet does not go with that of .*a\.parquet"):
        list_data(tmp_path)
    pq.write_table(pa.table({"text": ["b"], "n": [2.5], "m": ["x"]}), tmp_path / "b.parquet")
    assert [r["payload"] for r in read_items(tmp_path)] == [
        {"n": 1.0, "m": None},
        {"n": 2.5, "m": "x"},
    ]


def test_a_table_that_changed_since_it_was_listed_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    [unit] = list_data(tmp_path)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no longer what it was"):
        list(read_data(unit))


@pytest.fixture
def large_group(tmp_path: Path) -> Path:
    """One row group of 30,000 rows and about 60 MB, most of it in a column that nobody needs."""
    rows = 30_000
    columns = {
        "id": [str(i) for i in range(rows)],
        "text": [f"{i:05} " * 100 for i in range(rows)],
        "blob": pa.array([b"%05d" % i * 300 for i in range(rows)], pa.binary()),
    }
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=rows, use_dictionary=False)
    return path


def test_a_large_row_group_is_never_held_as_a_whole(large_group: Path) -> None:
    units = list_data(large_group, ReaderSettings())
    assert len(units) == 3
    before, most, found = pa.total_allocated_bytes(), 0, 0
    for batch in (batch for unit in units for batch in read_data(unit)):
        most = max(most, pa.total_allocated_bytes() - before)
        assert batch.column("id")[0].as_py() == str(found)
        found += len(batch)
    assert found == 30_000
    assert most < 12 * 2**20


def picture_of_all(kind: str) -> pa.Table:
    """600 rows, all but the first with one picture of 256 KiB."""
    picture = random.Random(0).randbytes(2**18)
    cells: list = [None, *[picture] * 599]
    if kind == "list":
        cells = [[], *[[picture]] * 599]
    if kind == "struct":
        cells = [None, *[{"bytes": picture, "path": "a.png"}] * 599]
    ids = [str(n) for n in range(600)]
    column = pa.array(cells, pa.binary(2**18) if kind == "fixed" else None)
    return pa.table({"id": ids, "text": ids, "image": column})


@pytest.mark.parametrize("kind", ["bytes", "list", "struct", "fixed"])
def test_a_picture_that_a_file_holds_once_is_not_decoded_for_many_rows(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(picture_of_all(kind), path, dictionary_pagesize_limit=2**30)
    assert path.stat().st_size < 2**20
    [unit] = list_data(path, ReaderSettings(columns="image=image,text=text,id=id"))
    before, most, found = pa.total_allocated_bytes(), 0, 0
    for batch in group_batches(str(path), 0, num_rows=600):
        most = max(most, pa.total_allocated_bytes() - before)
        assert batch.nbytes < 20 * 2**20
        assert batch.column("id").to_pylist() == [str(found + n) for n in range(len(batch))]
        found += len(batch)
    assert found == 600
    assert most < 64 * 2**20
    if kind != "fixed":
        read = sum(len(batch) for batch in read_data(unit))
        assert read == 600


def test_short_texts_of_a_large_dictionary_are_decoded_256_at_a_time(tmp_path: Path) -> None:
    texts = [f"text {n} " * 20 for n in range(2000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    column = pq.read_metadata(tmp_path / "a.parquet").row_group(0).column(0)
    assert column.has_dictionary_page
    assert column.total_uncompressed_size > 256 * 1024
    batches = group_batches(str(tmp_path / "a.parquet"), 0, num_rows=2000)
    assert [len(batch) for batch in batches] == [256] * 7 + [208]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 1, 2), (0, 2, 0)])
def test_parts_of_a_row_group_can_be_read_in_any_order(
    large_group: Path, order: tuple[int, ...]
) -> None:
    units = list_data(large_group, ReaderSettings())
    for number in order:
        ids = [name for b in read_data(units[number]) for name in b.column("id").to_pylist()]
        assert ids == [str(i) for i in range(number * 10_000, number * 10_000 + 10_000)]


def test_a_part_that_is_left_half_read_does_not_shift_the_next_one(large_group: Path) -> None:
    units = list_data(large_group, ReaderSettings())
    assert next(read_data(units[0])).column("id")[0].as_py() == "0"
    assert next(read_data(units[1])).column("id")[0].as_py() == "10000"


def test_cells_that_python_cannot_hold_are_rows_with_reasons(tmp_path: Path) -> None:
    columns = {
        "id": ["a", "b", "c", "d"],
        "text": pa.array([b"fine", b"not \xff UTF-8", b"late", b"fine too"]).view(pa.string()),
        "when": pa.array([0, 1, 2**60, 3], pa.timestamp("us")),
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    rows = read_items(tmp_path, source="album")
    assert [r["id"] for r in rows] == ["a", "b", "c", "d"]
    assert [texts(r) for r in good(rows)] == [["fine"], ["fine too"]]
    first, second = errors(rows)
    assert "rows.parquet, row 1: column 'text' cannot be read: 'utf-8' codec" in first
    assert "rows.parquet, row 2: column 'when' cannot be read: " in second
    assert {r["source"] for r in rows} == {"album"}


def test_an_id_of_bytes_is_the_text_they_spell(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"id": [b"k\xc3\xa9", b"\xff"], "text": ["a", "b"]}), tmp_path / "a.parquet"
    )
    assert [r["id"] for r in read_items(tmp_path)] == ["ké", "ff"]


def damage(path: Path, group: int) -> None:
    """Overwrite the pages of a row group; the footer stays."""
    columns = pq.read_metadata(path).row_group(group)
    begin = columns.column(0).dictionary_page_offset or columns.column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[begin : begin + 40] = b"\xff" * 40
    path.write_bytes(content)


@pytest.mark.parametrize("unit_files", [2, 2000])
def test_every_row_of_a_damaged_row_group_is_a_row_with_a_reason(
    folder: Path, unit_files: int
) -> None:
    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([row(i) for i in range(9)]), path, row_group_size=3)
    damage(path, 1)
    rows = read_items(path, columns=COLUMNS, unit_files=unit_files)
    assert [r["id"] for r in rows] == ["k0", "k1", "k2", None, None, None, "k6", "k7", "k8"]
    reasons = errors(rows)
    assert len(set(reasons)) == 3
    assert "rows.parquet, row 3: " in reasons[0]
    assert "row group 1 cannot be read" in reasons[0]


def test_a_parquet_file_that_is_gone_ends_the_reading(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    [unit] = list_data(tmp_path)
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(UserError, match="row group 0 cannot be read"):
        list(read_data(unit))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_compressed_file_that_ends_early_gives_what_came_before(
    tmp_path: Path, name: str
) -> None:
    given = [{"id": str(i), "text": f"{i * 7919 % 1000003}"} for i in range(200_000)]
    packed = gzip.compress(write(tmp_path / name, given).read_bytes(), compresslevel=1)
    (tmp_path / name).unlink()
    (tmp_path / f"{name}.gz").write_bytes(packed[: len(packed) * 2 // 3])
    rows = read_items(tmp_path)
    assert [r["id"] for r in rows[:-1]] == [str(i) for i in range(len(rows) - 1)]
    assert len(rows) > 50_000
    [reason] = errors(rows)
    assert f"{name}.gz: cannot be read: Truncated compressed stream" in reason


def test_brackets_without_end_in_the_first_line_are_a_bad_row(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", ["[" * 100_000, {"id": "x", "text": "fine"}])
    rows = read_items(tmp_path)
    assert [r["id"] for r in rows] == [None, "x"]
    assert "not JSON" in errors(rows)[0]


def test_a_header_that_is_not_utf_8_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes("id,größe,text\na,1,b\n".encode("latin-1"))
    with pytest.raises(
        SchemaError, match=r"rows\.csv: the column name b'gr.xf6.* is not UTF-8; save"
    ):
        list_data(tmp_path)


def test_a_field_whose_name_is_no_text_is_kept_as_json(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", ['{"id": "a", "text": "b", "\\ud800": 1}'])
    [found] = read_items(tmp_path)
    assert json.loads(found["payload"]["other_fields"]) == {"\ud800": 1}


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "LINE_BYTES", 2**20)
    (tmp_path / "rows.jsonl").write_bytes(b"[" * 2**23)
    for settings in (ReaderSettings(), ReaderSettings(format="ms-swift")):
        with pytest.raises(UserError, match=r"rows\.jsonl: a line of more than 1048576 bytes"):
            list_data(tmp_path, settings)


def test_a_piece_of_lines_says_where_its_rows_are_counted_from(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [{"id": str(i), "text": "x"} for i in range(9)])
    first, second, *_ = list_data(path, ReaderSettings(unit_bytes=60))
    assert (first.place, second.place) == (str(path), f"{path}, from byte 60")


def test_an_item_has_a_limit_of_images(folder: Path) -> None:
    many = {"id": "a", "image": ["pictures/red.png"] * 129}
    path = write_lines(folder / "rows.jsonl", [many, {"id": "b", "image": ["pictures/red.png"]}])
    rows = read_items(path)
    assert [r["id"] for r in good(rows)] == ["b"]
    assert "an item of 129 images; at most 128 are read" in errors(rows)[0]


def test_the_images_of_an_item_have_a_limit_of_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(png("red"))
    monkeypatch.setattr(references, "ITEM_BYTES", 2 * size)
    images = [{"id": str(n), "image": ["pictures/red.png"] * n} for n in (2, 3)]
    rows = read_items(write_lines(folder / "rows.jsonl", images))
    assert [r["id"] for r in good(rows)] == ["2"]
    assert f"have more than {2 * size} bytes together" in errors(rows)[0]
