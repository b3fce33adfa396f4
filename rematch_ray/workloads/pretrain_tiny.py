"""Makes the tiny generative base again: an hour of one process, resumable at any step.

One process without a cluster: the model is too small to share out. Top floor.
"""

import sys
from pathlib import Path
from typing import Any

from rematch_ray.errors import UserError
from rematch_ray.training.pretraining import STATE_FILE, PretrainSettings, pretrain


def pretrain_tiny(*, out: Path) -> dict[str, Any]:
    """Pretrain the tiny base with the shipped recipe.

    Args:
        out: folder of the base; an interrupted run in it goes on from its last saved state.

    Returns:
        `base` (the folder), `resumed`, and `held_out`: part -> caption loss, exact captions and
        Yes/No accuracy.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a directory for the base model")
    resumed = (out / STATE_FILE).is_file()
    held_out = pretrain(out, PretrainSettings(), say=_say)
    for part, measured in held_out.items():
        _say(f"{part}: " + "  ".join(f"{name} {value:.3f}" for name, value in measured.items()))
    return {"base": str(out), "resumed": resumed, "held_out": held_out}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
