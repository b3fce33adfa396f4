"""Makes the tiny generative base: tokenizer, model, one optimisation loop, measured at the end.

One process, one device; resumes from its own state file, and every draw is a function of (seed,
step), so an interrupted run ends with the same weights. Knows no Ray. Middle floor.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from rematch_ray.data.rows import RowEncoder
from rematch_ray.errors import UserError
from rematch_ray.model.backbone import Backbone
from rematch_ray.model.tiny import (
    TINY_TEMPLATE,
    TinySettings,
    image_processor,
    save_base,
    tiny_model,
    train_tokenizer,
)
from rematch_ray.training.generative import Picture, build_batch, generative_loss
from rematch_ray.training.pictures import (
    HELD_OUT,
    held_out_pictures,
    training_pictures,
    training_texts,
)

STATE_FILE = "pretrain-state.pt"
LOG_FILE = "pretrain-log.jsonl"
RECIPE_FILE = "recipe.json"
PARTS = ("caption", "paraphrase", "question", "question_right")


class PretrainSettings(BaseModel):
    """The recipe of the tiny base.

    Attributes:
        tiny: sizes of the model.
        seed: of weights and draws.
        steps: optimisation steps.
        pictures: how many pictures of each corpus one step sees.
        num_questions: Yes/No questions per picture.
        learning_rate: peak; linear warm-up, cosine decay to a hundredth of it.
        warmup_steps: steps of the warm-up.
        weight_decay: AdamW's, on matrices.
        clip: largest gradient norm.
        log_every: steps between log lines.
        save_every: steps between saved states.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tiny: TinySettings = TinySettings()
    seed: int = 0
    steps: int = Field(default=2000, ge=1)
    pictures: Mapping[str, int] = {"emoji": 28, "scenes": 24, "pages": 4}
    num_questions: int = Field(default=3, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    warmup_steps: int = Field(default=200, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    clip: float = Field(default=1.0, gt=0)
    log_every: int = Field(default=50, ge=1)
    save_every: int = Field(default=250, ge=1)


def pretrain(
    out: Path, settings: PretrainSettings, *, say: Callable[[str], None] = print
) -> dict[str, dict[str, float]]:
    """Trains the base and writes it to `out`.

    Args:
        out: folder; a state file in it is continued.
        settings: the recipe.
        say: receives progress lines.

    Returns:
        Held-out part -> caption loss per token, exact captions and Yes/No accuracy.
    """
    out.mkdir(parents=True, exist_ok=True)
    fixed = [value for value in TINY_TEMPLATE.model_dump().values() if isinstance(value, str)]
    tokenizer = train_tokenizer([*training_texts(), *fixed * 200], settings.tiny)
    processor = image_processor(settings.tiny)
    encoder = RowEncoder(tokenizer, processor, TINY_TEMPLATE)
    model = tiny_model(tokenizer, settings.tiny, seed=settings.seed)
    backbone = Backbone(model).train()
    say("encoding the training pictures once")
    pool = training_pictures(encoder)
    by_source = _by_source(pool, settings)
    vectors = [p for p in backbone.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in backbone.parameters() if p.ndim > 1]},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
    )
    start = _resume(out, settings, backbone, optimizer)
    _loop(out, settings, backbone, encoder, by_source, optimizer, start, say)
    save_base(model, tokenizer, processor, out)
    measured = {part: measure_base(backbone, encoder, part) for part in HELD_OUT}
    recipe = {"settings": settings.model_dump(), "held_out": measured, "torch": torch.__version__}
    (out / RECIPE_FILE).write_text(json.dumps(recipe, indent=2) + "\n")
    (out / STATE_FILE).unlink(missing_ok=True)
    return measured


@torch.inference_mode()
def measure_base(
    backbone: Backbone,
    encoder: RowEncoder,
    part: str,
    *,
    split: str = "validation",
    limit: int = 256,
    batch_size: int = 32,
) -> dict[str, float]:
    """What a generative model can do on held-out pictures.

    Args:
        backbone: base model, or the backbone of a trained embedder.
        encoder: its row encoder.
        part: one of `HELD_OUT`.
        split: `validation` or `test`.
        limit: at most this many pictures, drawn by a fixed seed.
        batch_size: pictures per forward pass.

    Returns:
        `caption_loss` (nats per token), `caption_exact` (share of captions whose every token is the
        most likely one) and `question_accuracy` (Yes/No, half of the questions deserve Yes).
    """
    draw = random.Random(f"measure:{part}:{split}")
    pictures = held_out_pictures(part, encoder, split=split)
    pictures = draw.sample(pictures, min(limit, len(pictures)))
    was_training = backbone.training
    backbone.eval()
    sums = {"caption_loss": 0.0, "caption_exact": 0.0, "question_accuracy": 0.0}
    for start in range(0, len(pictures), batch_size):
        chunk = pictures[start : start + batch_size]
        batch = build_batch(chunk, pictures, encoder, draw, fixed=True)
        loss = generative_loss(backbone, encoder, batch)
        weight = len(chunk) / len(pictures)
        sums["caption_loss"] += weight * float(loss.caption)
        sums["caption_exact"] += weight * float(loss.caption_exact)
        sums["question_accuracy"] += weight * float(loss.question_right)
    backbone.train(was_training)
    return sums


def _loop(
    out: Path,
    settings: PretrainSettings,
    backbone: Backbone,
    encoder: RowEncoder,
    by_source: Mapping[str, list[Picture]],
    optimizer: torch.optim.Optimizer,
    start: int,
    say: Callable[[str], None],
) -> None:
    began, recent = time.monotonic(), []
    for step in range(start, settings.steps):
        draw = random.Random(f"{settings.seed}:{step}")
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings)
        optimizer.zero_grad(set_to_none=True)
        recent.append(_backward(settings, backbone, encoder, by_source, draw))
        torch.nn.utils.clip_grad_norm_(backbone.parameters(), settings.clip)
        optimizer.step()
        if (step + 1) % settings.log_every == 0:
            means = torch.tensor(recent).mean(dim=0).tolist()
            line = {"step": step + 1, **dict(zip(PARTS, (round(m, 4) for m in means), strict=True))}
            recent.clear()
            left = (time.monotonic() - began) / (step + 1 - start) * (settings.steps - step - 1)
            say(f"{json.dumps(line)} about {left / 60:.0f} min left")
            with (out / LOG_FILE).open("a") as log:
                log.write(json.dumps(line) + "\n")
        if (step + 1) % settings.save_every == 0:
            _save_state(out, step + 1, settings, backbone, optimizer)


def _backward(
    settings: PretrainSettings,
    backbone: Backbone,
    encoder: RowEncoder,
    by_source: Mapping[str, list[Picture]],
    draw: random.Random,
) -> list[float]:
    """Accumulates one step's gradient corpus by corpus (rows of like length); returns the parts."""
    total, sums = sum(settings.pictures.values()), torch.zeros(len(PARTS))
    for name, count in settings.pictures.items():
        pictures = draw.sample(by_source[name], count)
        batch = build_batch(
            pictures, by_source[name], encoder, draw, num_questions=settings.num_questions
        )
        loss = generative_loss(backbone, encoder, batch)
        (loss.total * (count / total)).backward()
        sums += (
            torch.tensor([float(getattr(loss, part).detach()) for part in PARTS]) * count / total
        )
    return sums.tolist()


def _schedule(step: int, settings: PretrainSettings) -> float:
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def _by_source(pool: Sequence[Picture], settings: PretrainSettings) -> dict[str, list[Picture]]:
    """The pictures of every corpus that a step reads, checked to be enough."""
    by_source = {name: [p for p in pool if p.source == name] for name in settings.pictures}
    for name, count in settings.pictures.items():
        if count > len(by_source[name]):
            raise UserError(
                f"pictures.{name} asks for {count} pictures a step, but there are "
                f"{len(by_source[name])}: lower it, or leave the corpus out"
            )
    return by_source


def _save_state(
    out: Path,
    step: int,
    settings: PretrainSettings,
    backbone: Backbone,
    optimizer: torch.optim.Optimizer,
) -> None:
    state = {
        "step": step,
        "recipe": _recipe(settings),
        "model": backbone.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    partial = out / f"{STATE_FILE}.partial"
    torch.save(state, partial)
    os.replace(partial, out / STATE_FILE)


def _recipe(settings: PretrainSettings) -> dict[str, Any]:
    """What must not change when a run is continued."""
    return settings.model_dump(mode="json", exclude={"log_every", "save_every"})


def _resume(
    out: Path, settings: PretrainSettings, backbone: Backbone, optimizer: torch.optim.Optimizer
) -> int:
    if not (out / STATE_FILE).is_file():
        return 0
    state = torch.load(out / STATE_FILE, weights_only=True)
    now, then = _recipe(settings), state["recipe"]
    if differing := sorted(key for key in now if now[key] != then.get(key)):
        raise UserError(
            f"the run in '{out}' was begun with another recipe ({', '.join(differing)}): give the "
            f"same one to continue it, or remove {STATE_FILE} to begin anew"
        )
    backbone.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
