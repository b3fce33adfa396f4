"""The whole path on the shipped corpora: data, train, embed, index, evaluate, serve.

Composes the other workloads over one folder, `demo-run/`; a stage that is done is skipped
(stamps.py). Ends with every budget's quality and cost, what was asked and answered, and the line
that starts the server. Top floor.
"""

import hashlib
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rematch_ray.config import EvaluationConfig, RunConfig, TaskSettings, read_run
from rematch_ray.data.demo import write_demo
from rematch_ray.errors import UserError
from rematch_ray.workloads.build_index import build_index
from rematch_ray.workloads.demo_lines import (
    answer_lines,
    check_lines,
    report_lines,
    server_lines,
    skill_lines,
    time_line,
)
from rematch_ray.workloads.embed import embed
from rematch_ray.workloads.evaluate import evaluate
from rematch_ray.workloads.runtime import connect
from rematch_ray.workloads.showcase import ask_server, draw_sheet, pick_questions
from rematch_ray.workloads.stamps import Stamps
from rematch_ray.workloads.train import train

ROOT = Path("demo-run")
CONFIGS = Path("jobs/configs")
SOURCES = ("emoji", "scenes")
STAGES = ("data", "train", "embed", "index", "evaluate", "skill", "serve")


@dataclass(frozen=True)
class Walk:
    """Where one walk lies and what it trains."""

    root: Path
    quick: bool
    run: RunConfig

    @property
    def data(self) -> Path:
        """The corpora."""
        return self.root / "data"

    @property
    def model(self) -> Path:
        """The trained export."""
        return self.run.directory / "best"

    @property
    def index(self) -> Path:
        """The index over all corpora."""
        return self.root / "index"


def demo(*, quick: bool = False, fresh: bool = False) -> dict[str, Any]:
    """Walk the whole path, or what is left of it.

    Args:
        quick: little data and few steps: shows that everything works, promises no number.
        fresh: forget what earlier runs finished.

    Returns:
        The stages' results and seconds, and the paths of what was made.

    Raises:
        UserError: not called from a checkout of the repository, or a stage refuses.
    """
    walk = _walk(quick)
    stamps = Stamps(walk.root / "stamps", STAGES, fresh=fresh)
    data = stamps.do("data", {"quick": quick, "sources": SOURCES}, lambda: _write(walk), walk.data)
    made = _make_model(walk, stamps, data)
    index = stamps.do("index", made, lambda: _build(walk), walk.index)
    config = _evaluation(walk)
    searched = {**made, "generation": index["generation"]}
    asked = {**searched, "config": config.model_dump(mode="json")}
    measured = stamps.do("evaluate", asked, lambda: evaluate(config, show=False), config.out)
    skill = stamps.do("skill", made, lambda: _skill(walk))
    served = stamps.do("serve", searched, lambda: _serve(walk))
    _show(walk, measured, skill, served, stamps.seconds())
    return {
        "index": str(walk.index),
        "model": str(walk.model),
        "sheet": served["sheet"],
        "reports": measured["reports"],
        "skill": skill,
        "seconds": stamps.seconds(),
    }


def _walk(quick: bool) -> Walk:
    file = CONFIGS / ("demo-quick.yaml" if quick else "demo.yaml")
    if not file.exists():
        raise UserError(f"the demo needs {file}: call it from the root of the repository")
    return Walk(ROOT / "quick" if quick else ROOT, quick, read_run(file))


def _write(walk: Walk) -> dict[str, Any]:
    return dict(write_demo(walk.data, sources=SOURCES, quick=walk.quick).to_json())


def _make_model(walk: Walk, stamps: Stamps, data: dict[str, Any]) -> dict[str, Any]:
    """Train and embed on one cluster, which is started only when one of them is to be done."""
    from rematch_ray.model.starting import located

    weights = Path(located(walk.run.model.base)) / "model.safetensors"
    if not weights.exists():
        raise UserError(f"{weights} is not there: make the base with rematch-ray pretrain-tiny")
    base = hashlib.sha256(weights.read_bytes()).hexdigest()
    inputs = {"run": walk.run.model_dump(mode="json"), "data": data, "base": base}
    with ExitStack() as cluster:

        def trained() -> dict[str, Any]:
            cluster.enter_context(connect([]))
            result = train(walk.run)
            if result.get("stopped"):
                raise UserError("training was asked to stop; the same command goes on")
            return result

        def embedded() -> dict[str, Any]:
            cluster.enter_context(connect([]))
            corpora = [walk.data / source / "corpus" for source in SOURCES]
            return embed(model=walk.model, data=corpora, out=walk.root / "embeddings")

        stamps.do("train", inputs, trained, walk.run.directory)
        model = {"model": _identity(walk.model), "data": data, "base": base}
        result = stamps.do("embed", model, embedded, walk.root / "embeddings")
    return {**model, "rows": result["embedded"]}


def _identity(export: Path) -> str:
    from rematch_ray.model.checkpoint import load_identity

    return load_identity(export).digest


def _build(walk: Walk) -> dict[str, Any]:
    return build_index(embeddings=walk.root / "embeddings", out=walk.index)


def _evaluation(walk: Walk) -> EvaluationConfig:
    tasks = []
    for source, part, title in (
        ("emoji", "composed-test", "emoji, composed"),
        ("emoji", "novel-test", "emoji, novel"),
        ("scenes", "test", "scenes"),
    ):
        folder = walk.data / source
        swaps = folder / f"swaps-{part}.parquet"
        tasks.append(
            TaskSettings(
                name=title,
                queries=folder / f"queries-{part}.parquet",
                qrels=folder / f"qrels-{part}.parquet",
                source=source,
                families=folder / "families.parquet",
                swaps=swaps if swaps.exists() else None,
                corpus=folder / "corpus",
                slice_field="all_words_seen" if part == "novel-test" else None,
            )
        )
    return EvaluationConfig(
        index=walk.index,
        model=str(walk.model),
        out=walk.root / "evaluation",
        tasks=tuple(tasks),
        matching_triplets=32 if walk.quick else 256,
    )


def _skill(walk: Walk) -> dict[str, Any]:
    """Measure what the model writes and answers before and after training."""
    from rematch_ray.model.backbone import Backbone
    from rematch_ray.model.embedder import Embedder
    from rematch_ray.model.starting import find_start
    from rematch_ray.training.pictures import HELD_OUT
    from rematch_ray.training.pretraining import measure_base

    trained = Embedder.from_pretrained(walk.model)
    start = find_start(walk.run.model.base)
    base = Backbone.load(start.backbone).to(trained.device)
    encoder = start.row_encoder(walk.run.model)
    backbones = {"before": base, "after": trained.backbone}
    limit = 32 if walk.quick else 128
    return {
        part: {
            when: measure_base(backbone, encoder, part, split="test", limit=limit)
            for when, backbone in backbones.items()
        }
        for part in HELD_OUT
        if part != "pages"
    }


def _serve(walk: Walk) -> dict[str, Any]:
    questions = pick_questions(walk.data)
    answers = ask_server(walk.index, walk.data, questions, log=walk.root / "serve.log")
    sheet = draw_sheet(answers, questions, walk.data, walk.root / "sheet.png")
    asked = [{**asdict(question), "right": sorted(question.right)} for question in questions]
    return {"sheet": str(sheet), "questions": asked, "answers": answers}


def _show(
    walk: Walk,
    measured: dict[str, Any],
    skill: dict[str, Any],
    served: dict[str, Any],
    seconds: dict[str, float],
) -> None:
    lines = [""]
    for report in measured["reports"]:
        lines += report_lines(report)
    if not walk.quick:
        lines += check_lines(measured["reports"])
    lines += skill_lines(skill)
    for question, answer in zip(served["questions"], served["answers"], strict=True):
        lines += answer_lines(question, answer)
    lines += ["", time_line(seconds)]
    lines += server_lines(str(walk.index), str(walk.data), served["sheet"])
    print("\n".join(lines), file=sys.stderr, flush=True)
