"""Writes a training state while training goes on: copied at once, written by a thread.

The ranks talk about it in a process group of its own, so that nothing waits for the collectives of
the steps, nor they for it. Knows tensors and torch's distributed checkpoint, not what they mean.
Middle floor.
"""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp


class BackgroundWriter:
    """Writes one state after the other."""

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        self._last: Future[Any] | None = None

    def start(self, state: dict[str, Any], directory: str | Path) -> Future[Any]:
        """Copies a state and starts to write it; collective.

        Args:
            state: as `torch.distributed.checkpoint` takes it; may change as soon as this returns.
            directory: where it goes.

        Returns:
            A future that is done when every rank's part is written, with what went wrong.
        """
        assert self._last is None or self._last.done(), "one state at a time"
        if self._group is None and dist.is_initialized():
            self._group = dist.new_group(backend="gloo")
        made = dcp.async_save(
            state,
            checkpoint_id=str(directory),
            process_group=self._group,
            no_dist=self._group is None,
        )
        assert isinstance(made, Future)
        self._last = made
        return made
