"""The log of a run survives a full disk and is read on from where it was left."""

import errno
import os
from pathlib import Path

import pytest

from rematch_ray.workloads.journal import Journal, Tail


def test_a_tail_reads_each_record_once_and_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    journal, tail = Journal(tmp_path / "log"), Tail(tmp_path / "log")
    assert tail.read().records == []
    journal.append({"step": 0})
    first = tail.read()
    assert (first.anew, first.records) == (True, [{"step": 0}])
    with (tmp_path / "log").open("a") as file:
        file.write('{"step": ')
        file.flush()
        assert tail.read().records == []
        file.write("1}\n")
    second = tail.read()
    assert (second.anew, second.records) == (False, [{"step": 1}])


def test_a_line_that_was_cut_spoils_no_other_and_is_named_once(tmp_path: Path) -> None:
    """Rank 0 is killed as it writes; the driver, and then a new rank 0, go on in the same file."""
    journal, tail = Journal(tmp_path / "log"), Tail(tmp_path / "log")
    journal.append({"step": 0})
    for cut in (b'{"step": 1, "met', b"\xff\0", b"7"):
        with (tmp_path / "log").open("ab") as file:
            file.write(cut)
        Journal(tmp_path / "log").append({"event": "validation"})
    news = tail.read()
    assert news.records == [{"step": 0}, *[{"event": "validation"}] * 3]
    assert news.damaged == [2, 4, 6]
    journal.append({"step": 1})
    assert (tail.read().records, tail.read().damaged) == ([{"step": 1}], [])
    journal.keep(list(journal.records()))
    assert len((tmp_path / "log").read_text().splitlines()) == 5
    assert tail.read().damaged == []


def test_a_tail_begins_again_when_the_file_is_written_anew(tmp_path: Path) -> None:
    journal, tail = Journal(tmp_path / "log"), Tail(tmp_path / "log")
    for step in range(3):
        journal.append({"step": step})
    tail.read()
    journal.keep([{"step": 0}])
    journal.append({"step": 1})
    news = tail.read()
    assert news.anew
    assert news.records == [{"step": 0}, {"step": 1}]


def test_records_wait_for_room_on_a_full_disk_and_no_line_is_spoilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "log")
    journal.append({"step": 0})
    room = 7  # bytes that still fit: half a record
    write = os.write

    def fills(descriptor: int, content: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(descriptor, content[:room])
        room -= written
        return written

    monkeypatch.setattr(os, "write", fills)
    journal.append({"step": 1})
    journal.append({"step": 2})
    assert (tmp_path / "log").read_text() == '{"step": 0}\n'
    room = 1000
    journal.append({"step": 3})
    assert [record["step"] for record in journal.records()] == [0, 1, 2, 3]


def test_another_failure_to_write_is_not_waited_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int, content: bytes) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(OSError, match="Input/output"):
        Journal(tmp_path / "log").append({"step": 0})
