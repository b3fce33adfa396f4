"""What the package logs in a replica stands in that replica's log."""

import logging

import pytest

from rematch_ray.serve.replica_log import start_replica


class Kept(logging.Handler):
    """A handler as Serve has one."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name}: {record.getMessage()}")


@pytest.fixture
def serve_log(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """In place of Serve's logger, to whose handlers pytest adds its own."""
    serve = logging.getLogger("serve_of_this_test")
    serve.handlers.clear()
    serve.propagate = False
    serve.setLevel(logging.INFO)
    monkeypatch.setattr("rematch_ray.serve.replica_log.SERVE_LOGGER", serve.name)
    return serve


def test_lines_of_any_module_go_to_serves_log_once(serve_log: logging.Logger) -> None:
    kept = Kept()
    serve_log.addHandler(kept)
    start_replica()
    start_replica()
    logging.getLogger("rematch_ray.serve.coordinator").info("serving %s", "set-000002")
    logging.getLogger("rematch_ray.index.preload").info("left on disk")
    logging.getLogger("rematch_ray.serve.set_backend").debug("not asked for")
    assert kept.lines == [
        "rematch_ray.serve.coordinator: serving set-000002",
        "rematch_ray.index.preload: left on disk",
    ]


def test_serves_level_and_its_handlers_of_the_moment_count(serve_log: logging.Logger) -> None:
    start_replica()
    kept = Kept()
    serve_log.addHandler(kept)  # as a change of its settings does
    serve_log.setLevel(logging.WARNING)
    logger = logging.getLogger("rematch_ray.serve.shard")
    logger.info("a state was taken")
    logger.warning("the coordinator did not take a report")
    assert kept.lines == ["rematch_ray.serve.shard: the coordinator did not take a report"]
