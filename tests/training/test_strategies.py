"""Every strategy trains like one process: the cells of the table in docs/strategies.md.

Two processes with rows of unequal length, the second without images, against one plain process. All
cells of a strategy share one pair of processes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from rematch_ray.collectives import rank, world_size
from rematch_ray.data.schema import Sample
from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.errors import UserError
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.settings import LoraSettings
from rematch_ray.training import strategy_torch
from rematch_ray.training.settings import TEMPERATURE_RANGE, OptimisationSettings
from rematch_ray.training.step import Training
from rematch_ray.training.strategies import StrategySettings, check_strategy, deepspeed_config
from rematch_ray.training.trained import trained_embedder
from tests.ranks import run_ranks
from tests.tiny import model_settings, objective, png, step_table, text_sample

pytestmark = pytest.mark.timeout(900)

FAST = OptimisationSettings(
    learning_rate=1e-3, warmup_steps=0, weight_decay=0.1, clip=0.5, probe_every=2
)
STEPS = 3
BFLOAT16 = StrategySettings(precision="bfloat16")
# nothing is so small that every process keeps it
SHARD_ALL = {
    "zero_optimization": {
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": "auto",
    },
    "train_batch_size": "auto",
}
STRATEGIES = {
    "ddp": StrategySettings(),
    "fsdp2": StrategySettings(name="fsdp2"),
    "fsdp2, weights kept": StrategySettings(name="fsdp2", reshard_after_forward=False),
    "zero1": StrategySettings(name="deepspeed", zero_stage=1),
    "zero2": StrategySettings(name="deepspeed"),
    "zero3": StrategySettings(name="deepspeed", zero_stage=3, deepspeed_config=SHARD_ALL),
}
NEEDS_DEEPSPEED = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="deepspeed is not installed"
)
ALL = [
    pytest.param(name, marks=[NEEDS_DEEPSPEED] if name.startswith("zero") else [])
    for name in STRATEGIES
]
ALL_SLOW_BUT_FSDP2 = [
    param
    if param.values == ("fsdp2",)
    else pytest.param(*param.values, marks=[*param.marks, pytest.mark.slow])
    for param in ALL
]


@dataclass(frozen=True)
class Cell:
    """A column of the table: what is set beside the strategy."""

    objective: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    optimisation: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)

    @property
    def is_rough(self) -> bool:
        """Whether layers compute in bfloat16, so that the order of sums shows."""
        return "bfloat16" in (self.strategy.get("precision"), self.model.get("dtype"))

    @property
    def is_compiled(self) -> bool:
        return bool(self.strategy.get("compile"))

    @property
    def plain(self) -> "Cell":
        """The cell whose results are wanted: nothing compiled."""
        return replace(self, strategy={**self.strategy, "compile": False})


LORA = LoraSettings(rank=2, train=("merger",))
CELLS = {
    "shared_kv": Cell({"learn_temperatures": True, "temperature_maxsim": 0.15}),
    "packed": Cell({"match_form": "packed"}),
    "checkpointing": Cell(model={"gradient_checkpointing": True}),
    "gradient cache": Cell(optimisation={"chunk_tokens": 96}),
    "gradient cache, checkpointing": Cell(
        model={"gradient_checkpointing": True}, optimisation={"chunk_tokens": 96}
    ),
    "accumulation": Cell(optimisation={"accumulation": 2}),
    "LoRA": Cell(model={"lora": LORA}),
    "LoRA, gradient cache, checkpointing": Cell(
        model={"lora": LORA, "gradient_checkpointing": True}, optimisation={"chunk_tokens": 96}
    ),
    "frozen": Cell(model={"freeze": ("vision", "merger"), "freeze_layers": 1}),
    # its gradient is a small part of the whole; here it is most of it
    "matching alone": Cell({"w_match": 1000.0}),
    "matching alone, gradient cache, checkpointing": Cell(
        {"w_match": 1000.0, "match_mined": 1.0, "match_temperature": 10.0},
        {"gradient_checkpointing": True},
        {"chunk_tokens": 96},
    ),
    "bfloat16": Cell(strategy={"precision": "bfloat16"}),
    "bfloat16 weights, LoRA, gradient cache, checkpointing": Cell(
        model={
            "dtype": "bfloat16",
            "lora": LoraSettings(rank=2),
            "gradient_checkpointing": True,
        },
        optimisation={"chunk_tokens": 96},
    ),
    "compiled": Cell(strategy={"compile": True}),
    "compiled, LoRA, gradient cache, checkpointing": Cell(
        model={"lora": LORA, "gradient_checkpointing": True},
        optimisation={"chunk_tokens": 96},
        strategy={"compile": True},
    ),
    "metaembed": Cell({"preset": "metaembed", "w_match": 0, "temperature_maxsim": 1.0}),
}


def rows(*numbers: int, negatives: int = 0, image: bool = False) -> list[Sample]:
    return [text_sample(number, negatives=negatives, image=image) for number in numbers]


# dealt in turn: the first rank has pictures and hard negatives, the second texts and none
SUB_BATCHES: Sequence[Sequence[Sample]] = [
    rows(0, 1, negatives=2, image=True),
    rows(2, 3),
    rows(4, 5, negatives=1, image=True),
    rows(6, 7),
]


def build(base: Path, cell: Cell, strategy: StrategySettings, *, seed: int = 0) -> Training:
    return Training.build(
        model_settings(base, **cell.model),
        objective(**cell.objective),
        FAST.model_copy(update=cell.optimisation),
        seed=seed,
        total_steps=10,
        strategy=strategy.model_copy(update=cell.strategy),
    )


def mine(training: Training, step: int) -> TrainBatch:
    encoder = training.joint.embedder.row_encoder
    # under accumulation a part holds the same rows at every world size
    return training.collate(step_table(encoder, dealt(), step=step), step=step)


def dealt() -> Sequence[Sequence[Sample]]:
    return SUB_BATCHES[rank() :: world_size()]


def run(base: Path, cell: Cell, strategy: StrategySettings) -> dict[str, Any]:
    training = build(base, cell, strategy)
    metrics = [training.step(mine(training, step)) for step in range(STEPS)]
    return {"metrics": metrics, "weights": training.strategy.full_state()}


def _cells(folder: Path, base: Path, name: str, cells: dict[str, Cell]) -> None:
    """Runs cells on one rank, then saves, exports, resumes and refuses."""
    strategy = STRATEGIES[name]
    results = {key: run(base, cell, strategy) for key, cell in cells.items()}
    torch.save(results, folder / f"{rank()}.pt")
    training = build(base, CELLS["LoRA"], strategy)
    training.step(mine(training, 0))
    training.save(folder / "state")
    training.save_async(folder / "async").result()
    training.export(folder / "export")
    after = training.step(mine(training, 1))
    for state in ("state", "async"):
        resumed = build(base, CELLS["LoRA"], strategy, seed=7)
        resumed.load(folder / state)
        assert resumed.steps_done == 1
        assert resumed.step(mine(resumed, 1)) == pytest.approx(after, rel=1e-4, abs=1e-5)
    _refuses_what_is_not_finite(training)


def weights_now(training: Training) -> dict[str, torch.Tensor]:
    """Copies: what a strategy hands out may be the tensors in use."""
    return {name: value.clone() for name, value in training.strategy.full_state().items()}


def _refuses_what_is_not_finite(training: Training) -> None:
    before = weights_now(training)
    backward = training.strategy.backward

    def broken(loss: torch.Tensor, last: bool) -> None:
        backward(loss * torch.inf, last)

    training.strategy.backward = broken  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match="gradient norm"):
        training.step(mine(training, 2))
    after = training.strategy.full_state()
    assert all(torch.equal(before[name], after[name]) for name in before)


FEW = ("shared_kv", "LoRA, gradient cache, checkpointing")


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    """What one plain process does in every cell, as they are asked for."""
    return {}


def _compare(
    base: Path, folder: Path, name: str, keys: Sequence[str], alone: dict[str, dict[str, Any]]
) -> None:
    run_ranks(_cells, folder, base, name, {key: CELLS[key] for key in keys})
    first, second = (torch.load(folder / f"{index}.pt") for index in range(2))
    for key in keys:
        if key not in alone:
            alone[key] = run(base, CELLS[key].plain, StrategySettings())
        want, got = alone[key], first[key]
        assert got["metrics"] == second[key]["metrics"]
        if CELLS[key].is_rough:
            _nearly(key, got["metrics"], want["metrics"])
            continue
        for step, (ours, single) in enumerate(zip(got["metrics"], want["metrics"], strict=True)):
            assert ours.keys() == single.keys(), key
            for metric, value in single.items():
                close = pytest.approx(value, rel=1e-4, abs=1e-5)
                assert ours[metric] == close, (key, step, metric)
        for weight, value in want["weights"].items():
            torch.testing.assert_close(
                got["weights"][weight], value, atol=1e-4, rtol=1e-4, msg=f"{key}: {weight}"
            )
    model = model_settings(base, **CELLS["LoRA"].model)
    _embed_alike(
        Embedder.from_pretrained(folder / "export", device="cpu"),
        trained_embedder(model, objective(), folder / "state"),
    )


def _nearly(key: str, ours: Sequence[dict[str, float]], single: Sequence[dict[str, float]]) -> None:
    """Losses to two hundredths: the sums of bfloat16 layers depend on who holds which rows."""
    for got, want in zip(ours, single, strict=True):
        assert got.keys() == want.keys(), key
        for metric in [name for name in want if name.startswith("loss")]:
            assert got[metric] == pytest.approx(want[metric], rel=0.02, abs=0.01), (key, metric)
        assert got["gradient_norm"] == pytest.approx(want["gradient_norm"], rel=0.1), key


def _embed_alike(first: Embedder, second: Embedder) -> None:
    inputs = ["a red bar", png()]
    ours, theirs = (model.encode_document(inputs) for model in (first, second))
    assert float((ours.vectors * theirs.vectors).sum(dim=-1).min()) >= 0.999


@pytest.mark.parametrize("name", ALL)
def test_two_ranks_do_what_one_process_does(
    tiny_base: Path, tmp_path: Path, alone: dict[str, dict[str, Any]], name: str
) -> None:
    _compare(tiny_base, tmp_path, name, FEW, alone)


@pytest.mark.parametrize("name", ALL_SLOW_BUT_FSDP2)
def test_two_ranks_do_what_one_process_does_with_a_qwen3(
    qwen3_base: Path, tmp_path: Path, name: str
) -> None:
    """Its vision tower feeds the decoder in several places; the second rank has no images."""
    keys = FEW if name == "fsdp2" else (*FEW, "packed", "gradient cache", "frozen")
    _compare(qwen3_base, tmp_path, name, keys, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_cell_of_the_table(
    tiny_base: Path, tmp_path: Path, alone: dict[str, dict[str, Any]], name: str
) -> None:
    keys = [key for key, cell in CELLS.items() if not cell.is_compiled]
    _compare(tiny_base, tmp_path, name, keys, alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", [param for param in ALL if param.values != ("zero3",)])
def test_compiled_layers_do_what_plain_ones_do(
    tiny_base: Path, tmp_path: Path, alone: dict[str, dict[str, Any]], name: str
) -> None:
    keys = [key for key, cell in CELLS.items() if cell.is_compiled]
    _compare(tiny_base, tmp_path, name, keys, alone)


def _cross(folder: Path, base: Path, states: Path) -> None:
    """On two ranks: either strategy continues the other, and one process; bfloat16 stays near."""
    cell = CELLS["shared_kv"]
    for name in ("ddp", "fsdp2"):
        resumed = build(base, cell, STRATEGIES[name], seed=5)
        resumed.load(states / "one")
        torch.save(resumed.step(mine(resumed, 1)), folder / f"{name}-{rank()}.pt")
    made = {name: build(base, cell, STRATEGIES[name]) for name in ("ddp", "fsdp2")}
    after = {}
    for name, training in made.items():
        training.step(mine(training, 0))
        training.save(states / name)
        after[name] = training.step(mine(training, 1))
    for name, other in (("ddp", "fsdp2"), ("fsdp2", "ddp")):
        resumed = build(base, cell, STRATEGIES[other], seed=5)
        resumed.load(states / name)
        assert resumed.step(mine(resumed, 1)) == pytest.approx(after[name], rel=1e-3, abs=1e-4)
    for name in ("ddp", "fsdp2"):
        half = STRATEGIES[name].model_copy(update={"precision": "bfloat16"})
        rough = run(base, cell, half)["metrics"]
        exact = run(base, cell, STRATEGIES[name])["metrics"]
        for got, want in zip(rough, exact, strict=True):
            assert got["loss"] == pytest.approx(want["loss"], rel=0.05)
            assert got["loss"] != want["loss"]


def _continue(folder: Path, base: Path, states: Path) -> None:
    """On one rank of fsdp2: continues what two ranks of ddp saved."""
    resumed = build(base, CELLS["shared_kv"], STRATEGIES["fsdp2"], seed=5)
    resumed.load(states / "ddp")
    metrics = resumed.step(mine(resumed, 1))
    torch.save(metrics, folder / "metrics.pt")


def test_states_cross_strategies_and_world_sizes(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    cell = CELLS["shared_kv"]
    straight = build(tiny_base, cell, StrategySettings())
    straight.step(mine(straight, 0))
    straight.save(tmp_path / "states" / "one")
    want = straight.step(mine(straight, 1))
    run_ranks(_cross, tmp_path, tiny_base, tmp_path / "states")
    run_ranks(_continue, tmp_path / "one", tiny_base, tmp_path / "states", world_size=1)
    found = [torch.load(tmp_path / "one" / "metrics.pt")]
    found += [torch.load(path) for path in sorted(tmp_path.glob("*-[01].pt"))]
    assert len(found) == 5
    for name in ("ddp", "fsdp2"):
        resumed = build(tiny_base, cell, StrategySettings(), seed=5)
        resumed.load(tmp_path / "states" / name)
        found.append(resumed.step(mine(resumed, 1)))
    for got in found:
        assert got == pytest.approx(want, rel=1e-3, abs=1e-4)


def test_bfloat16_leaves_weights_scores_and_losses_float32(tiny_base: Path) -> None:
    training = build(tiny_base, CELLS["LoRA"], BFLOAT16)
    kinds = {}
    layer = training.joint.embedder.backbone.model.model.language_model.layers[0]
    layer.mlp.gate_proj.register_forward_hook(lambda *seen: kinds.update(layer=seen[2].dtype))
    loss = training.joint(mine(training, 0))
    assert kinds == {"layer": torch.bfloat16}
    assert loss.total.dtype == torch.float32
    assert {p.dtype for p in training.joint.parameters()} == {torch.float32}
    training.joint.eval()
    training.joint.embedder.encode_query("a red bar")
    assert kinds == {"layer": torch.float32}


def test_adapters_beside_bfloat16_weights_are_float32(tiny_base: Path) -> None:
    lora = LoraSettings(rank=2)
    training = build(tiny_base, Cell(model={"dtype": "bfloat16", "lora": lora}), StrategySettings())
    trained = {p.dtype for p in training.joint.parameters() if p.requires_grad}
    assert trained == {torch.float32}
    losses = [training.step(mine(training, 0))["loss"] for _ in range(3)]
    assert losses[-1] < losses[0]


def test_opened_parts_train_beside_adapters_and_frozen_layers_do_not(tiny_base: Path) -> None:
    lora = LoraSettings(rank=2, train=("vision", "embeddings"))
    training = build(tiny_base, Cell(model={"lora": lora, "freeze_layers": 1}), StrategySettings())
    names = {name for name, p in training.joint.named_parameters() if p.requires_grad}
    assert any(".visual.blocks." in name for name in names)
    assert any("embed_tokens" in name for name in names)
    assert not any(".visual.merger." in name for name in names)
    assert any(".layers.1." in name and ".lora_" in name for name in names)
    assert not any(".layers.0." in name for name in names)
    with pytest.raises(UserError, match="freeze_layers is 3, and the base model has 2"):
        build(tiny_base, Cell(model={"freeze_layers": 3}), StrategySettings())


def refusals() -> dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]]:
    """Strategy, model, further arguments of `check_strategy`, and words of the refusal."""
    zero = {"name": "deepspeed"}
    lora = LoraSettings(train=("vision",))
    return {
        "stage of another": ({"zero_stage": 2}, {}, {}, "zero_stage is of strategy deepspeed"),
        "reshard": (
            {**zero, "reshard_after_forward": True}, {}, {}, "reshard_after_forward is of strategy",
        ),
        "two stages": (
            {**zero, "zero_stage": 1, "deepspeed_config": {"zero_optimization": {"stage": 2}}},
            {}, {}, "zero_stage is 1, deepspeed_config",
        ),
        "compile": ({**zero, "zero_stage": 3, "compile": True}, {}, {}, "compile is not built"),
        "elastic": (zero, {}, {"elastic": True}, "train.num_workers"),
        "background": (zero, {}, {"in_background": True}, "train.async_checkpoints"),
        "precisions": ({"precision": "float32"}, {"dtype": "bfloat16"}, {}, "contradicts"),
        "no float32 weights": ({}, {"dtype": "bfloat16"}, {}, "without model.lora"),
        "opened": ({}, {"dtype": "bfloat16", "lora": lora}, {}, "lora.train opens"),
        "bf16": ({**zero, "deepspeed_config": {"bf16": {"enabled": True}}}, {}, {}, "strategy.pre"),
        "clip": ({**zero, "deepspeed_config": {"gradient_clipping": 2}}, {}, {}, "says 0.5"),
        "rate": (
            {**zero, "deepspeed_config": {"optimizer": {"type": "AdamW", "params": {"lr": 1}}}},
            {}, {}, "optimisation.learning_rate",
        ),
        "file": ({**zero, "deepspeed_config": "/nowhere.json"}, {}, {}, "no readable JSON"),
        "quantize": ({}, {"quantize": "nf4"}, {}, "not built"),
        "both": ({}, {"freeze": ("vision",), "lora": lora}, {}, "both name vision"),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(refusals()))
def test_what_does_not_fit_is_refused_by_name(name: str) -> None:
    strategy, model, further, words = refusals()[name]
    with pytest.raises(ValueError, match=words):
        check_strategy(
            StrategySettings(**strategy), model_settings(Path("base"), **model), FAST, **further
        )


def test_sharding_without_a_process_group_is_refused(tiny_base: Path) -> None:
    with pytest.raises(UserError, match="there is none"):
        build(tiny_base, CELLS["packed"], STRATEGIES["fsdp2"])


def test_sharding_moves_no_whole_model_to_a_device(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sharded comes from main memory, layer by layer, for a mesh of the device's kind."""
    meshes: list[str] = []
    pieces: list[set[str]] = []

    def cut(module: torch.nn.Module, **_: Any) -> None:
        pieces.append({weight.device.type for weight in module.parameters()})

    def mesh(kind: str, shape: tuple[int, ...]) -> None:
        meshes.append(kind)

    monkeypatch.setattr(strategy_torch.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(strategy_torch, "world_size", lambda: 2)
    monkeypatch.setattr(strategy_torch, "init_device_mesh", mesh)
    monkeypatch.setattr(strategy_torch, "fully_shard", cut)
    Training.build(
        model_settings(tiny_base),
        objective(),
        FAST,
        seed=0,
        total_steps=10,
        strategy=STRATEGIES["fsdp2"],
        device="meta",
    )
    assert meshes == ["meta"]
    assert len(pieces) == 2 + 1 + 1  # layers, a vision block, the rest
    assert pieces == [{"cpu"}] * len(pieces)


def test_deepspeeds_own_json_is_taken_and_completed() -> None:
    said = {
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "overlap_comm": False},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9, 0.999]}},
        "bf16": {"enabled": "auto"},
        "train_batch_size": "auto",
        "wall_clock_breakdown": False,
    }
    settings = StrategySettings(name="deepspeed", deepspeed_config=said)
    assert settings.stage == 3
    assert settings.shards_weights
    found = deepspeed_config(settings, FAST)
    assert found["zero_optimization"] == {"stage": 3, "overlap_comm": False}
    assert found["gradient_clipping"] == FAST.clip
    assert found["wall_clock_breakdown"] is False
    assert not {"optimizer", "bf16", "train_batch_size"} & set(found)


def test_a_state_of_deepspeed_is_refused_elsewhere(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "deepspeed").mkdir()
    with pytest.raises(UserError, match="written under strategy deepspeed"):
        build(tiny_base, CELLS["packed"], StrategySettings()).load(tmp_path)


def _meets_full_disks(folder: Path, base: Path, name: str) -> None:
    """On two ranks: one file after the other has no room, on this rank or on that."""
    training = build(base, CELLS["LoRA"], STRATEGIES[name])
    training.step(mine(training, 0))
    for number, (of_rank, file) in enumerate(
        [
            (1, "state/zero_pp_rank_1_mp_rank_00_optim_states.pt"),
            (0, "state/zero_pp_rank_0_mp_rank_00_optim_states.pt"),
            (0, "zero_to_fp32.py"),
            (0, "latest"),
            (0, "about.json"),
            (0, "../.metadata.tmp"),
        ]
    ):
        full = folder / f"full-{number}" / "deepspeed" / file
        if rank() == 0:
            full.parent.mkdir(parents=True, exist_ok=True)
            full.symlink_to("/dev/full")
        torch.distributed.barrier()
        with pytest.raises(OSError, match=f"rank {of_rank}: ") as refused:
            training.save(folder / f"full-{number}")
        assert f"rank {1 - of_rank}" not in str(refused.value)
    training.save(folder / "state")
    after = training.step(mine(training, 1))
    resumed = build(base, CELLS["LoRA"], STRATEGIES[name], seed=7)
    resumed.load(folder / "state")
    assert resumed.step(mine(resumed, 1)) == pytest.approx(after, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=NEEDS_DEEPSPEED) for n in ("zero1", "zero3")]
)
def test_a_state_that_one_rank_cannot_write_is_refused_by_all_and_they_go_on(
    tiny_base: Path, tmp_path: Path, name: str
) -> None:
    run_ranks(_meets_full_disks, tmp_path, tiny_base, name)


def _goes_on_slower(folder: Path, base: Path) -> None:
    """On two ranks: a state is continued at other rates, with another decay."""
    cell = CELLS["shared_kv"]
    rates = {"learning_rate": 1e-6, "new_learning_rate": 1e-5, "weight_decay": 0.0}
    for name, strategy in STRATEGIES.items():
        if name.startswith("zero") and find_spec("deepspeed") is None:
            continue
        training = build(base, cell, strategy)
        training.step(mine(training, 0))
        training.save(folder / name)
        resumed = build(base, replace(cell, optimisation=rates), strategy)
        resumed.load(folder / name)
        before = weights_now(resumed)
        resumed.step(mine(resumed, 1))
        groups = resumed.optimizer.param_groups
        assert {group["peak"] for group in groups} == {1e-6, 1e-5}, name
        assert {group["weight_decay"] for group in groups} == {0.0}, name
        for weight, value in resumed.strategy.full_state().items():
            assert float((value - before[weight]).abs().max()) < 2e-5, (name, weight)


def test_a_state_is_continued_at_the_rates_of_the_settings_under_every_strategy(
    tiny_base: Path, tmp_path: Path
) -> None:
    run_ranks(_goes_on_slower, tmp_path, tiny_base)


def _learn_fast(folder: Path, base: Path) -> None:
    """On two ranks: temperatures at a rate that takes them past a bound at once."""
    learned = {"learn_temperatures": True, "temperature_fused": 0.15, "temperature_maxsim": 0.15}
    cell = Cell(learned, optimisation={"new_learning_rate": 1.0})
    for name, strategy in STRATEGIES.items():
        if name.startswith("zero") and find_spec("deepspeed") is None:
            continue
        training = build(base, cell, strategy)
        for step in range(2):
            training.step(mine(training, step))
            logs = training.strategy.full_state().get("log_temperatures")
            if logs is not None:
                least, most = (math.log(value) for value in TEMPERATURE_RANGE)
                assert all(least - 1e-6 <= value <= most + 1e-6 for value in logs.tolist()), name
                assert all(value != math.log(0.15) for value in logs.tolist()), name


def test_learned_temperatures_stay_in_their_range_under_every_strategy(
    tiny_base: Path, tmp_path: Path
) -> None:
    run_ranks(_learn_fast, tmp_path, tiny_base)
