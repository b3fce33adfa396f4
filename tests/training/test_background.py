"""A state written in the background is the state at the call, on one rank and on two."""

from pathlib import Path

import pytest
import torch

from rematch_ray.collectives import rank
from rematch_ray.training.settings import OptimisationSettings
from rematch_ray.training.step import Training
from tests.ranks import run_ranks
from tests.tiny import model_settings, objective, step_table, text_sample

pytestmark = pytest.mark.timeout(300)


def build(base: Path) -> Training:
    optimisation = OptimisationSettings(learning_rate=1e-3, warmup_steps=0)
    return Training.build(model_settings(base), objective(), optimisation, seed=0, total_steps=10)


def one_step(training: Training) -> None:
    encoder = training.joint.embedder.row_encoder
    rows = [text_sample(2 * rank() + i, negatives=1) for i in range(2)]
    training.step(training.collate(step_table(encoder, [rows]), step=training.steps_done))


def weights(training: Training) -> dict[str, torch.Tensor]:
    return {name: t.detach().clone() for name, t in training.joint.state_dict().items()}


def check_that_a_later_step_does_not_show(folder: Path, base: Path) -> None:
    training = build(base)
    one_step(training)
    saved = weights(training)
    written = training.save_async(folder / "state")
    one_step(training)
    written.result(timeout=60)
    moments = training.optimizer.state_dict()["state"]
    restored = build(base)
    restored.load(folder / "state")
    assert restored.steps_done == 1
    for name, weight in weights(restored).items():
        assert torch.equal(weight, saved[name]), name
    # the optimiser's averages are those of the first step, too
    assert all(int(entry["step"]) == 2 for entry in moments.values())
    restored_moments = restored.optimizer.state_dict()["state"]
    assert all(int(entry["step"]) == 1 for entry in restored_moments.values())
    one_step(restored)
    for name, weight in weights(restored).items():
        assert torch.equal(weight, weights(training)[name]), name


def check_that_a_full_disk_is_told(folder: Path, base: Path) -> None:
    training = build(base)
    one_step(training)
    state = folder / "full"
    if rank() == 0:
        state.mkdir(exist_ok=True)
        (state / "__0_0.distcp").symlink_to("/dev/full")
    error = training.save_async(state).exception(timeout=60)
    assert "No space left" in str(error)
    training.save_async(folder / "next").result(timeout=60)


def _both(folder: Path, base: Path) -> None:
    check_that_a_later_step_does_not_show(folder, base)
    check_that_a_full_disk_is_told(folder, base)


def test_one_process_writes_what_it_held_at_the_call(tiny_base: Path, tmp_path: Path) -> None:
    _both(tmp_path, tiny_base)


def test_two_ranks_write_what_they_held_at_the_call(tiny_base: Path, tmp_path: Path) -> None:
    run_ranks(_both, tmp_path, tiny_base)
