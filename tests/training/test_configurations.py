"""The run configurations that are shipped: read whole, and the one for large models takes steps."""

from pathlib import Path

import pytest

from rematch_ray.config import read_run
from rematch_ray.training.step import Training
from tests.conftest import REPOSITORY
from tests.tiny import TINY_TEMPLATE, step_table, text_sample

CONFIGS = REPOSITORY / "jobs" / "configs"


@pytest.mark.parametrize("name", ["demo", "demo-quick", "tiny-full", "qwen-vl"])
def test_a_shipped_configuration_is_read(name: str) -> None:
    assert read_run(CONFIGS / f"{name}.yaml").name == name


@pytest.mark.parametrize("base", ["tiny_base", "qwen3_base"])
def test_the_one_for_large_models_lowers_the_loss_of_a_small_one(
    request: pytest.FixtureRequest, base: str
) -> None:
    path: Path = request.getfixturevalue(base)
    sizes = ["model.ladder=[1x1, 2x3, 4x6]", "model.fuse_k=3", "model.max_pixels=1024"]
    quick = ["optimisation.chunk_tokens=120", "optimisation.warmup_steps=0"]
    run = read_run(CONFIGS / "qwen-vl.yaml", [f"model.base={path}", *sizes, *quick])
    assert run.model.dtype == "bfloat16" and run.model.lora and run.model.gradient_checkpointing
    model = run.model.model_copy(update={"template": TINY_TEMPLATE})
    made = Training.build(
        model, run.objective, run.optimisation, seed=0, total_steps=8, strategy=run.strategy
    )
    samples = [text_sample(n, negatives=1, image=n % 2 == 0) for n in range(6)]
    table = step_table(made.joint.embedder.row_encoder, [samples[:3], samples[3:]])
    losses = [made.step(made.collate(table, step=0))["loss"] for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]
