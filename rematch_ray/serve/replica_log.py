"""What this package logs in a replica of Serve goes where Serve's own lines of that replica go.

Serve writes the log of its logger alone, of which ours is no child: what it took up, which ceiling
holds and what it merged would be seen by nobody. Knows no Ray but the name of that logger.
"""

from __future__ import annotations

import logging

from rematch_ray.serve.metrics import Recorder

SERVE_LOGGER = "ray.serve"
_PACKAGE = "rematch_ray"


class _ToServe(logging.Handler):
    """Hands records over; asks each time, since Serve changes its handlers and level."""

    def emit(self, record: logging.LogRecord) -> None:
        """To Serve's handlers, where its level lets the record through."""
        serve = logging.getLogger(SERVE_LOGGER)
        if serve.isEnabledFor(record.levelno):
            serve.handle(record)


def join_log() -> None:
    """Joins the log of this package to Serve's; a second time nothing happens."""
    package = logging.getLogger(_PACKAGE)
    package.setLevel(logging.INFO)
    if not any(isinstance(handler, _ToServe) for handler in package.handlers):
        package.addHandler(_ToServe())


def start_replica() -> Recorder:
    """What a replica does first: its log is joined to Serve's; returns its metrics."""
    join_log()
    return Recorder()
