"""What the matching stage adds to a training step: shared keys and values, packed, or none.

Arms, in turn in one process: InfoNCE on the fused vector with the same banks (the yardstick), the
joint objective with `shared_kv`, the same with `packed`, and InfoNCE on one end token. Hidden 512,
8 layers, queries of 100 and documents of 500 tokens, one hard negative, with and without layer
checkpointing. Times are CPU times of the process (CUDA: wall times), medians over repetitions; a
ratio is the median of the ratios of each repetition, so that a busy machine weighs on both sides.
Beside them the operations that Qwen2.5-VL-3B would need, with the default template's lengths under
its tokenizer, and with the shorter ones of what is timed; `--flops` counts them and times nothing.

    python benchmarks/training_step.py [--quick] [--device cuda] [--threads 2] [--flops]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from shapes.qwen_3b import default_wording
from shapes.random_rows import random_batch, write_base

from rematch_ray.data.prompts import PromptTokens
from rematch_ray.evaluation.report import plain_table
from rematch_ray.model.checkpoint import build_row_encoder
from rematch_ray.model.heap import keep_freed_memory
from rematch_ray.model.settings import ModelSettings
from rematch_ray.training.flops import Decoder
from rematch_ray.training.settings import ObjectiveSettings, OptimisationSettings
from rematch_ray.training.step import Training

QUERY_TOKENS, DOCUMENT_TOKENS = 100, 500
YARDSTICK = "InfoNCE(fused), same banks"
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    YARDSTICK: ({}, {"w_groups": 0.0, "w_orth": 0.0, "w_match": 0.0}),
    "joint, shared_kv": ({}, {"match_form": "shared_kv"}),
    "joint, packed": ({}, {"match_form": "packed"}),
    "one end token": (
        {"ladder": ("1x1",), "fuse_k": 1},
        {"w_groups": 0.0, "w_orth": 0.0, "w_match": 0.0},
    ),
}
# Qwen2.5-VL-3B's language model
QWEN_3B = Decoder(layers=36, hidden=2048, heads=16, key_value_heads=2, head_dim=128, mlp=11008)


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see the module's text."""
    options = _parser().parse_args(argv)
    torch.set_num_threads(options.threads)
    if not options.device.startswith("cuda"):
        keep_freed_memory()  # as training processes do
    repetitions, pairs = (3, 1) if options.quick else (options.repetitions, options.pairs)
    rows: list[list[Any]] = []
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = write_base(Path(folder) / "base")
        for checkpointing in () if options.flops else (False, True):
            arms = {name: _stepper(base, name, checkpointing, pairs, options) for name in ARMS}
            seconds = _in_turn(arms, repetitions)
            suffix = "_checkpointed" if checkpointing else ""
            for name, taken in seconds.items():
                over = _ratio(taken, seconds[YARDSTICK])
                layers = "recomputed" if checkpointing else "kept"
                rows.append([name, layers, statistics.median(taken), over])
                ratios |= {f"{key}{suffix}": over for key, arm in _KEYS.items() if arm == name}
        timed = Wording.of(build_row_encoder(base, ModelSettings(base=str(base))).prompt)
    if rows:
        print(plain_table([["arm", "layers", "s/step", "over InfoNCE"], *_printed(rows)]))
    wordings = {"default template": Wording(*default_wording()), "what is timed": timed}
    print("\nQwen2.5-VL-3B, operations of a forward pass over InfoNCE's:")
    for name, wording in wordings.items():
        found = _analytic(wording)
        print(
            f"  {name}: shared_kv {found['shared_kv']:.3f}, packed {found['packed']:.3f} (tail of "
            f"{wording.tail} tokens: instruction {wording.instruction}, answers of "
            f"{wording.answer})"
        )
    default, shorter = (_analytic(wording) for wording in wordings.values())
    result = {
        "benchmark": "training_step",
        **{name: round(value, 3) for name, value in ratios.items()},
        "flops_3b_shared_over_infonce": round(default["shared_kv"], 3),
        "flops_3b_packed_over_infonce": round(default["packed"], 3),
        "flops_3b_shared_over_infonce_as_timed": round(shorter["shared_kv"], 3),
        "flops_3b_packed_over_infonce_as_timed": round(shorter["packed"], 3),
        "pairs": pairs,
        "repetitions": repetitions,
        "threads": options.threads,
        "device": options.device,
        "machine": f"{os.cpu_count()} cores {platform.machine()}, torch {torch.__version__}",
    }
    print(json.dumps(result))
    return 0


@dataclass(frozen=True)
class Wording:
    """Tokens of a template's fixed strings: header P, end E, instruction I and an answer block."""

    header: int
    end: int
    instruction: int
    answer: int

    @classmethod
    def of(cls, prompt: PromptTokens) -> Wording:
        """What a template takes under a tokenizer."""
        parts = (prompt.header, prompt.end, prompt.match_instruction, prompt.answer)
        return cls(*(len(part) for part in parts))

    @property
    def tail(self) -> int:
        """`[I][Zq][Zd1][Zd2][A1..A8]`."""
        return self.instruction + 3 + 8 * self.answer


_KEYS = {
    "time_joint_over_infonce": "joint, shared_kv",
    "time_packed_over_infonce": "joint, packed",
    "time_end_token_over_infonce": "one end token",
}


def _stepper(
    base: Path, arm: str, checkpointing: bool, pairs: int, options: argparse.Namespace
) -> Callable[[], float]:
    """A function that takes one step and returns its seconds."""
    model, objective = ARMS[arm]
    training = Training.build(
        ModelSettings(base=str(base), **model, gradient_checkpointing=checkpointing),
        ObjectiveSettings(**objective),
        OptimisationSettings(probe_every=0),
        seed=0,
        total_steps=1000,
        device=options.device,
    )
    batch = random_batch(
        training.joint.embedder,
        pairs,
        query_tokens=QUERY_TOKENS,
        document_tokens=DOCUMENT_TOKENS,
    )
    on_cuda = options.device.startswith("cuda")

    def step() -> float:
        clock = time.perf_counter if on_cuda else time.process_time
        began = clock()
        training.step(batch)
        if on_cuda:
            torch.cuda.synchronize()
        return clock() - began

    return step


def _in_turn(arms: dict[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """Every arm once to warm up, then A B C D, A B C D, ..."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for repetition in range(repetitions + 1):
        for name, step in arms.items():
            taken = step()
            if repetition:
                seconds[name].append(taken)
    return seconds


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _printed(rows: list[list[Any]]) -> list[list[str]]:
    return [[name, layers, f"{s:.2f}", f"{over:.3f}"] for name, layers, s, over in rows]


def _analytic(wording: Wording) -> dict[str, float]:
    """Forward operations of a triplet over those of its embedding pass, attention under a mask
    counted whole.

    The rows' lengths hold header and end; the matching stage reads one header and no end.
    """
    query, document = QUERY_TOKENS + 16, DOCUMENT_TOKENS + 64
    embedding = sum(QWEN_3B.forward([query, document, document]))
    header, end, tail = wording.header, wording.end, wording.tail
    raw = QUERY_TOKENS - end + 2 * (DOCUMENT_TOKENS - header - end)

    def masked(tokens: int, keys: int) -> int:
        linear, _ = QWEN_3B.forward([tokens])
        return linear + QWEN_3B.layers * 4 * QWEN_3B.heads * QWEN_3B.head_dim * tokens * keys

    return {
        "shared_kv": 1 + masked(tail, raw + tail) / embedding,
        "packed": 1 + masked(raw + tail, raw + tail) / embedding,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller steps")
    parser.add_argument("--flops", action="store_true", help="count operations, time nothing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--pairs", type=int, default=2, help="pairs per step")
    parser.add_argument("--repetitions", type=int, default=9)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
