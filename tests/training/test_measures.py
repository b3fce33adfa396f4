"""What a step reads is counted from its rows, and rows that break a loss are named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.model.settings import LoraSettings
from rematch_ray.training import step
from rematch_ray.training.flops import Decoder, Trained
from rematch_ray.training.measures import (
    Work,
    WorkCounter,
    describe_blame,
    device_peak,
    peak_memory_bytes,
    throughput,
)
from rematch_ray.training.settings import OptimisationSettings
from rematch_ray.training.step import Training
from tests.ranks import run_ranks
from tests.tiny import model_settings, new_embedder, objective, step_table, text_sample, train_batch

ODD = "q3"  # the query whose own words no other row has
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def training(base: Path, *, device: str = "cpu", **changes: Any) -> Training:
    return Training.build(
        model_settings(base),
        objective(),
        OptimisationSettings(**changes),
        seed=0,
        total_steps=4,
        device=device,
    )


def spoil(made: Training, number: int) -> None:
    """Make the vectors of one query not finite, whatever its words are."""

    backbone = made.joint.embedder.backbone
    ids = made.joint.embedder.row_encoder.encode(text_sample(number).query, "query").input_ids
    embed = backbone.embed

    def spoiled(input_ids: torch.Tensor, *images: torch.Tensor | None) -> Any:
        start = input_ids[:, : len(ids)]
        wanted = torch.from_numpy(ids).to(start.device)[: start.shape[1]]
        rows = (start == wanted).all(dim=1)
        embeds, deep = embed(input_ids, *images)
        return torch.where(rows[:, None, None], torch.nan, embeds), deep

    backbone.embed = spoiled  # type: ignore[method-assign]


@pytest.mark.parametrize("device", DEVICES)
def test_rows_are_named_on_every_device(tiny_base: Path, device: str) -> None:
    made = Training.build(
        model_settings(tiny_base),
        objective(),
        OptimisationSettings(),
        seed=0,
        total_steps=4,
        device=device,
    )
    spoil(made, 3)
    rows = [text_sample(n, negatives=1) for n in range(5)]
    batch = train_batch(made.joint.embedder, [rows])
    assert batch.valid.device.type == "cpu"
    with pytest.raises(FloatingPointError, match=f"query '{ODD}'"):
        made.step(batch)


def test_the_rows_to_blame_are_looked_for_where_the_model_is(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen without a second device: the batch that was moved is the one that is blamed."""
    made = training(tiny_base)
    spoil(made, 3)
    batch = train_batch(made.joint.embedder, [[text_sample(n) for n in range(5)]])
    there = batch.to("cpu")
    monkeypatch.setattr(TrainBatch, "to", lambda self, device: there)
    seen: list[TrainBatch] = []
    monkeypatch.setattr(step, "blame", lambda rows, loss: str(seen.append(rows)))
    with pytest.raises(FloatingPointError):
        made.step(batch)
    assert [rows is there for rows in seen] == [True]


@pytest.mark.parametrize(
    "changes",
    [{}, {"chunk_tokens": 64}, {"accumulation": 2}],
    ids=["at once", "gradient cache", "in parts"],
)
def test_the_row_that_breaks_a_loss_is_named_and_nothing_is_updated(
    tiny_base: Path, device: str, changes: dict[str, Any]
) -> None:
    made = training(tiny_base, device=device, **changes)
    spoil(made, 3)
    before = {name: value.clone() for name, value in made.joint.state_dict().items()}
    rows = [text_sample(n, negatives=1) for n in range(5)]
    table = step_table(made.joint.embedder.row_encoder, [rows[:2], rows[2:]])
    with pytest.raises(FloatingPointError, match=rf"of 5 rows .*: query '{ODD}'\)") as caught:
        made.step(made.collate(table, step=0))
    assert "in the terms fused, groups" in str(caught.value)
    assert made.steps_done == 0
    after = made.joint.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def _break_on_one_rank(folder: Path, base: Path) -> None:
    from rematch_ray.collectives import rank

    made = training(base)
    spoil(made, 3)
    numbers = range(2 * rank(), 2 * rank() + 2)
    table = step_table(made.joint.embedder.row_encoder, [[text_sample(n) for n in numbers]])
    try:
        made.step(made.collate(table, step=0))
    except FloatingPointError as error:
        (folder / f"said-{rank()}").write_text(str(error))


@pytest.mark.timeout(600)
def test_every_rank_names_the_row_of_the_rank_that_holds_it(
    tiny_base: Path, tmp_path: Path
) -> None:
    run_ranks(_break_on_one_rank, tmp_path, tiny_base)
    said = [(tmp_path / f"said-{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert f"of 4 rows these have vectors that are not finite: query '{ODD}')" in said[0]


def test_blame_says_when_every_row_is_broken_and_shortens_long_lists() -> None:
    assert "go on from an earlier checkpoint" in describe_blame(["a", "b"], 2, ["fused"])
    assert describe_blame([f"q{n}" for n in range(12)], 99, []).endswith("'q9' and 2 more")


def test_work_is_counted_from_the_rows(tiny_base: Path) -> None:
    embedder = new_embedder(tiny_base)
    batch = train_batch(
        embedder, [[text_sample(0, negatives=1, image=True), text_sample(1, image=True)]]
    )
    counter = WorkCounter(embedder.backbone.model.config, embedder.settings)
    work = counter.count(batch)
    assert work.pairs == 2
    assert work.tokens == int(batch.queries.mask.sum() + batch.documents.mask.sum())
    image_id = embedder.backbone.image_token_id
    assert work.visual_tokens == int((batch.documents.input_ids == image_id).sum())
    assert work.visual_tokens > 0


def test_less_training_is_less_work(tiny_base: Path) -> None:
    embedder = new_embedder(tiny_base)
    batch = train_batch(embedder, [[text_sample(n, image=True) for n in range(3)]])
    config = embedder.backbone.model.config

    def flops(**changes: object) -> int:
        return WorkCounter(config, model_settings(tiny_base, **changes)).count(batch).flops

    full, lora = flops(), flops(lora=LoraSettings(rank=2))
    only_merger = flops(freeze=("vision", "language"))
    frozen = flops(freeze=("vision", "merger", "language"))
    assert frozen < lora < full
    assert frozen < only_merger < flops(freeze=("vision",)) < full
    assert flops(lora=LoraSettings(rank=4)) > lora
    assert lora < flops(lora=LoraSettings(rank=2, train=("vision",))) < full
    assert flops(freeze_layers=2) < flops(freeze_layers=1) < full
    assert flops(lora=LoraSettings(rank=2), freeze_layers=1) < lora


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("base", ["tiny_base", "qwen2_base", "qwen3_base"])
def test_forward_operations_are_those_that_torch_counts(
    request: pytest.FixtureRequest, base: str, images: bool
) -> None:
    embedder = new_embedder(request.getfixturevalue(base))
    batch = train_batch(embedder, [[text_sample(0, image=images)]])
    counter = WorkCounter(embedder.backbone.model.config, embedder.settings)
    documents = batch.documents
    # torch does not count its own fused attention on CPU
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted, torch.no_grad():
        embedder.encode_rows(documents, "document")
    length = int(documents.mask.sum())
    linear, attention = counter._decoder.forward([length])
    # torch counts attention over the whole square, we over the half that the mask leaves
    attention = 2 * attention * length // (length + 1)
    grids = documents.image_grid_thw
    towers = (0, 0) if grids is None else counter._vision.forward(tuple(map(tuple, grids.tolist())))
    heads = 2 * sum(
        r * projection.weight.numel()  # type: ignore[union-attr]
        for r, projection in ((6, embedder.vector_projection), (1, embedder.fused_projection))
    )
    ours = linear + attention + sum(towers) + heads
    assert counted.get_total_flops() == pytest.approx(ours, rel=1e-3)


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)], ids=["full", "lora"])
def test_operations_of_a_step_are_those_that_torch_counts(
    tiny_base: Path, lora: LoraSettings | None
) -> None:
    made = Training.build(
        model_settings(tiny_base, lora=lora),
        objective(),
        OptimisationSettings(),
        seed=0,
        total_steps=4,
    )
    embedder = made.joint.embedder
    embedder.vector_projection.requires_grad_(False)
    batch = train_batch(embedder, [[text_sample(0)]]).documents
    # where the tower is trained a blank picture keeps it in use: not of this row
    embedder.backbone.model.model.visual.requires_grad_(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        embedder.encode_rows(batch, "document").states.sum().backward()
    length = int(batch.mask.sum())
    decoder = Decoder.of(embedder.backbone.model.config.get_text_config())
    _, attention = decoder.forward([length])
    # torch counts attention over the whole square, we over the half that the mask leaves
    square = 3 * (2 * attention * length // (length + 1) - attention)
    ours = decoder.step([length], Trained.of(embedder.settings)) + square
    heads = 2 * (6 * embedder.vector_projection.weight.numel())  # type: ignore[operator]
    heads += 2 * embedder.fused_projection.weight.numel()  # type: ignore[union-attr, operator]
    assert counted.get_total_flops() == pytest.approx(ours + heads, rel=5e-3)


def test_works_add_up_over_ranks() -> None:
    assert Work(1, 2, 3, 4) + Work(10, 20, 30, 40) == Work(11, 22, 33, 44)


def test_a_peak_is_never_invented() -> None:
    assert device_peak(torch.device("cpu"), "bfloat16") is None
    assert throughput(Work(1, 1, 1, 1), seconds=1, waited=0)["mfu"] is None
    assert peak_memory_bytes(torch.device("cpu")) > 50e6
