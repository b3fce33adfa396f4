"""Files in columns: the entries that went in, in the order of their names."""

import numpy as np

from rematch_ray.data.readers.file_list import FileEntry, FileList

NAMES = ["b/x.JPG", "a.jpg", "a-1.jpg", "é.png", "zz", "b.txt", "b/y.jpg", "\U0001f600.jpg"]
ENTRIES = [
    FileEntry(f"s3://bucket/{name}", name, number, f"{number}:7")
    for number, name in enumerate(NAMES)
]
IN_ORDER = sorted(ENTRIES, key=lambda entry: entry.name)


def test_entries_come_back_in_the_order_of_their_names() -> None:
    files = FileList.of(ENTRIES)
    assert len(files) == len(NAMES)
    assert list(files) == IN_ORDER
    assert [files[place] for place in range(len(files))] == IN_ORDER
    assert (files[-1], list(files[1:3])) == (IN_ORDER[-1], IN_ORDER[1:3])
    assert list(files.take(np.array([5, 0]))) == [IN_ORDER[5], IN_ORDER[0]]
    assert IN_ORDER[2] in files


def test_many_files_are_as_few() -> None:
    entries = [FileEntry(f"/d/{n:05}", f"{n:05}", n, str(n)) for n in range(9000)]
    assert list(FileList.of(reversed(entries))) == entries


def test_files_are_found_by_name_and_ending() -> None:
    files = FileList.of(ENTRIES)
    assert [files.find(name) for name in NAMES] == ENTRIES
    assert [files.find(name) for name in ("", "a", "zzz", "b")] == [None] * 4
    endings = (".jpg", ".png")
    assert list(files.ending(*endings)) == [
        entry for entry in IN_ORDER if entry.name.lower().endswith(endings)
    ]
    assert [entry.name for entry in files.top()] == [
        entry.name for entry in IN_ORDER if "/" not in entry.name
    ]


def test_a_path_that_is_not_its_name_below_the_others_root_is_kept() -> None:
    odd = FileEntry("s3://bucket//x", "x", 1, "")
    assert FileList.of([*ENTRIES, odd]).find("x") == odd


def test_no_files_are_a_list_too() -> None:
    files = FileList.of([])
    assert (len(files), list(files), files.find("a"), len(files.ending(".a"))) == (0, [], None, 0)
    assert not files.top()
