"""One optimisation step of one rank: forward, backward, clip, update; state saved and restored.

Wraps the joint model in DDP when there is a process group. Knows optimisers and torch's distributed
checkpoint; nothing of Ray, data sources or how long a run is organised. Middle floor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.nn.parallel import DistributedDataParallel

from rematch_ray.collectives import mean_over_ranks, rank, world_size
from rematch_ray.data.samples import TrainBatch, collate_train
from rematch_ray.losses.joint import JointLoss
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.settings import ModelIdentity, ModelSettings
from rematch_ray.training.background import BackgroundWriter
from rematch_ray.training.gradient_cache import accumulate
from rematch_ray.training.measures import blame
from rematch_ray.training.objective import JointModel
from rematch_ray.training.settings import ObjectiveSettings, OptimisationSettings

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ObjectiveSettings", "OptimisationSettings", "Training"]


class Training:
    """Everything one rank needs to take steps.

    Args:
        model: embedder plus objective, on its device.
        optimisation: optimiser and schedule.
        total_steps: length of the schedule.
    """

    def __init__(
        self, model: JointModel, optimisation: OptimisationSettings, *, total_steps: int
    ) -> None:
        self.joint = model
        self.settings = optimisation
        self.total_steps = total_steps
        self.wrapped: nn.Module = model
        if dist.is_available() and dist.is_initialized() and world_size() > 1:
            self.wrapped = DistributedDataParallel(model)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(model, optimisation), betas=optimisation.betas, foreach=True
        )
        self.steps_done = 0
        self._writer = BackgroundWriter()

    @classmethod
    def build(
        cls,
        model: ModelSettings,
        objective: ObjectiveSettings,
        optimisation: OptimisationSettings,
        *,
        seed: int,
        total_steps: int,
        device: str | torch.device = "cpu",
        name: str = "",
    ) -> Training:
        """A fresh model on a base; the same weights on every rank, by seed.

        Args:
            model: base and sizes.
            objective: loss terms.
            optimisation: optimiser and schedule.
            seed: of banks and heads.
            total_steps: length of the schedule.
            device: where the weights go.
            name: recorded in exports.
        """
        torch.manual_seed(seed)
        embedder = Embedder.build(model, has_fused=objective.w_fused > 0, name=name)
        embedder.backbone.freeze(model.freeze)
        if model.lora is not None:
            embedder.backbone.add_lora(model.lora)
        if model.gradient_checkpointing:
            embedder.backbone.checkpoint_layers()
        joint = JointModel(embedder, objective).to(device).train()
        return cls(joint, optimisation, total_steps=total_steps)

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
            batch: this rank's rows.

        Returns:
            Metrics over all ranks: `loss`, `loss/<term>`, `loss/<budget>`, `accuracy/<name>`,
            `similarity/<what>`, `negatives` per query, `gradient_norm`, `learning_rate`; every
            `probe_every` steps `vector_gradient/<budget>`.

        Raises:
            FloatingPointError: the loss or its gradient is not finite; nothing was updated.
        """
        rate = self._set_learning_rate()
        every = self.settings.probe_every
        self.joint.probe_vectors = every > 0 and self.steps_done % every == 0
        self.optimizer.zero_grad(set_to_none=True)
        loss = accumulate(
            self.wrapped,
            self.joint,
            batch.to(self.device),
            backward=lambda total, last: total.backward(),
            chunk_tokens=self.settings.chunk_tokens,
            parts=self.settings.accumulation,
        )
        metrics = self._metrics(loss)
        self._check_finite("loss", metrics["loss"], batch, loss)
        trained = [p for p in self.joint.parameters() if p.requires_grad]
        norm = float(nn.utils.clip_grad_norm_(trained, self.settings.clip))
        self._check_finite("gradient norm", norm, batch, loss)
        self.optimizer.step()
        self.steps_done += 1
        return {**metrics, "gradient_norm": norm, "learning_rate": rate}

    def save(self, directory: str | Path) -> None:
        """Writes model and optimiser with torch's distributed checkpoint; every rank calls it."""
        dcp.save(self._state(), checkpoint_id=str(directory), no_dist=world_size() == 1)

    def save_async(self, directory: str | Path) -> Future[Any]:
        """As `save`, written while training goes on; done when every rank's part is written.

        The states of model and optimiser are copied first: host memory holds them once more.
        """
        return self._writer.start(self._state(), directory)

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.joint, self.optimizer)
        return {"model": model, "optimizer": optimizer, "steps_done": self.steps_done}

    def load(self, directory: str | Path) -> None:
        """Restores what `save` wrote, at any world size."""
        model, optimizer = get_state_dict(self.joint, self.optimizer)
        state: dict[str, Any] = {"model": model, "optimizer": optimizer, "steps_done": 0}
        dcp.load(state, checkpoint_id=str(directory), no_dist=world_size() == 1)
        set_state_dict(
            self.joint,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(strict=True),
        )
        self.steps_done = int(state["steps_done"])

    def export(self, directory: str | Path) -> ModelIdentity | None:
        """Writes a `from_pretrained` export on rank 0; None on the others."""
        if rank() != 0:
            return None
        return self.joint.embedder.save_pretrained(directory)

    def _check_finite(self, name: str, value: float, batch: TrainBatch, loss: JointLoss) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {name} is {value} at step {self.steps_done} ({blame(batch, loss)}): mend "
                "the rows, lower optimisation.learning_rate, or raise the temperatures"
            )

    def _set_learning_rate(self) -> float:
        share = schedule_share(self.steps_done, self.total_steps, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        return self.settings.learning_rate * share

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


def _parameter_groups(model: JointModel, settings: OptimisationSettings) -> list[dict[str, Any]]:
    """Backbone matrices with decay, its vectors without, and everything new at its own rate."""
    new_rate = settings.new_learning_rate or 10 * settings.learning_rate
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    old = [(name, p) for name, p in named if name.startswith("embedder.backbone.")]
    fresh = [p for name, p in named if not name.startswith("embedder.backbone.")]

    def group(parameters: Iterable[nn.Parameter], peak: float, decay: float) -> dict[str, Any]:
        return {"params": list(parameters), "lr": peak, "peak": peak, "weight_decay": decay}

    groups = [
        group((p for _, p in old if p.ndim > 1), settings.learning_rate, settings.weight_decay),
        group((p for _, p in old if p.ndim <= 1), settings.learning_rate, 0.0),
        group(fresh, new_rate, 0.0),
    ]
    return [entry for entry in groups if entry["params"]]
