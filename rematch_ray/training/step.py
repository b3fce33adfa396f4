"""One optimisation step of one rank: forward, backward, clip, update; state saved and restored.

Composes the joint model, the gradient cache and a strategy, which wraps the model, reduces its
gradients and updates it. Knows nothing of Ray, data sources or the organisation of a run. Middle
floor.
"""

from __future__ import annotations

import math
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from rematch_ray.collectives import mean_over_ranks, rank, world_size
from rematch_ray.data.rows import stable_id
from rematch_ray.data.train_batch import TrainBatch, collate_train
from rematch_ray.losses.joint import JointLoss
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.settings import ModelIdentity, ModelSettings
from rematch_ray.training.gradient_cache import accumulate
from rematch_ray.training.measures import blame
from rematch_ray.training.objective import JointModel
from rematch_ray.training.parameters import parameter_groups
from rematch_ray.training.settings import ObjectiveSettings, OptimisationSettings
from rematch_ray.training.strategies import (
    Strategy,
    StrategySettings,
    build_strategy,
    check_strategy,
    precision_of,
)

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ObjectiveSettings", "OptimisationSettings", "StrategySettings", "Training"]


class Training:
    """Everything one rank needs to take steps.

    Args:
        model: embedder plus objective, in main memory; the strategy moves it.
        strategy: how ranks share the work.
        optimisation: optimiser and schedule.
        device: where the weights go.
        total_steps: length of the schedule.
        seed: of dropout; each rank and each step draw from a seed of their own made of it, so that
            ranks drop different weights and a resumed run drops what an unbroken one does.

    Raises:
        UserError: the strategy cannot run here.
    """

    def __init__(
        self,
        model: JointModel,
        strategy: StrategySettings,
        optimisation: OptimisationSettings,
        *,
        device: torch.device,
        total_steps: int,
        seed: int,
    ) -> None:
        self.joint = model
        self.seed = seed
        self.settings = optimisation
        self.total_steps = total_steps
        groups = partial(parameter_groups, settings=optimisation)
        self.strategy: Strategy = build_strategy(
            strategy, model, groups, optimisation, device=device
        )
        self.steps_done = 0

    @classmethod
    def build(
        cls,
        model: ModelSettings,
        objective: ObjectiveSettings,
        optimisation: OptimisationSettings,
        *,
        seed: int,
        total_steps: int,
        strategy: StrategySettings | None = None,
        device: str | torch.device = "cpu",
        name: str = "",
    ) -> Training:
        """A fresh model on a base; the same weights on every rank, by seed.

        Args:
            model: base and sizes.
            objective: loss terms.
            optimisation: optimiser and schedule.
            seed: of banks, heads and dropout.
            total_steps: length of the schedule.
            strategy: how ranks share the work, and the precision; None = the defaults.
            device: where the weights go.
            name: recorded in exports.

        Raises:
            UserError: settings that do not fit each other, this machine or the base.
        """
        strategy = strategy or StrategySettings()
        check_strategy(strategy, model, optimisation)
        torch.manual_seed(seed)
        embedder = Embedder.build(model, has_fused=objective.w_fused > 0, name=name)
        embedder.backbone.freeze(model.freeze)
        if model.lora is not None:
            embedder.backbone.add_lora(model.lora)
        embedder.backbone.freeze_layers(model.freeze_layers)
        if model.gradient_checkpointing:
            embedder.backbone.checkpoint_layers()
        if precision_of(strategy, model) == "bfloat16":
            embedder.backbone.autocast_dtype = torch.bfloat16
        return cls(
            JointModel(embedder, objective).train(),
            strategy,
            optimisation,
            device=torch.device(device),
            total_steps=total_steps,
            seed=seed,
        )

    @property
    def wrapped(self) -> nn.Module:
        """What the strategy made of the joint model."""
        return self.strategy.wrapped

    @property
    def optimizer(self) -> Optimizer:
        """The strategy's optimiser."""
        return self.strategy.optimizer

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.joint.embedder.device

    def collate(self, table: pa.Table, *, step: int) -> TrainBatch:
        """Pads a rank-step's table for this model."""
        embedder = self.joint.embedder
        return collate_train(
            table,
            step=step,
            num_query_meta=embedder.num_vectors("query"),
            num_document_meta=embedder.num_vectors("document"),
            pad_id=embedder.row_encoder.prompt.pad,
        )

    def step(self, batch: TrainBatch) -> dict[str, float]:
        """One optimisation step; collective, so every rank calls it equally often.

        Args:
            batch: this rank's rows, on any device.

        Returns:
            Metrics over all ranks: `loss`, `loss/<term>`, `loss/<budget>`, `accuracy/<name>`,
            `similarity/<what>`, `negatives` per query, `gradient_norm`, `learning_rate`; every
            `probe_every` steps `vector_gradient/<budget>`.

        Raises:
            FloatingPointError: the loss or its gradient is not finite; nothing was updated.
        """
        batch = batch.to(self.device)
        torch.manual_seed(stable_id(f"{self.seed}:{self.steps_done}:{rank()}"))
        share = schedule_share(self.steps_done, self.total_steps, self.settings)
        every = self.settings.probe_every
        self.joint.probe_vectors = every > 0 and self.steps_done % every == 0
        self.strategy.zero_grad()
        loss = accumulate(
            self.wrapped,
            self.joint,
            batch,
            backward=self.strategy.backward,
            announce=self.strategy.announce,
            chunk_tokens=self.settings.chunk_tokens,
            parts=self.settings.accumulation,
        )
        metrics = self._metrics(loss)
        self._check_finite("loss", metrics["loss"], batch, loss)
        norm = self.strategy.clip_and_step(share)
        self._check_finite("gradient norm", norm, batch, loss)
        self.steps_done += 1
        rate = self.settings.learning_rate * share
        return {**metrics, "gradient_norm": norm, "learning_rate": rate}

    def save(self, directory: str | Path) -> None:
        """Writes model and optimiser; every rank calls it."""
        self.strategy.save(Path(directory), self.steps_done)

    def save_async(self, directory: str | Path) -> Future[Any]:
        """As `save`, written while training goes on where the strategy can (ddp, fsdp2).

        Done when every rank's part is written. The states of model and optimiser are copied first:
        host memory holds them once more.
        """
        return self.strategy.save_async(Path(directory), self.steps_done)

    def load(self, directory: str | Path) -> None:
        """Restores what `save` wrote; under ddp and fsdp2 what either wrote, at any world size.

        Rates, decay and averages' shares stay those of the settings.

        Raises:
            UserError: the strategy cannot read it.
        """
        self.steps_done = self.strategy.load(Path(directory))

    def export(self, directory: str | Path) -> ModelIdentity | None:
        """Writes a `from_pretrained` export on rank 0; every rank calls it, others get None."""
        weights = self.strategy.full_state()
        if rank() != 0:
            return None
        inner = "embedder."
        state = {name[len(inner) :]: t for name, t in weights.items() if name.startswith(inner)}
        return self.joint.embedder.save_pretrained(directory, state=state)

    def _check_finite(self, name: str, value: float, batch: TrainBatch, loss: JointLoss) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {name} is {value} at step {self.steps_done} ({blame(batch, loss)}): lower "
                "optimisation.learning_rate, mend the rows, or raise the temperatures"
            )

    def _metrics(self, loss: JointLoss) -> dict[str, float]:
        """All parts in one reduction over ranks."""
        rungs = self.joint.embedder.ladder.rungs
        named = {"loss": loss.total.detach()}
        named |= {f"loss/{term}": value.detach() for term, value in loss.parts.items()}
        if self.joint.settings.w_groups:
            for rung, value in zip(rungs, loss.groups, strict=True):
                named[f"loss/{rung}"] = value.detach()
        expected = self._accuracy_names()
        zero = loss.total.detach().new_zeros(())
        named |= {f"accuracy/{name}": loss.accuracy.get(name, zero) for name in expected}
        named |= loss.statistics
        squares = {f"vector_gradient/{name}": x for name, x in loss.vector_gradients.items()}
        named |= squares
        means = mean_over_ranks(torch.stack([value.float() for value in named.values()]))
        metrics = dict(zip(named, means.tolist(), strict=True))
        # a rank's loss is its share times the world size, so its gradient is that much too large
        return metrics | {name: math.sqrt(metrics[name] / world_size()) for name in squares}

    def _accuracy_names(self) -> list[str]:
        from rematch_ray.losses.matching import VIEW_NAMES

        settings, names = self.joint.settings, []
        if settings.w_fused:
            names.append("fused")
        if settings.w_groups:
            names += [str(rung) for rung in self.joint.embedder.ladder.rungs]
        if settings.w_match:
            names += [f"match/{view}" for view in VIEW_NAMES]
        return names


def schedule_share(step: int, total: int, settings: OptimisationSettings) -> float:
    """Share of the peak learning rate at a step.

    >>> schedule_share(0, 10, OptimisationSettings(warmup_steps=2))
    0.5
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    done = min(1.0, (step - settings.warmup_steps) / max(1, total - settings.warmup_steps))
    decay = 0.5 * (1 + math.cos(math.pi * done)) if settings.schedule == "cosine" else 1 - done
    return settings.final_share + (1 - settings.final_share) * decay
