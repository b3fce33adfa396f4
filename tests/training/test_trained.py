"""The weights of a checkpoint are read in one process, whatever wrote them."""

from pathlib import Path

import pytest
import torch

from rematch_ray.collectives import rank, world_size
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.settings import LoraSettings, ModelSettings
from rematch_ray.training.settings import OptimisationSettings
from rematch_ray.training.step import Training
from rematch_ray.training.strategies import StrategySettings
from rematch_ray.training.trained import trained_embedder
from tests.ranks import run_ranks
from tests.tiny import model_settings, objective, step_table, text_sample

TEXTS = ["the red bar", "a blue circle left of it"]


def train_and_save(folder: Path, settings: ModelSettings, strategy: str) -> None:
    made = Training.build(
        settings,
        objective(),
        OptimisationSettings(warmup_steps=0, learning_rate=1e-2),
        seed=0,
        total_steps=4,
        strategy=StrategySettings(name=strategy),  # type: ignore[arg-type]
    )
    numbers = range(2 * rank(), 2 * rank() + 2)
    rows = [text_sample(number, negatives=1) for number in numbers]
    made.step(made.collate(step_table(made.joint.embedder.row_encoder, [rows]), step=0))
    made.save(folder / "state")
    made.export(folder / "export")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("strategy", "ranks", "lora"),
    [("ddp", 1, None), ("ddp", 1, LoraSettings(rank=2)), ("fsdp2", 2, None)],
    ids=["alone", "adapters", "fsdp2"],
)
def test_a_state_holds_the_model_that_is_exported(
    tiny_base: Path, tmp_path: Path, strategy: str, ranks: int, lora: LoraSettings | None
) -> None:
    settings = model_settings(tiny_base, lora=lora)
    if ranks == 1:
        assert world_size() == 1
        train_and_save(tmp_path, settings, strategy)
    else:
        run_ranks(train_and_save, tmp_path, settings, strategy, world_size=ranks)
    read = trained_embedder(settings, objective(), tmp_path / "state", name="run")
    exported = Embedder.from_pretrained(tmp_path / "export", device="cpu")
    fresh = Embedder.build(settings)
    for side in ("query", "document"):
        ours, theirs = (model.encode(TEXTS, side) for model in (read, exported))
        torch.testing.assert_close(ours.vectors, theirs.vectors, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.fused, theirs.fused, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(ours.vectors, fresh.encode(TEXTS, side).vectors, atol=1e-2)
