"""The strategy of DeepSpeed: ZeRO stages 1, 2 and 3 with its own files. Middle floor.

Stage 1 reduces gradients once a step; stages 2 and 3 hold shares of them, so every backward pass
reduces. Beside DeepSpeed's files a state holds the weights as torch's distributed checkpoint, for
whoever only reads weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from rematch_ray.collectives import rank, world_size
from rematch_ray.errors import UserError
from rematch_ray.training.objective import JointModel
from rematch_ray.training.parameters import kept_in_bounds, own_settings
from rematch_ray.training.settings import OptimisationSettings
from rematch_ray.training.state import DEEPSPEED, first_failure
from rematch_ray.training.strategies import StrategySettings, deepspeed_config
from rematch_ray.training.strategy_torch import compile_layers

_TAG, _ABOUT, _LATEST = "state", "about.json", "latest"


def _prepare(device: torch.device) -> None:
    """What DeepSpeed looks for when it starts in a process group that is already there."""
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    if device.type != "cpu":
        return
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    # it would compile C++ for shared memory at the first start; gloo does as well
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class _Writes:
    """What a rank writes: an error is kept, and raised when all ranks have written.

    DeepSpeed writes between its collectives, so a rank that raised at once would leave the others
    waiting in the next one. Stands in for an engine's own checkpoint engine.
    """

    def __init__(self, engine: Any) -> None:
        self._error: BaseException | None = None
        self._own = engine.checkpoint_engine
        self.makedirs = self.kept(self._own.makedirs)
        self.save = self.kept(self._own.save)
        self.commit = self.kept(self._own.commit)
        engine.checkpoint_engine = self
        # the one thing that DeepSpeed writes past its checkpoint engine, but for `latest`
        engine._copy_recovery_script = self.kept(engine._copy_recovery_script)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def kept(self, write: Callable[..., Any]) -> Callable[..., None]:
        """The same call, whose error waits for `settle`."""

        def tried(*given: Any, **named: Any) -> None:
            try:
                write(*given, **named)
            # whatever it is: `settle` raises it
            except (Exception, CheckpointException) as error:  # noqa: BLE001
                self._error = self._error or error

        return tried

    def settle(self) -> None:
        """Raises on every rank what went wrong on any; collective.

        Raises:
            OSError: naming the ranks.
        """
        error, self._error = self._error, None
        cause = None if error is None else first_failure(error)
        words = [""] * world_size()
        mine = "" if cause is None else str(cause) or type(cause).__name__
        dist.all_gather_object(words, mine)
        if found := [f"rank {number}: {why}" for number, why in enumerate(words) if why]:
            raise OSError("; ".join(found)) from error


class DeepSpeedStrategy:
    """A DeepSpeed engine around the model, with torch's AdamW inside.

    Args:
        settings: stage and DeepSpeed's own configuration.
        model: moved in place, whole; stage 3 shards it there.
        groups: the optimiser's parameter groups.
        optimisation: averages and clipping.
        device: where the weights go.

    Raises:
        UserError: there is no process group.
    """

    def __init__(
        self,
        settings: StrategySettings,
        model: JointModel,
        groups: Callable[[JointModel], list[dict[str, Any]]],
        optimisation: OptimisationSettings,
        *,
        device: torch.device,
    ) -> None:
        if not dist.is_initialized():
            raise UserError(
                "strategy deepspeed works in a process group, and there is none: start it through "
                "`rematch-ray train` or torchrun, or set strategy.name to ddp"
            )
        _prepare(device)
        import deepspeed

        model.to(device)
        if settings.compile:
            compile_layers(model, device)
        self._model = model
        self._stage = settings.stage
        optimizer = kept_in_bounds(
            torch.optim.AdamW(groups(model), betas=optimisation.betas, fused=True)
        )
        self.wrapped, self.optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=deepspeed_config(settings, optimisation),
            dist_init_required=False,
        )
        self._writes = _Writes(self.wrapped)
        self._held = self._read_outside() if self._stage == 3 else []
        model.embedder.backbone.sharded = self._stage == 3

    def _read_outside(self) -> list[Any]:
        """Weights that another module reads than the one that owns them, if any does.

        DeepSpeed gathers a module's weights when the module is called. These few stay gathered from
        the start of a step to its update.
        """
        embedder = self._model.embedder
        found: list[Any] = [self._model.log_temperatures, *embedder.banks.values()]
        if embedder.matcher is not None:
            found.append(embedder.matcher.roles)
        for parameter in found:
            parameter.ds_persist = True
        return found

    def zero_grad(self) -> None:
        """Forgets gradients, and gathers what stays gathered through a step."""
        self.optimizer.zero_grad()
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        for parameter in self._held:
            if parameter.ds_status == ZeroParamStatus.NOT_AVAILABLE:
                parameter.all_gather()

    def announce(self, last: bool) -> None:
        """Says before a forward pass whether its backward pass is the step's last one."""
        self.wrapped.set_gradient_accumulation_boundary(last)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds a loss's gradients; after the last one they are averaged over ranks."""
        self.wrapped.backward(loss)

    def clip_and_step(self, rate_share: float) -> float:
        """Clips and updates; DeepSpeed skips the update where the norm is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate_share
        self.wrapped.step()
        return float(self.wrapped.get_global_grad_norm())

    def save(self, directory: Path, steps_done: int) -> None:
        """Writes DeepSpeed's files, and the weights once more for whoever reads only them.

        Raises:
            OSError: a rank could not write its part; raised on every rank.
        """
        folder = directory / DEEPSPEED
        self.wrapped.save_checkpoint(str(folder), tag=_TAG, save_latest=False)
        weights = self.full_state()
        if rank() == 0:
            self._writes.kept(self._write_rest)(directory, weights, steps_done)
        self._writes.settle()

    def _write_rest(self, directory: Path, weights: dict[str, Tensor], steps_done: int) -> None:
        """What rank 0 writes beside DeepSpeed."""
        about = {"steps_done": steps_done, "world_size": world_size(), "stage": self._stage}
        folder = directory / DEEPSPEED
        (folder / _LATEST).write_text(_TAG)  # read by DeepSpeed's own programs
        (folder / _ABOUT).write_text(json.dumps(about) + "\n")
        dcp.save({"model": weights}, checkpoint_id=str(directory), no_dist=True)

    def save_async(self, directory: Path, steps_done: int) -> Future[Any]:
        """As `save`: what it returns is done."""
        made: Future[Any] = Future()
        self.save(directory, steps_done)
        made.set_result(None)
        return made

    def load(self, directory: Path) -> int:
        """Restores what as many ranks wrote at the same stage; returns steps done.

        Raises:
            UserError: another strategy, number of ranks or stage wrote it.
        """
        folder = directory / DEEPSPEED
        if not (folder / _ABOUT).is_file():
            raise UserError(
                f"'{directory}' was not written under strategy deepspeed: set strategy.name back "
                "to ddp or fsdp2, either reads it"
            )
        about = json.loads((folder / _ABOUT).read_text())
        for name, key, now in (
            ("world_size", "train.num_workers", world_size()),
            ("stage", "strategy.zero_stage", self._stage),
        ):
            if about[name] != now:
                raise UserError(
                    f"'{directory}' was written under deepspeed with {key} {about[name]}, and it "
                    f"is {now} now: set it back (ddp and fsdp2 resume at any number of processes)"
                )
        with own_settings(self.optimizer):
            self.wrapped.load_checkpoint(str(folder), tag=_TAG)
        return int(about["steps_done"])

    def full_state(self) -> dict[str, Tensor]:
        """All weights in main memory on rank 0 under the model's own names; {} elsewhere."""
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        found: dict[str, Tensor] = {}
        for name, tensor in self._model.state_dict().items():
            with self._gathered(parameters.get(name)):
                whole = parameters.get(name, tensor)
                if rank() == 0:
                    found[name] = whole.detach().cpu().clone()
        return found

    def _gathered(self, parameter: Tensor | None) -> Any:
        if parameter is None or self._stage < 3:
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters([parameter])
