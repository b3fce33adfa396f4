"""A stage is done once for the same inputs, goes on when interrupted, and starts over otherwise."""

from pathlib import Path
from typing import Any

import pytest

from rematch_ray.workloads.stamps import Stamps

STAGES = ("one", "two")


class Work:
    """Counts its calls and leaves an output behind."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.calls = 0
        self.found_output: list[bool] = []

    def __call__(self) -> dict[str, Any]:
        self.calls += 1
        self.found_output.append(self.output.exists())
        self.output.mkdir(exist_ok=True)
        return {"call": self.calls}


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "output")


def test_a_finished_stage_is_skipped_and_its_result_returned(tmp_path: Path, work: Work) -> None:
    for _ in range(2):
        stamps = Stamps(tmp_path / "stamps", STAGES)
        assert stamps.do("one", {"a": 1}, work, work.output) == {"call": 1}
    assert work.calls == 1
    assert stamps.seconds().keys() == {"one"}


def test_changed_inputs_remove_the_output_and_do_the_stage_again(
    tmp_path: Path, work: Work
) -> None:
    stamps = Stamps(tmp_path / "stamps", STAGES)
    stamps.do("one", {"a": 1}, work, work.output)
    assert stamps.do("one", {"a": 2}, work, work.output) == {"call": 2}
    assert work.found_output == [False, False]


def test_an_interrupted_stage_keeps_its_output_and_goes_on(tmp_path: Path, work: Work) -> None:
    def interrupted() -> dict[str, Any]:
        work()
        raise KeyboardInterrupt

    stamps = Stamps(tmp_path / "stamps", STAGES)
    with pytest.raises(KeyboardInterrupt):
        stamps.do("one", {"a": 1}, interrupted, work.output)
    assert stamps.do("one", {"a": 1}, work, work.output) == {"call": 2}
    assert work.found_output == [False, True]


def test_fresh_does_everything_again_from_nothing(tmp_path: Path, work: Work) -> None:
    Stamps(tmp_path / "stamps", STAGES).do("one", {"a": 1}, work, work.output)
    Stamps(tmp_path / "stamps", STAGES, fresh=True).do("one", {"a": 1}, work, work.output)
    assert work.found_output == [False, False]


def test_a_damaged_stamp_counts_as_none(tmp_path: Path, work: Work) -> None:
    stamps = Stamps(tmp_path, STAGES)
    stamps.do("two", {}, work)
    (tmp_path / "two.json").write_text("{")
    assert stamps.do("two", {}, work) == {"call": 2}
