"""Ranks that do not divide a step's sub-batches do what one process does."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rematch_ray.collectives import rank, world_size
from rematch_ray.data.samples import SampleEncoder
from rematch_ray.data.schema import Sample, samples_to_table
from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.training.settings import OptimisationSettings
from rematch_ray.training.step import Training
from tests.ranks import run_ranks
from tests.tiny import model_settings, objective, text_sample

pytestmark = pytest.mark.timeout(600)

ROWS = 2
# rank 0 of three has two sub-batches, the others one and a masked one
SUB_BATCHES: list[list[Sample]] = [
    [text_sample(ROWS * n + i, negatives=n % 3, image=n == 1) for i in range(ROWS)]
    for n in range(4)
]
OBJECTIVES: dict[str, dict[str, Any]] = {
    "joint": {"match_mined": 1.0},
    "pooled, half of the rows match": {"hard_negatives": "pooled", "match_share": 0.5},
    "margin": {"margin": 0.05, "learn_temperatures": True},
    "metaembed": {"preset": "metaembed", "w_match": 0, "temperature_maxsim": 1.0},
}


def batch_of(training: Training, sub_batches: list[list[Sample]], step: int) -> TrainBatch:
    """What the stream hands a rank: its sub-batches, then masked rows up to the others' number."""
    most = -(-len(sub_batches) // world_size())
    mine = sub_batches[rank() :: world_size()]
    encode = SampleEncoder(training.joint.embedder.row_encoder, max_negatives=8, seed=0)
    tables = [samples_to_table(samples) for samples in mine]
    table = encode(tables, step, masked_rows=ROWS * (most - len(mine)))
    return training.collate(table, step=step)


def run(base: Path, settings: dict[str, Any], sub_batches: list[list[Sample]]) -> dict[str, Any]:
    training = Training.build(
        model_settings(base),
        objective(**settings),
        OptimisationSettings(learning_rate=1e-3, warmup_steps=0),
        seed=0,
        total_steps=10,
    )
    metrics = [training.step(batch_of(training, sub_batches, step)) for step in range(2)]
    weights = {name: t.detach().clone() for name, t in training.joint.state_dict().items()}
    return {"metrics": metrics, "weights": weights}


def _all(folder: Path, base: Path) -> None:
    results = {name: run(base, settings, SUB_BATCHES) for name, settings in OBJECTIVES.items()}
    results["two of three"] = run(base, {}, SUB_BATCHES[:2])
    torch.save(results, folder / f"{rank()}.pt")


@pytest.fixture(scope="module")
def together(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("masked")
    run_ranks(_all, folder, tiny_base, world_size=3)
    return [torch.load(folder / f"{index}.pt") for index in range(3)]


def assert_the_same(got: list[dict[str, Any]], want: dict[str, Any]) -> None:
    for step, single in enumerate(want["metrics"]):
        assert got[0]["metrics"][step].keys() == single.keys()
        for name, value in single.items():
            assert got[0]["metrics"][step][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    for name, weight in got[0]["weights"].items():
        assert all(torch.equal(weight, other["weights"][name]) for other in got[1:]), name


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_three_ranks_share_four_sub_batches(
    tiny_base: Path, together: list[dict[str, Any]], name: str
) -> None:
    want = run(tiny_base, OBJECTIVES[name], SUB_BATCHES)
    assert_the_same([results[name] for results in together], want)


def test_a_rank_may_hold_masked_rows_alone(tiny_base: Path, together: list[dict[str, Any]]) -> None:
    want = run(tiny_base, {}, SUB_BATCHES[:2])
    assert_the_same([results["two of three"] for results in together], want)
