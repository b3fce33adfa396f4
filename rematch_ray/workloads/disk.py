"""What a disk refuses, told to the user: full, read-only, a file where a folder should be, taken.

Knows errors of the operating system, nothing of what was being written. Top floor.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rematch_ray.errors import UserError

LOCK = "LOCK"
# these say of themselves that something was being written
_REFUSED_WRITES = {
    errno.ENOSPC: "free some space and give the same command again: what is written is kept",
    errno.EDQUOT: "raise the quota and give the same command again: what is written is kept",
    errno.EROFS: "choose another --out",
}


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn what the disk refuses while `target` is written here into one line for the user.

    Raises:
        UserError: for an OSError of the block; names the directory, the cause and what to do.
    """
    try:
        yield
    except OSError as error:
        raise _refusal(target, _os_error_in(error) or error) from error


@contextmanager
def held(target: Path, folder: Path) -> Iterator[None]:
    """Hold an output directory for this process alone; the hold ends with the process.

    Args:
        target: the output directory, for the message.
        folder: in it; where the lock lies, made when it is not there.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    with writing(target):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            raise UserError(
                f"{target} is being written by another process: wait for it, or choose another "
                "--out"
            ) from taken
        yield


@contextmanager
def streaming(target: Path) -> Iterator[None]:
    """Turn a disk that takes no more, met by any task of a stream, into one line for the user.

    Raises:
        UserError: for an error of the block that wraps one of a full or read-only disk.
    """
    try:
        yield
    except Exception as error:
        inner = _os_error_in(error)
        if inner is not None and inner.errno in _REFUSED_WRITES:
            raise _refusal(target, inner) from error
        raise


def _os_error_in(error: BaseException | None) -> OSError | None:
    """The innermost OSError: what Ray wraps stands in `cause`, what others wrap in `__cause__`."""
    found = None
    while error is not None:
        inner = getattr(error, "cause", None)
        wrapped = inner if isinstance(inner, BaseException) else error.__cause__
        # an error of Ray's is of the type of what it wraps, without its number
        if isinstance(error, OSError) and not isinstance(inner, BaseException):
            found = error
        error = wrapped
    return found


def _refusal(target: Path, error: OSError) -> UserError:
    number = error.errno or 0
    cause = os.strerror(number) if number else " ".join(str(error).split())
    place = f" ({error.filename})" if error.filename else ""
    advice = _REFUSED_WRITES.get(number, "choose another --out")
    return UserError(f"{target} cannot be written: {cause}{place}; {advice}")
