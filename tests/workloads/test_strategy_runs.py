"""Slow proof that `rematch-ray train` goes through on the demo corpus under every strategy.

Two workers, stopped in the middle and given again; every strategy sees the same losses.
"""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import ray.data
import yaml

from rematch_ray.cli import main
from rematch_ray.config import RunConfig, read_run
from rematch_ray.data.demo import write_demo
from rematch_ray.model.embedder import Embedder
from rematch_ray.workloads.run_directory import RunDirectory
from tests.conftest import REPOSITORY
from tests.workloads.runs import records, when

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

STOP_AFTER = 4
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"name": "ddp"},
    "fsdp2": {"name": "fsdp2"},
    "zero1": {"name": "deepspeed", "zero_stage": 1},
    "zero2": {"name": "deepspeed", "zero_stage": 2},
    "zero3": {"name": "deepspeed", "zero_stage": 3},
}
NEEDS_DEEPSPEED = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="deepspeed is not installed"
)


@pytest.fixture(scope="module")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder, sources=("emoji", "scenes"), quick=True)
    return folder


@pytest.fixture(scope="module")
def losses() -> dict[str, list[float]]:
    """Loss of every step, by strategy."""
    return {}


@pytest.fixture
def _restored_data_context() -> Iterator[None]:
    before = ray.data.DataContext.get_current().copy()
    yield
    ray.data.DataContext._set_current(before)


def demo_run(folder: Path, data: Path, strategy: dict[str, Any]) -> Path:
    """The shipped quick configuration with another strategy, on the gradient cache, as a file."""
    config = REPOSITORY / "jobs" / "configs" / "demo-quick.yaml"
    run = read_run(config, [f"storage={folder}", "name=run", "optimisation.chunk_tokens=1024"])
    given = run.model_dump(mode="json", exclude_unset=True) | {"strategy": strategy}
    given["data"]["demo"]["out"] = str(data)
    for source in given["data"]["sources"]:
        source["path"] = str(data / source["name"] / "train")
    given["model"]["base"] = str(REPOSITORY / "rematch_ray" / "assets" / "tiny-base")
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(given))
    return file


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "_restored_data_context")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[NEEDS_DEEPSPEED] if name.startswith("zero") else [])
        for name in STRATEGIES
    ],
)
def test_a_demo_run_is_stopped_goes_on_and_learns_as_under_ddp(
    tmp_path: Path,
    demo_data: Path,
    losses: dict[str, list[float]],
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    file = demo_run(tmp_path, demo_data, STRATEGIES[name])
    run: RunConfig = read_run(file, [])
    stopper = when(
        lambda: len(records(run, "step")) > STOP_AFTER, RunDirectory(run.directory).ask_to_stop
    )
    assert main(["train", "--config", str(file), "--json"]) == 0, capsys.readouterr().err
    stopper.join()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["stopped"]
    assert main(["train", "--config", str(file), "--json"]) == 0, capsys.readouterr().err
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    steps = records(run, "step")
    assert done["steps"] == run.train.steps
    assert [record["step"] for record in steps] == list(range(run.train.steps))
    assert records(run, "start")[-1]["from_step"] > STOP_AFTER
    losses[name] = [record["metrics"]["loss"] for record in steps]
    if "ddp" in losses:
        assert losses[name] == pytest.approx(losses["ddp"], rel=2e-3)
    exported = Embedder.from_pretrained(run.directory / "last", device="cpu")
    assert exported.encode_query(["a red bar"]).vectors.isfinite().all()
