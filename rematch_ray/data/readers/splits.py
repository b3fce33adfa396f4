"""The split of a data set that the name of a file tells. Middle floor."""

from __future__ import annotations

import re

from rematch_ray.data.readers.file_list import FileEntry

_SHARD = re.compile(r"(?P<split>.+?)[-_]\d+(-of-\d+)?$")
SPLITS = frozenset({"train", "test", "validation", "valid", "val", "dev"})


def split_of(entry: FileEntry) -> str | None:
    """The split that a file's name or folder tells, or None."""
    *folders, file = entry.name.split("/")
    stem = file.rpartition(".")[0]
    if shard := _SHARD.fullmatch(stem):
        return shard["split"]
    return next((name for name in (stem, *reversed(folders)) if name in SPLITS), None)
