"""The embedder that a checkpoint holds, without its optimiser: for whoever only reads weights.

Middle floor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)

from rematch_ray.model.embedder import Embedder
from rematch_ray.model.settings import ModelSettings
from rematch_ray.training.objective import JointModel
from rematch_ray.training.settings import ObjectiveSettings


def trained_embedder(
    model: ModelSettings, objective: ObjectiveSettings, state: str | Path, *, name: str = ""
) -> Embedder:
    """Read the weights of a training state in one process, whatever ranks wrote it.

    Args:
        model: base and sizes of the run.
        objective: of the run; says whether there is a fused vector.
        state: directory that `Training.save` wrote with torch's distributed checkpoint.
        name: recorded in exports.

    Returns:
        The embedder in evaluation mode, on CPU.
    """
    embedder = Embedder.build(model, has_fused=objective.w_fused > 0, name=name)
    if model.lora is not None:
        embedder.backbone.add_lora(model.lora)
    joint = JointModel(embedder, objective)
    saved: dict[str, Any] = {"model": get_model_state_dict(joint)}
    dcp.load(saved, checkpoint_id=str(state), no_dist=True)
    set_model_state_dict(joint, saved["model"], options=StateDictOptions(strict=True))
    return embedder.eval()
