"""WebDataset tars: keys, suffixes, pieces, and archives that are damaged or hostile."""

import gzip
import io
import json
import random
import tarfile
from pathlib import Path

import pytest

from rematch_ray.data.item import SchemaError
from rematch_ray.data.readers import tar_groups
from rematch_ray.data.readers.files import look
from rematch_ray.data.readers.formats import detect, list_data
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.errors import UserError
from tests.data.readers.corpora import errors, good, read_items, texts
from tests.tiny import png

RED, BLUE = png("red"), png("blue")


def write(path: Path, members: list[tuple[str, bytes | str | dict]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            if isinstance(content, dict):
                content = json.dumps(content)
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def numbered(count: int, folder: str = "") -> list[tuple[str, bytes | str | dict]]:
    return [
        (f"{folder}{n:04}.{suffix}", content)
        for n in range(count)
        for suffix, content in (("jpg", RED), ("txt", f"text {n}"), ("json", {"n": n}))
    ]


def test_members_of_one_key_are_a_row(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [*numbered(2), ("x/y.z.PNG", BLUE), ("x/y.cls", "7")])
    write(tmp_path / "b.tar", [("last.webp", RED), ("last.npy", b"\x93"), (".hidden.jpg", RED)])
    assert detect(look(tmp_path))[0].name == "webdataset"
    rows = read_items(tmp_path, source="laion")
    assert [(r["id"], texts(r)) for r in rows] == [
        ("0000", [RED, "text 0"]),
        ("0001", [RED, "text 1"]),
        ("x/y", [BLUE]),
        ("last", [RED]),
    ]
    assert [r["payload"]["n"] for r in rows] == [0, 1, None, None]
    assert rows[2]["payload"]["cls"] == "7"
    assert {r["source"] for r in rows} == {"laion"}


def test_suffixes_and_fields_can_be_named(tmp_path: Path) -> None:
    members = [("a.seg.png", BLUE), ("a.jpg", RED), ("a.json", {"uid": "u1", "title": "t"})]
    path = write(tmp_path / "a.tar", members)
    assert texts(read_items(path)[0]) == [BLUE, RED]
    [row] = read_items(path, columns="text=title,image=jpg,id=uid")
    assert (row["id"], texts(row)) == ("u1", ["t", RED])
    assert row["payload"] == {"file_name": "a", "other_fields": None}


def test_a_caption_that_only_later_keys_have_is_read_as_text(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [(f"a{n}.jpg", RED) for n in range(3)])
    write(tmp_path / "b.tar", [("b.jpg", RED), ("b.txt", "a text"), ("b.json", {"n": 1})])
    write(tmp_path / "c.tar", [("c.jpg", RED), ("c.json", {"caption": "a caption", "source": "s"})])
    rows = read_items(tmp_path)
    assert [texts(r) for r in rows] == [[RED]] * 3 + [[RED, "a text"], [RED, "a caption"]]
    assert rows[-2]["payload"]["other_fields"] == '{"n": 1}'
    assert (rows[-1]["payload"]["other_fields"], rows[-1]["source"]) == (None, "s")
    [late] = [r for r in read_items(tmp_path, columns="payload=caption") if r["id"] == "c"]
    assert texts(late) == [RED, "a caption"]
    assert late["payload"]["other_fields"] == '{"caption": "a caption"}'


def test_a_caption_in_late_keys_of_one_archive_is_read_too(tmp_path: Path) -> None:
    members = [(f"{n:03}.jpg", RED) for n in range(80)] + [("080.jpg", RED), ("080.txt", "late")]
    assert texts(read_items(write(tmp_path / "a.tar", members))[-1]) == [RED, "late"]


def test_the_caption_that_the_first_keys_have_stays_the_caption(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [("a.jpg", RED), ("a.json", {"caption": "one"})])
    late = {"caption": "two", "text": "other"}
    write(tmp_path / "b.tar", [("b.jpg", RED), ("b.txt", "three"), ("b.json", late)])
    write(tmp_path / "c.tar", [("c.jpg", RED), ("c.txt", "four")])
    rows = read_items(tmp_path)
    assert [texts(r)[1:] for r in rows] == [["one"], ["two"], ["four"]]
    fields = [row["payload"]["other_fields"] for row in rows]
    assert fields[0] == fields[2] is None
    assert json.loads(fields[1]) == {"text": "other", "txt": "three"}


def test_a_field_that_only_later_archives_have_can_be_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "a.tar", [("a.jpg", RED), ("a.json", {"n": 1})])
    with pytest.raises(SchemaError, match="no column 'title' for text"):
        list_data(tmp_path, ReaderSettings(columns="text=title"))
    write(tmp_path / "b.tar", [("b.png", BLUE), ("b.json", {"title": "t", "uid": "u"})])
    rows = read_items(tmp_path, columns="text=title,image=png,id=uid")
    assert [(r["id"], texts(r)) for r in good(rows)] == [("u", ["t", BLUE])]
    assert len(errors(rows)) == 1
    assert "no column 'title' for text in the rows that were looked at first" in caplog.text


@pytest.mark.parametrize(("unit_bytes", "units"), [(1, 30), (5000, 10), (10**9, 1)])
def test_pieces_hold_every_key_once(tmp_path: Path, unit_bytes: int, units: int) -> None:
    # names so long that they need headers of their own
    path = write(tmp_path / "a.tar", numbered(30, folder=f"{'long/' * 30}"))
    found = list_data(path, ReaderSettings(unit_bytes=unit_bytes))
    assert sum(unit.num_rows or 0 for unit in found) == 30
    assert (len(found) > 5) == (units > 5)
    rows = read_items(path, unit_bytes=unit_bytes)
    assert [texts(r)[1] for r in rows] == [f"text {n}" for n in range(30)]
    assert len(list_data(path, ReaderSettings(unit_files=7))) == 5


@pytest.mark.parametrize("suffix", ["tar.gz", "tgz", "tar.xz"])
def test_compressed_archives_are_one_piece(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.{suffix}", numbered(5), "w:xz" if suffix == "tar.xz" else "w:gz")
    assert len(read_items(path, unit_bytes=1)) == 5
    assert [unit.num_rows for unit in list_data(path)] == [None]


def test_rows_that_make_no_item_say_why(tmp_path: Path) -> None:
    members = [
        ("a.jpg", RED), ("a.jpg", BLUE), ("b.json", "{"), ("b.jpg", RED), ("c.npy", b"x"),
        ("d.txt", b"\xff"), ("e.jpg", b""), ("f.jpg", RED),
    ]  # fmt: skip
    rows = read_items(write(tmp_path / "a.tar", members))
    assert [r["id"] for r in rows] == ["a", "b", "c", "d", "e", "f"]
    assert [r["id"] for r in good(rows)] == ["f"]
    expected = ["two .jpg members", "not JSON", "neither text nor image", "not UTF-8", "is empty"]
    for reason, part in zip(errors(rows), expected, strict=True):
        assert part in reason
        assert "a.tar" in reason or "file" in reason


def test_links_devices_and_names_that_climb_out_touch_nothing(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(BLUE)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (("a.png", tarfile.SYMTYPE), ("b.png", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "../secret.png"
            tar.addfile(info)
        pipe = tarfile.TarInfo("c.png")
        pipe.type = tarfile.FIFOTYPE
        tar.addfile(pipe)
        for name in ("../../escape.png", "/etc/absolute.png"):
            info = tarfile.TarInfo(name)
            info.size = len(RED)
            tar.addfile(info, io.BytesIO(RED))
    rows = read_items(tmp_path / "a.tar")
    assert [(r["id"], texts(r)) for r in rows] == [
        ("../../escape", [RED]),
        ("/etc/absolute", [RED]),
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "secret.png"]


@pytest.mark.parametrize("cut", [100, 700, 5 * 1536 - 700])
def test_an_archive_that_ends_early_keeps_what_came_before(tmp_path: Path, cut: int) -> None:
    write(tmp_path / "a.tar", numbered(1))
    path = write(tmp_path / "b.tar", numbered(10))
    # without the two blocks of zeros and their padding
    size = 10 * 3 * 1024
    path.write_bytes(path.read_bytes()[: size - cut])
    rows = read_items(tmp_path)
    assert 7 < len(good(rows)) < 11
    [reason] = errors(rows)
    assert "the archive is damaged" in reason


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_an_archive_that_ends_inside_a_file_keeps_what_came_before(
    tmp_path: Path, name: str
) -> None:
    members = [(f"{n}.jpg", random.Random(n).randbytes(100_000)) for n in range(3)]
    content = write(tmp_path / name, members).read_bytes()[:250_000]
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    rows = read_items(tmp_path)
    assert [r["id"] for r in rows] == ["0", "1", None]
    assert "the archive is damaged" in errors(rows)[0]


def test_damage_in_the_middle_is_not_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", numbered(10))
    content = bytearray(path.read_bytes())
    content[5 * 3072 : 5 * 3072 + 200] = b"\xff" * 200
    path.write_bytes(content)
    rows = read_items(path)
    assert len(good(rows)) in (4, 5)
    assert "the archive is damaged" in errors(rows)[0]


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar" * 300)
    with pytest.raises(UserError, match=r"a\.tar, .*damaged.*is it a tar at all"):
        list_data(tmp_path)
    write(tmp_path / "a.tar", [])
    with pytest.raises(UserError, match="no rows in"):
        list_data(tmp_path)


def test_rows_are_numbered_through_the_whole_archive(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", numbered(30))
    units = list_data(path, ReaderSettings(unit_files=7))
    assert [unit.first_row for unit in units] == [0, 7, 14, 21, 28]
    path.write_bytes(path.read_bytes()[: 20 * 3072 + 700])
    units = list_data(path, ReaderSettings(unit_files=7))
    assert [(unit.first_row, unit.num_rows) for unit in units] == [(0, 7), (7, 7), (14, None)]
    assert units[-1].place == str(path)


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    """One header block as tarfile writes it."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


HOSTILE = {
    "long name": header(tarfile.GNUTYPE_LONGNAME, 2**21) + bytes(2**21),
    "long link": header(tarfile.GNUTYPE_LONGLINK, 2**21) + bytes(2**21),
    "fields": header(tarfile.XHDTYPE, 2**21) + bytes(2**21),
    "fields of all": header(tarfile.XGLTYPE, 2**21) + bytes(2**21),
    "names of names": (header(tarfile.GNUTYPE_LONGNAME, 1) + b"x".ljust(512, b"\0")) * 3000,
    "sparse": header(tarfile.GNUTYPE_SPARSE, 0),
}


@pytest.mark.parametrize("name", ["b.tar", "b.tar.gz"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_headers_that_would_fill_the_memory_are_damage(
    tmp_path: Path, kind: str, name: str
) -> None:
    write(tmp_path / "a.tar", numbered(1))
    content = write(tmp_path / name, numbered(2)).read_bytes()[: 2 * 3072] + HOSTILE[kind]
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    rows = read_items(tmp_path)
    # the key before the damage may have been cut by it
    assert len(good(rows)) == 2
    [reason] = errors(rows)
    assert "the archive is damaged" in reason
    assert ("a header of 2097152 bytes" in reason) == (kind not in ("names of names", "sparse"))


def test_one_key_has_a_limit_of_bytes_and_of_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_groups, "KEY_BYTES", 10_000)
    large = [(f"a.{n}.jpg", bytes(4000)) for n in range(5)]
    many = [(f"b.{n}.txt", "x") for n in range(1001)]
    rows = read_items(write(tmp_path / "a.tar", [*large, *many, ("c.jpg", RED)]))
    assert [r["id"] for r in rows] == ["a", "b", "c"]
    first, second = errors(rows)
    assert "key a: with member .2.jpg of 4000 bytes the key has more than 10000" in first
    assert "key b: the key has more than 1000 members" in second
