"""What every test shares: a hygienic environment and, for tests marked `ray`, one small cluster.

The environment is set before anything imports Ray or a tokenizer: both read it once, at import.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# a background shell makes what it starts ignore SIGINT; the programs under test would inherit it
signal.signal(signal.SIGINT, signal.default_int_handler)

if TYPE_CHECKING:
    from rematch_ray.data.rows import RowEncoder

REPOSITORY = Path(__file__).resolve().parents[1]

ENVIRONMENT = {
    # without this a local cluster writes a token into the home directory and asks for it
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # the controller polls its workers this often: the default of 2 s is most of a short run
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    # a rank that skips a report would otherwise hang the run for ever
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "120",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    # nothing in the tests may reach a model hub
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
os.environ.update(ENVIRONMENT)
for inherited in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_RUNTIME_ENV_HOOK"):
    os.environ.pop(inherited, None)


# of a slow test that names no other; pyproject.toml has that of the rest
SLOW_TIMEOUT_S = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the cluster as `ray`; skip `gpu` and `browser` where there is none.

    What is slow gets more time: one that runs out of it ends the whole session, all the others too.
    """
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            _skip(items, "gpu", "no CUDA device on this machine")
    if shutil.which("chromium") is None:
        _skip(items, "browser", "no chromium on this machine")


def _skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where a test of equalities runs; a GPU computes in whole float32 there."""
    if request.param == "cuda":
        import torch

        # convolutions, of which a vision tower has one, are rounded to TF32 otherwise
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return str(request.param)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One in-process cluster of four logical CPUs for every test that asks for it.

    Four, whatever the machine has: with two, two training workers leave nothing for reading data
    and the run waits without a word. The dashboard stays on, since Train V2 asks its state API.
    """
    import ray

    # sockets live below it and their paths are limited to about 100 bytes
    temp_dir = tempfile.mkdtemp(prefix="rr-", dir="/tmp")
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    ray.init(
        num_cpus=4,
        num_gpus=0,
        object_store_memory=300_000_000,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=temp_dir,
        runtime_env={"env_vars": {**ENVIRONMENT, "PYTHONPATH": path}},
    )
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(temp_dir, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model of random weights with its processors (`tests/tiny.py` has the sizes)."""
    from tests.tiny import write_base

    return write_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def qwen2_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a Qwen2-VL; tokens and patches are those of `tiny_base`."""
    from tests.tiny import write_qwen2_base

    return write_qwen2_base(tmp_path_factory.mktemp("qwen2") / "base")


@pytest.fixture(scope="session")
def qwen3_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a Qwen3-VL; tokens and patches are those of `tiny_base`."""
    from tests.tiny import write_qwen3_base

    return write_qwen3_base(tmp_path_factory.mktemp("qwen3") / "base")


@pytest.fixture(scope="session")
def tiny_export(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of an untrained embedder on the tiny base."""
    from tests.tiny import new_embedder

    folder = tmp_path_factory.mktemp("tiny") / "export"
    new_embedder(tiny_base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tiny_base: Path) -> "RowEncoder":
    """Processors and template of the tiny base."""
    from rematch_ray.model.checkpoint import build_row_encoder
    from tests.tiny import model_settings

    return build_row_encoder(tiny_base, model_settings(tiny_base))
