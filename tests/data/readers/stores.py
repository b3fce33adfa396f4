"""A store that fails when it is told to, as a busy one does."""

from pathlib import Path
from typing import Any, ClassVar

import pyarrow.fs as pafs
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rematch_ray.data.readers import files


class FailingStore(MemoryFileSystem):
    """Stands in for `memory://` and fails at some of them, as often as it is told.

    Attributes:
        failures: times that it still fails to open a file, by the file's name.
        error: what it fails with.
        asked: names of the files that were to be opened, in order.
    """

    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    failures: ClassVar[dict[str, int]] = {}
    error: ClassVar[Exception] = OSError("503 slow down")
    asked: ClassVar[list[str]] = []

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        name = path.rpartition("/")[2]
        if mode == "rb":
            self.asked.append(name)
            if self.failures.get(name, 0) > 0:
                self.failures[name] -= 1
                raise self.error
        return super()._open(path, mode, **options)


def stored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a copy of a folder in such a store; waits between tries are left out."""
    system = pafs.PyFileSystem(pafs.FSSpecHandler(FailingStore()))
    monkeypatch.setattr(files, "_through_fsspec", lambda scheme: system)
    monkeypatch.setattr(files, "RETRY_SECONDS", (0.0, 0.0))
    FailingStore.store.clear()
    for name in ("failures", "asked"):
        getattr(FailingStore, name).clear()
    for path in folder.rglob("*"):
        if path.is_file():
            FailingStore().pipe(f"/corpus/{path.relative_to(folder)}", path.read_bytes())
    return "memory://corpus"
