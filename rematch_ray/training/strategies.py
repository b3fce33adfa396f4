"""Which strategy trains: what can be set about it, and what is refused before anything starts.

Says nothing of how a strategy works: that is in `strategy_torch` (ddp, fsdp2) and
`strategy_deepspeed`, behind the interface below. Middle floor; no torch at import.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from rematch_ray.errors import UserError
from rematch_ray.model.settings import ModelSettings
from rematch_ray.training.settings import OptimisationSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from rematch_ray.training.objective import JointModel

Precision = Literal["float32", "bfloat16"]
DEFAULT_STAGE = 2
# what DeepSpeed calls things -> the key of ours that says it
_OURS: Mapping[str, str] = {
    "train_batch_size": "data.order.global_batch",
    "train_micro_batch_size_per_gpu": "data.order.global_batch and train.num_workers",
    "scheduler": "optimisation.schedule and optimisation.warmup_steps",
    "fp16": "strategy.precision (float16 is not supported)",
    "amp": "strategy.precision",
    "bf16": "strategy.precision",
    "bfloat16": "strategy.precision",
    "torch_autocast": "strategy.precision",
    "activation_checkpointing": "model.gradient_checkpointing",
}


class StrategySettings(BaseModel):
    """How the training processes share the work, and in which precision."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: Literal["ddp", "fsdp2", "deepspeed"] = "ddp"
    """Every process holds all weights (ddp), or a share of them (fsdp2, or ZeRO of DeepSpeed)."""
    precision: Precision | None = None
    """The backbone's arithmetic: float32, or bfloat16 over float32 weights; null = model.dtype.
    Banks, heads, scores and losses are float32 either way."""
    compile: bool = False
    """Compile decoder layers and vision blocks with torch.compile."""
    reshard_after_forward: bool | None = None
    """fsdp2: free a layer's gathered weights after its forward pass, and gather them again for the
    backward pass; null = yes. No is faster and needs room for all weights."""
    zero_stage: Literal[1, 2, 3] | None = None
    """deepspeed: shard optimiser states (1), gradients too (2), weights too (3); null = what
    deepspeed_config says, else 2."""
    deepspeed_config: Mapping[str, Any] | None = None
    """deepspeed: its own JSON, a path or the mapping itself; what keys of ours say is left out of
    it or "auto"."""

    @field_validator("deepspeed_config", mode="before")
    @classmethod
    def _read_json(cls, given: Any) -> Any:
        """The run then holds what the file said, wherever its processes run."""
        if not isinstance(given, str | Path):
            return given
        try:
            found = json.loads(Path(given).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"'{given}' is no readable JSON file: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"'{given}' holds no JSON object")
        return found

    @model_validator(mode="after")
    def _keys_fit_the_name(self) -> StrategySettings:
        for key, name in (
            ("reshard_after_forward", "fsdp2"),
            ("zero_stage", "deepspeed"),
            ("deepspeed_config", "deepspeed"),
        ):
            if getattr(self, key) is not None and self.name != name:
                raise ValueError(f"{key} is of strategy {name}, and name is {self.name}: drop it")
        said = _zero(self.deepspeed_config).get("stage", "auto")
        if said not in ("auto", 1, 2, 3):
            raise ValueError(
                f"deepspeed_config zero_optimization.stage is {said}; allowed: 1, 2, 3"
            )
        if self.zero_stage is not None and said not in ("auto", self.zero_stage):
            raise ValueError(
                f"zero_stage is {self.zero_stage}, deepspeed_config zero_optimization.stage {said}:"
                ' give one of them, or "auto" there'
            )
        if self.compile and self.stage == 3:
            raise ValueError(
                "compile is not built for ZeRO stage 3, whose weights come and go inside layers: "
                "set compile to false, or strategy.name to fsdp2"
            )
        return self

    @property
    def stage(self) -> int:
        """ZeRO stage, 0 for the other strategies."""
        if self.name != "deepspeed":
            return 0
        said = _zero(self.deepspeed_config).get("stage", "auto")
        return self.zero_stage or (DEFAULT_STAGE if said == "auto" else int(said))

    @property
    def shards_weights(self) -> bool:
        """Whether a process holds a share of the weights only."""
        return self.name == "fsdp2" or self.stage == 3

    @property
    def is_elastic(self) -> bool:
        """Whether a state is continued at another number of processes."""
        return self.name != "deepspeed"

    @property
    def saves_in_background(self) -> bool:
        """Whether a state can be written while training goes on."""
        return self.name != "deepspeed"


class Strategy(Protocol):
    """What `Training` asks of a strategy; every rank calls every method equally often.

    Attributes:
        wrapped: what is called instead of the model.
        optimizer: whose groups hold the rates.
    """

    wrapped: nn.Module
    optimizer: Optimizer

    def zero_grad(self) -> None:
        """Forgets gradients."""

    def announce(self, last: bool) -> None:
        """Says before a forward pass whether its backward pass is the step's last one."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds a loss's gradients; after the last one they are averaged over ranks."""

    def clip_and_step(self, rate_share: float) -> float:
        """Clips and updates at a share of the peak rates; returns the norm before clipping.

        Nothing is updated where the norm is not finite.
        """

    def save(self, directory: Path, steps_done: int) -> None:
        """Writes weights, optimiser and steps done."""

    def save_async(self, directory: Path, steps_done: int) -> Future[Any]:
        """As `save`; done when every rank's part is written."""

    def load(self, directory: Path) -> int:
        """Restores what `save` wrote, but for rates, decay and betas; returns steps done."""

    def full_state(self) -> dict[str, Tensor]:
        """All weights in main memory on rank 0 under the model's own names; {} elsewhere."""


def precision_of(strategy: StrategySettings, model: ModelSettings) -> Precision:
    """The backbone's arithmetic."""
    return strategy.precision or model.dtype


def check_strategy(
    strategy: StrategySettings,
    model: ModelSettings,
    optimisation: OptimisationSettings,
    *,
    elastic: bool = False,
    in_background: bool | None = None,
) -> None:
    """Refuses what cannot work together; needs neither devices nor processes.

    Args:
        strategy: what was chosen.
        model: base, precision of its weights, adapters.
        optimisation: what a DeepSpeed configuration may not contradict.
        elastic: whether the number of processes may change.
        in_background: whether states are to be written while training goes on; None = if it can.

    Raises:
        UserError: naming both keys.
    """
    _check_precision(strategy, model)
    if elastic and not strategy.is_elastic:
        raise UserError(
            "strategy deepspeed resumes at the number of processes that saved: give "
            "train.num_workers one number, or set strategy.name to ddp or fsdp2"
        )
    if in_background and not strategy.saves_in_background:
        raise UserError(
            "strategy deepspeed writes its own files and waits for them: leave "
            "train.async_checkpoints out or set it to false"
        )
    if strategy.name == "deepspeed":
        deepspeed_config(strategy, optimisation)


def check_installed(strategy: StrategySettings) -> None:
    """Refuses a strategy whose library is not installed."""
    if strategy.name == "deepspeed" and find_spec("deepspeed") is None:
        raise UserError(
            "strategy deepspeed needs the package deepspeed, which is not installed here: "
            "pip install 'rematch-ray[deepspeed]', or set strategy.name to fsdp2"
        )


def _check_precision(strategy: StrategySettings, model: ModelSettings) -> None:
    if model.dtype != "bfloat16":
        return
    if strategy.precision == "float32":
        raise UserError(
            "strategy.precision float32 contradicts model.dtype bfloat16, whose weights compute in "
            "bfloat16: set model.dtype to float32, or leave strategy.precision out"
        )
    if model.lora is None or model.lora.train:
        what = "lora.train opens weights" if model.lora else "without model.lora all weights train"
        raise UserError(
            f"model.dtype bfloat16 keeps no float32 weights to update, and {what}: set "
            "model.dtype to float32 and strategy.precision to bfloat16"
        )


def deepspeed_config(
    strategy: StrategySettings, optimisation: OptimisationSettings
) -> dict[str, Any]:
    """What `deepspeed.initialize` is given: the user's JSON, and what keys of ours say.

    Raises:
        UserError: the JSON says something that a key of ours says.
    """
    given = dict(strategy.deepspeed_config or {})
    for name, key in _OURS.items():
        if not _is_silent(given.pop(name, None)):
            raise UserError(f'deepspeed_config {name}: {key} says it; leave it out or "auto"')
    _agree(given, "gradient_accumulation_steps", 1, "optimisation.accumulation")
    _agree(given, "gradient_clipping", optimisation.clip, "optimisation.clip")
    _check_optimiser(given.pop("optimizer", None), optimisation)
    rest: dict[str, Any] = _without_auto(given)
    zero = {**rest.get("zero_optimization", {}), "stage": strategy.stage}
    return {
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **rest,
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": 1,  # asked for, but read by nothing that runs here
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimisation.clip,
    }


def _zero(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    found = (config or {}).get("zero_optimization", {})
    if not isinstance(found, Mapping):
        raise ValueError("deepspeed_config zero_optimization is no mapping")
    return found


def _is_silent(value: Any) -> bool:
    """Absent, "auto", or a section that says nothing but that it is off or left to us."""
    if isinstance(value, Mapping):
        return value.get("enabled") is False or all(map(_is_silent, value.values()))
    return value is None or value == "auto"


def _agree(given: dict[str, Any], name: str, ours: float, key: str) -> None:
    said = given.pop(name, "auto")
    if said not in ("auto", ours):
        raise UserError(
            f'deepspeed_config {name} is {said}, {key} says {ours}: leave it out or "auto"'
        )


def _check_optimiser(section: Any, optimisation: OptimisationSettings) -> None:
    if section is None or section == "auto":
        return
    kind = section.get("type", "AdamW") if isinstance(section, Mapping) else section
    if kind not in ("AdamW", "auto"):
        raise UserError(f"deepspeed_config optimizer.type is {kind}; only AdamW is built")
    ours = {
        "lr": (optimisation.learning_rate, "learning_rate"),
        "weight_decay": (optimisation.weight_decay, "weight_decay"),
        "betas": (list(optimisation.betas), "betas"),
    }
    params = dict(section.get("params", {}))
    for name, (value, key) in ours.items():
        _agree(params, f"{name}", value, f"optimisation.{key}")  # type: ignore[arg-type]
    if not _is_silent(params):
        raise UserError(
            f"deepspeed_config optimizer.params {', '.join(params)}: no key of ours sets it; "
            'leave it out or "auto"'
        )


def _without_auto(value: Any) -> Any:
    """DeepSpeed has defaults for what others fill in for "auto"."""
    if not isinstance(value, Mapping):
        return value
    return {name: _without_auto(part) for name, part in value.items() if part != "auto"}


def build_strategy(
    settings: StrategySettings,
    model: JointModel,
    groups: Callable[[JointModel], list[dict[str, Any]]],
    optimisation: OptimisationSettings,
    *,
    device: torch.device,
) -> Strategy:
    """Wraps a model, which from then on is called through the strategy only.

    Args:
        settings: which strategy.
        model: moved in place, and sharded where the strategy shards.
        groups: the optimiser's parameter groups of the model as it then is.
        optimisation: averages and clipping.
        device: where the weights, or this rank's share of them, go.

    Raises:
        UserError: the strategy cannot run here.
    """
    check_installed(settings)
    if settings.name == "deepspeed":
        from rematch_ray.training.strategy_deepspeed import DeepSpeedStrategy

        return DeepSpeedStrategy(settings, model, groups, optimisation, device=device)
    from rematch_ray.training.strategy_torch import TorchStrategy

    return TorchStrategy(settings, model, groups, optimisation, device=device)
