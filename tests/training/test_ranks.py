"""One process and two give the same loss, gradients, steps and state, whatever each rank holds."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rematch_ray.collectives import rank, world_size
from rematch_ray.data.schema import Item, Part, Positive, Sample
from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.model.settings import LoraSettings
from rematch_ray.training.gradient_cache import accumulate
from rematch_ray.training.settings import OptimisationSettings
from rematch_ray.training.step import Training
from tests.ranks import run_ranks
from tests.tiny import model_settings, objective, step_table, text_sample

# two processes import everything anew, which takes its time on a busy machine
pytestmark = pytest.mark.timeout(600)

OPTIMISATION = OptimisationSettings(learning_rate=1e-3, warmup_steps=0)
BAD = Sample(
    Item.of("broken", id="q99"),
    (Positive(Item("d99", (Part("image", image=b"no image"),))),),
    source="notes",
)


def rows(*numbers: int, negatives: int = 0, image: bool = False) -> list[Sample]:
    return [text_sample(number, negatives=negatives, image=image) for number in numbers]


def same_positive(*numbers: int) -> list[Sample]:
    return [replace(sample, positives=text_sample(50).positives) for sample in rows(*numbers)]


@dataclass(frozen=True)
class Case:
    """A step: its sub-batches (rank r of W takes every W-th, from r on) and settings."""

    sub_batches: Sequence[Sequence[Sample]]
    objective: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    optimisation: dict[str, Any] = field(default_factory=dict)


# the first rank has pictures and two hard negatives a row, the second texts and none
UNEVEN = [rows(0, 1, negatives=2, image=True), rows(2, 3)]
CROSSED = [
    [text_sample(0, negatives=1), replace(text_sample(1), query=text_sample(2).query)],
    [text_sample(2, negatives=1), replace(text_sample(3), positives=text_sample(0).positives)],
]
CASES = {
    "private hard negatives on one rank": Case(UNEVEN),
    "pooled hard negatives on one rank": Case(UNEVEN, {"hard_negatives": "pooled"}),
    "no pair to match on one rank": Case([rows(0, 1, negatives=1), same_positive(2, 3)]),
    "no pair to match at all": Case([same_positive(0, 1), same_positive(2, 3)]),
    "queries and documents on both ranks": Case(CROSSED, {"match_mined": 1.0}),
    "the same, pooled": Case(CROSSED, {"hard_negatives": "pooled"}),
    "a sample that failed": Case([[BAD, *rows(0, negatives=1)], rows(1, 2, image=True)]),
    "two sub-batches a rank": Case([rows(2 * n, 2 * n + 1, negatives=n % 2) for n in range(4)]),
    "half of the rows match": Case(UNEVEN, {"match_share": 0.5, "match_mined": 1.0}),
    "margin and learned temperatures": Case(
        UNEVEN, {"margin": 0.05, "learn_temperatures": True, "temperature_maxsim": 0.15}
    ),
    "rematch": Case(UNEVEN, {"preset": "rematch"}),
    "metaembed": Case(UNEVEN, {"preset": "metaembed", "w_match": 0, "temperature_maxsim": 1.0}),
    "adapters": Case(UNEVEN, {}, {"lora": LoraSettings(rank=2)}),
    "recomputed layers, frozen vision": Case(
        UNEVEN, {}, {"gradient_checkpointing": True, "freeze": ("vision", "merger")}
    ),
    # one rank has more chunks than the other, and pictures in some of them
    "chunks": Case(UNEVEN, optimisation={"chunk_tokens": 60}),
    "chunks, mined pairs across them": Case(
        [rows(0, 1, 2, negatives=2, image=True), rows(3, 4, 5)],
        {"match_mined": 1.0, "match_temperature": 10.0, "hard_negatives": "pooled"},
        optimisation={"chunk_tokens": 60},
    ),
    "chunks, adapters, recomputed": Case(
        UNEVEN,
        {},
        {"gradient_checkpointing": True, "lora": LoraSettings(rank=2)},
        {"chunk_tokens": 60},
    ),
    "two parts": Case(
        [rows(2 * n, 2 * n + 1, negatives=n % 2) for n in range(4)],
        optimisation={"accumulation": 2},
    ),
}


def build(base: Path, case: Case) -> Training:
    return Training.build(
        model_settings(base, **case.model),
        objective(**case.objective),
        OPTIMISATION.model_copy(update=case.optimisation),
        seed=0,
        total_steps=10,
    )


def mine(training: Training, case: Case, step: int) -> TrainBatch:
    """The sub-batches of this rank."""
    encoder = training.joint.embedder.row_encoder
    dealt = case.sub_batches[rank() :: world_size()]
    return training.collate(step_table(encoder, dealt, step=step), step=step)


def run(base: Path, case: Case) -> dict[str, Any]:
    """One backward pass, then two steps: gradients, metrics and weights."""
    training = build(base, case)
    accumulate(
        training.wrapped,
        training.joint,
        mine(training, case, 3),
        backward=training.strategy.backward,
        announce=training.strategy.announce,
        chunk_tokens=training.settings.chunk_tokens,
        parts=training.settings.accumulation,
    )
    gradients = {
        name: p.grad.clone() for name, p in training.joint.named_parameters() if p.grad is not None
    }
    metrics = [training.step(mine(training, case, step)) for step in range(2)]
    return {
        "gradients": gradients,
        "metrics": metrics,
        "weights": {n: t.detach().clone() for n, t in training.joint.state_dict().items()},
    }


def _all_cases(folder: Path, base: Path) -> None:
    results = {name: run(base, case) for name, case in CASES.items()}
    torch.save(results, folder / f"{rank()}.pt")
    case = CASES["margin and learned temperatures"]
    training = build(base, case)
    training.step(mine(training, case, 0))
    training.save(folder / "state")
    exported = training.export(folder / f"export-{rank()}")
    assert (exported is None) == (rank() != 0)


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks left behind; all cases share one pair of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(_all_cases, folder, tiny_base)
    return folder


@pytest.fixture(scope="module")
def together(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{index}.pt") for index in range(2)]


@pytest.mark.parametrize("name", list(CASES))
def test_two_ranks_do_what_one_process_does(
    tiny_base: Path, together: list[dict[str, Any]], name: str
) -> None:
    want = run(tiny_base, CASES[name])
    first, second = (results[name] for results in together)
    assert first["gradients"].keys() == want["gradients"].keys()
    scale = max(float(gradient.abs().max()) for gradient in want["gradients"].values())
    for key, gradient in want["gradients"].items():
        torch.testing.assert_close(
            first["gradients"][key], gradient, atol=1e-5 * scale, rtol=1e-5, msg=key
        )
        assert torch.equal(first["gradients"][key], second["gradients"][key]), key
    assert first["metrics"] == second["metrics"]
    for got, single in zip(first["metrics"], want["metrics"], strict=True):
        assert got.keys() == single.keys()
        for metric, value in single.items():
            assert got[metric] == pytest.approx(value, rel=1e-4, abs=1e-5), metric
    for key, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][key]), key


def test_state_of_two_ranks_is_continued_by_one(tiny_base: Path, folder: Path) -> None:
    case = CASES["margin and learned temperatures"]
    alone = build(tiny_base, case)
    alone.step(mine(alone, case, 0))
    resumed = build(tiny_base, case)
    resumed.load(folder / "state")
    assert resumed.steps_done == 1
    first, second = (training.step(mine(training, case, 1)) for training in (alone, resumed))
    for metric, value in first.items():
        assert second[metric] == pytest.approx(value, rel=1e-3, abs=1e-4), metric


def test_only_the_first_rank_exports(folder: Path) -> None:
    assert (folder / "export-0" / "rematch.json").is_file()
    assert not (folder / "export-1").exists()


def _drop(folder: Path, base: Path) -> None:
    """The masks of two ranks with the same rows, over two steps."""
    case = Case(UNEVEN, {}, {"lora": LoraSettings(rank=2, dropout=0.5)})
    training = build(base, case)
    [first, *_] = [m for m in training.joint.modules() if isinstance(m, torch.nn.Dropout) and m.p]
    seen: list[torch.Tensor] = []
    first.register_forward_hook(lambda _, given, out: seen.append((out == 0) & (given[0] != 0)))
    encoder = training.joint.embedder.row_encoder
    marks = []
    for step in range(2):
        seen.clear()
        rows = step_table(encoder, [case.sub_batches[1]], step=step)
        training.step(training.collate(rows, step=step))
        marks.append(seen[0])
    torch.save(marks, folder / f"masks-{rank()}.pt")


def test_ranks_and_steps_drop_different_weights(tiny_base: Path, tmp_path: Path) -> None:
    run_ranks(_drop, tmp_path, tiny_base)
    masks = [mask for index in range(2) for mask in torch.load(tmp_path / f"masks-{index}.pt")]
    assert all(mask.any() for mask in masks)
    for number, mask in enumerate(masks):
        assert not any(torch.equal(mask, other) for other in masks[:number])
