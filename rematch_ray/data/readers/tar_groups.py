"""Tar archives as groups of members that share a key, read one after another.

Nothing is ever extracted: members' names only split into key and suffix. An archive may come from
anybody: what it makes a reader hold is bounded, whatever its headers say. Middle floor.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from rematch_ray.data.readers.files import (
    FAILURES,
    Damaged,
    StorageError,
    is_stored,
    is_uri,
    open_file,
)
from rematch_ray.data.readers.references import IMAGE_BYTES
from rematch_ray.data.readers.sidecars import CONTENTS
from rematch_ray.errors import UserError

END = 2**62
# of all contents of one key together
KEY_BYTES = IMAGE_BYTES
KEY_MEMBERS = 1000
# of a header that goes before a member's own: a long name, fields. tarfile reads it whole
HEADER_BYTES = 2**20
# what tarfile raises for damaged archives, beside OSError: of headers, of numbers and names in them
# (RecursionError: of thousands of headers before one member)
_DAMAGE = (tarfile.TarError, EOFError, ValueError, RecursionError, *FAILURES)


@dataclass
class Group:
    """The members of one key, in the order of the archive.

    Attributes:
        key: path in the archive up to the first dot of the file's name.
        begin: byte of the first member's header.
        contents: suffix -> content.
        fault: why the group cannot be read; "" = it can.
    """

    key: str
    begin: int
    contents: dict[str, bytes] = field(default_factory=dict)
    fault: str = ""


def groups(path: str, begin: int, end: int, *, with_contents: bool) -> Iterator[Group]:
    """The keys whose first members begin in [begin, end).

    Args:
        path: the archive.
        begin: byte of a header.
        end: byte of a header, or beyond the end.
        with_contents: read what is in the members, or only where they are.

    Raises:
        Damaged: the archive ends early or is no archive; says at which byte.
        StorageError: it cannot be read, and nothing says that it is damaged.
    """
    current: Group | None = None
    place = begin
    try:
        for member, stream in _members(path, begin):
            place = member.offset
            key, suffix = split_name(member.name)
            if current is None or key != current.key:
                if current is not None:
                    yield current
                if place >= end:
                    return
                current = Group(key, place)
            if with_contents:
                _add(current, member, suffix, stream)
    except UserError:
        raise
    except _DAMAGE as error:
        where = f"{path}, from byte {place}"
        # tarfile's own errors are no OSError
        if isinstance(error, OSError) and not _is_damaged(path, begin):
            raise StorageError(f"{where}: cannot be read: {error}") from error
        raise Damaged(f"{where}: the archive is damaged: {error}") from error
    if current is not None:
        yield current


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member: the name is cut at the first dot of its last component.

    >>> split_name("a.b/000.seg.png")
    ('a.b/000', 'seg.png')
    """
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _add(group: Group, member: tarfile.TarInfo, suffix: str, stream: tarfile.TarFile) -> None:
    if group.fault or not f".{suffix}".endswith(CONTENTS):
        return
    held = sum(map(len, group.contents.values()))
    if suffix in group.contents:
        group.fault = f"the key has two .{suffix} members"
    elif len(group.contents) == KEY_MEMBERS:
        group.fault = f"the key has more than {KEY_MEMBERS} members"
    elif held + member.size > KEY_BYTES:
        group.fault = (
            f"with member .{suffix} of {member.size} bytes the key has more than {KEY_BYTES}, "
            "which is the most that is read"
        )
    if group.fault:
        group.contents.clear()
    else:
        content = stream.extractfile(member)
        assert content is not None, "a regular file has content"
        group.contents[suffix] = content.read()
        if len(group.contents[suffix]) < member.size:
            raise tarfile.ReadError("the archive ends inside a member")


def _members(path: str, begin: int) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Regular files of an archive, hidden ones left out."""
    with _stream(path, begin) as tar:
        for member in tar:
            # what was read would otherwise be kept for every member
            tar.members = []  # type: ignore[attr-defined]
            tar.pax_headers = {}
            name = member.name.rpartition("/")[2]
            if member.isreg() and not name.startswith(".") and name:
                yield member, tar


def _is_damaged(path: str, begin: int) -> bool:
    """Whether an archive fails a second time, and not because storage does."""
    try:
        for _ in _members(path, begin):
            pass
    except UserError:
        return False
    except _DAMAGE:
        return is_stored(path, begin)
    return False


# types of headers that say more of the member behind them than its own has room for
_BEFORE_ANOTHER = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _Header(tarfile.TarInfo):
    """A member's header, refused where tarfile would stop, or hold what has no bound.

    What is neither a header nor the end is damage, and so are headers before a header that are
    large, and maps of sparse files: nothing that a data set holds needs them.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no header and no end: {error}") from error

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _BEFORE_ANOTHER and self.size > HEADER_BYTES:
            raise tarfile.ReadError(
                f"a header of {self.size} bytes before a member's; at most {HEADER_BYTES} are read"
            )
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file")
        return super()._proc_member(archive)  # type: ignore[misc]

    def _proc_gnusparse_10(self, *given: Any) -> None:
        raise tarfile.ReadError("a sparse file")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10


@contextmanager
def _stream(path: str, begin: int) -> Iterator[tarfile.TarFile]:
    mode: Any = "r:" if is_seekable(path) else "r|*"
    with open_file(path) as file:
        if begin:
            file.seek(begin)
        with tarfile.open(fileobj=file, mode=mode, tarinfo=_Header) as tar:
            yield tar


def is_seekable(path: str) -> bool:
    """Whether an archive can be entered in the middle: a plain one, on this machine."""
    return path.endswith(".tar") and not is_uri(path)
