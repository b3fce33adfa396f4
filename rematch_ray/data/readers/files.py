"""Files of a corpus, wherever they lie: local paths, object stores, Hugging Face data sets.

pyarrow's own file systems serve local paths, s3:// and gs://; every other scheme goes through
fsspec (hf://, memory://, abfs://, ...). It does not know what is in a file. Middle floor.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from rematch_ray.data.readers.file_list import FileEntry, FileList
from rematch_ray.errors import UserError

_log = logging.getLogger(__name__)

NATIVE = ("s3", "gs", "gcs")
# what a file system raises for what is not there, may not be read or cannot be reached
FAILURES = (OSError, pa.ArrowException)
# between the times that a file is asked for: a store that is busy says so for a moment
RETRY_SECONDS = (0.5, 2.0)


_BLOCK_BYTES = 8 * 2**20
# of names that no file can have, for which a row may ask nevertheless; a store's are shorter
_NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)
_NAME_BYTES = 1200


class Damaged(UserError):
    """Content that storage gives and that is not what it should be; what came before it was."""


class StorageError(UserError):
    """Storage that fails at a file it may well hold: the fault of no row, so it ends the reading.

    Whoever makes a bad row of a `UserError` lets this one pass.
    """


@dataclass(frozen=True)
class Place:
    """What stands at a path that a user named: a file, or a folder with files at any depth."""

    path: str
    is_folder: bool

    @cached_property
    def files(self) -> FileList:
        """Every file, ordered by name; hidden files and folders are left out."""
        return FileList.of(_entries(self))

    @cached_property
    def top(self) -> FileList:
        """The files that lie directly in the folder, or the file itself."""
        return self.files.top()

    def ending(self, *suffixes: str) -> FileList:
        """The files whose names end so, at any depth, in the order of names."""
        return self.files.ending(*suffixes)

    def find(self, name: str) -> FileEntry | None:
        """The file of this name below the folder, or None."""
        return self.files.find(name)


def look(path: str | Path) -> Place:
    """What stands at a path or URI.

    Raises:
        UserError: nothing, or the storage cannot be reached.
    """
    absolute = absolute_path(path)
    try:
        system, inner = filesystem(absolute)
        kind = system.get_file_info(inner).type
    except FAILURES as error:
        raise UserError(f"{absolute}: cannot be looked at: {error}") from error
    if kind == pafs.FileType.NotFound:
        raise UserError(f"{absolute}: no such file or folder")
    return Place(absolute, kind == pafs.FileType.Directory)


def absolute_path(path: str | Path) -> str:
    """A local path made absolute; a URI as it is, `file://` as the path it means.

    >>> absolute_path("file:///data/rows.parquet"), absolute_path("s3://bucket/rows/")
    ('/data/rows.parquet', 's3://bucket/rows')
    """
    text = str(path)
    if is_uri(text):
        if not text.startswith("file://"):
            return text.rstrip("/")
        text = unquote(urlsplit(text).path)
    return str(Path(text).expanduser().absolute())


def is_uri(path: str) -> bool:
    """Whether a path names its scheme, as in s3://bucket/key."""
    scheme, separator, _ = path.partition("://")
    return bool(separator) and scheme.replace("+", "").isalnum()


def join(folder: str, name: str) -> str:
    """The path of what lies at `name` below a folder."""
    return f"{folder.rstrip('/')}/{name}"


def parent(path: str) -> str:
    """The folder that a file lies in."""
    return path.rstrip("/").rpartition("/")[0] or "/"


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or URI, and the path inside it.

    Options of pyarrow's own stand behind the bucket alone, `s3://bucket?region=eu-west-1/key`: a
    name below it, which data may hold, is a name and nothing else.
    """
    if not is_uri(path):
        return _local(), path
    scheme, _, rest = path.partition("://")
    if scheme in NATIVE:
        bucket, slash, key = rest.partition("/")
        system, _ = _native(scheme, bucket)
        return system, bucket.partition("?")[0] + slash + key
    return _through_fsspec(scheme), rest if scheme != "memory" else f"/{rest.lstrip('/')}"


def open_file(path: str) -> pa.NativeFile:
    """Open a file for reading at any place.

    Raises:
        UserError: it cannot be opened; names it.
    """
    try:
        system, inner = filesystem(path)
        return system.open_input_file(inner)
    except FAILURES as error:
        raise UserError(f"{path}: cannot be opened: {error}") from error


def read_bytes(path: str, *, limit: int | None = None) -> bytes:
    """The content of a file; storage that fails is asked again after half a second, and two.

    Args:
        path: path or URI.
        limit: largest size accepted, in bytes.

    Raises:
        UserError: no file is there, or it is larger than the limit.
        StorageError: storage fails each time, or refuses to give the file.
    """
    for seconds in (*RETRY_SECONDS, None):
        try:
            return _content(path, limit)
        except FAILURES as error:
            if _is_absent(path, error):
                raise UserError(f"{path}: cannot be opened: {error}") from error
            if seconds is None or isinstance(error, PermissionError):
                raise StorageError(f"{path}: storage does not give it: {error}") from error
            time.sleep(seconds)
    raise AssertionError("the last try returns or raises")


def _content(path: str, limit: int | None) -> bytes:
    system, inner = filesystem(path)
    with system.open_input_file(inner) as file:
        if limit is not None and (size := file.size()) > limit:
            raise UserError(f"{path}: {size} bytes; at most {limit} are read")
        return file.read()


def _is_absent(path: str, error: Exception) -> bool:
    """Whether what failed is that no file of this name is there, and storage says so."""
    if isinstance(error, pa.ArrowInvalid) or getattr(error, "errno", None) in _NO_NAME:
        return True
    if is_uri(path) and len(path.encode()) > _NAME_BYTES:
        return True
    try:
        # asked anew: some file systems take every failure for a file that is not there
        system, inner = filesystem(path)
        return system.get_file_info(inner).type != pafs.FileType.File
    except FAILURES:
        return False


def is_stored(path: str, begin: int = 0, num_bytes: int = 2**62) -> bool:
    """Whether storage gives these bytes, so that what fails beyond that is their content."""
    try:
        with open_file(path) as file:
            file.seek(begin)
            while num_bytes > 0 and (block := file.read(min(num_bytes, _BLOCK_BYTES))):
                num_bytes -= len(block)
    except (UserError, *FAILURES):
        return False
    return True


def _entries(place: Place) -> Iterator[FileEntry]:
    scheme = place.path.partition("://")[0] if is_uri(place.path) else None
    try:
        system, inner = filesystem(place.path)
        base = inner.rstrip("/") if place.is_folder else inner.rpartition("/")[0]
        for info in _infos(system, inner, place):
            name = _path_of(info)[len(base) :].lstrip("/")
            if info.type == pafs.FileType.File and not _hidden(name):
                path = info.path if scheme is None else f"{scheme}://{info.path.lstrip('/')}"
                if scheme in NATIVE:
                    # with the bucket's options
                    path = join(place.path if place.is_folder else parent(place.path), name)
                # some stores know no time
                stamp = f"{info.size}:{info.mtime_ns or 0}"
                yield FileEntry(path, name, info.size or 0, stamp)
    except FAILURES as error:
        raise UserError(f"{place.path}: cannot be listed: {error}") from error


def _infos(system: pafs.FileSystem, inner: str, place: Place) -> Iterator[pafs.FileInfo]:
    """What lies at a place; of a local one a folder at a time, each taking hundreds of bytes."""
    if not place.is_folder:
        yield system.get_file_info(inner)
    elif is_uri(place.path):
        yield from system.get_file_info(pafs.FileSelector(inner, recursive=True))
    else:
        yield from _local_tree(system, inner)


def _local_tree(system: pafs.FileSystem, folder: str) -> Iterator[pafs.FileInfo]:
    """What lies in a folder at any depth, every real folder once, whatever links lead to it.

    Folders come before links to folders, so that a file has its own name where it has one.
    """
    visited: set[str] = set()
    folders, links = deque([folder]), deque[str]()
    while folders or links:
        path = folders.popleft() if folders else links.popleft()
        real = os.path.realpath(path)
        if real in visited:
            _log.warning("%s is left out: it leads to %s, which is read already", path, real)
            continue
        visited.add(real)
        for info in sorted(system.get_file_info(pafs.FileSelector(path)), key=_path_of):
            if info.type != pafs.FileType.Directory:
                yield info
            elif not _hidden(info.base_name):
                (links if os.path.islink(info.path) else folders).append(info.path)


def _path_of(info: pafs.FileInfo) -> str:
    try:
        return info.path
    except UnicodeDecodeError as error:
        raise UserError(
            f"the name of the file {error.object!r} is not UTF-8, by which it cannot be opened; "
            "rename it (convmv -f latin1 -t utf8), or move it out of the folder"
        ) from error


def _hidden(name: str) -> bool:
    return any(piece.startswith(".") or piece == "__MACOSX" for piece in name.split("/"))


@lru_cache(maxsize=1)
def _local() -> pafs.FileSystem:
    return pafs.LocalFileSystem()


# a new connection asks the store for the bucket's region, so one is kept per bucket
@lru_cache(maxsize=16)
def _native(scheme: str, bucket: str) -> tuple[pafs.FileSystem, str]:
    return pafs.FileSystem.from_uri(f"{scheme}://{bucket}")


@lru_cache(maxsize=16)
def _through_fsspec(scheme: str) -> pafs.FileSystem:
    import fsspec

    try:
        return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem(scheme)))
    except (ValueError, ImportError) as error:
        raise UserError(
            f"{scheme}://: {error}; local paths, s3://, gs:// and hf:// are read, and what an "
            "installed fsspec file system serves"
        ) from error
