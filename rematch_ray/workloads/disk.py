"""What a disk refuses, told to the user: full, read-only, a file where a folder should be.

Knows errors of the operating system, nothing of what was being written. Top floor.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rematch_ray.errors import UserError

# these say of themselves that something was being written
_REFUSED_WRITES = {
    errno.ENOSPC: "free some space and give the same command again: what is written is kept",
    errno.EDQUOT: "raise the quota and give the same command again: what is written is kept",
    errno.EROFS: "choose another --out",
}


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn what the disk refuses while `target` is written into one line for the user.

    Raises:
        UserError: for an OSError of the block; names the directory, the cause and what to do.
    """
    try:
        yield
    except OSError as error:
        raise _refusal(target, error) from error


def refused_write(error: BaseException | None, target: Path) -> UserError | None:
    """Return what to tell the user if an error, or what it wraps, is a disk that takes no more.

    Args:
        error: as Ray raises it: the error of a task stands in `cause`, of a thread in `__cause__`.
        target: the output directory.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _REFUSED_WRITES:
            return _refusal(target, error)
        inner = getattr(error, "cause", None)
        error = inner if isinstance(inner, BaseException) else error.__cause__
    return None


def _refusal(target: Path, error: OSError) -> UserError:
    number = error.errno or 0
    cause = os.strerror(number) if number else " ".join(str(error).split())
    place = f" ({error.filename})" if error.filename else ""
    advice = _REFUSED_WRITES.get(number, "choose another --out")
    return UserError(f"{target} cannot be written: {cause}{place}; {advice}")
