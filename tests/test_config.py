"""Every key of a configuration takes effect or is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rematch_ray.config import KINDS, RunConfig, describe_keys, read_evaluation, read_run
from rematch_ray.config_file import meaning, read_settings
from rematch_ray.errors import UserError

RUN: dict[str, Any] = {
    "name": "demo",
    "model": {"base": "tiny"},
    "data": {
        "sources": [{"name": "emoji", "path": "a"}, {"name": "scenes", "path": "b", "weight": 2}]
    },
    "train": {"steps": 10},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(RUN))
    return path


def test_a_file_becomes_frozen_settings_with_defaults(file: Path) -> None:
    run = read_run(file)
    assert (run.name, run.train.steps, run.train.num_workers) == ("demo", 10, 2)
    assert run.data.sources[1].weight == 2
    assert run.directory == Path("runs").absolute() / "demo"
    with pytest.raises(ValueError, match="frozen"):
        run.seed = 3  # type: ignore[misc]


def test_overrides_replace_what_the_file_says(file: Path) -> None:
    run = read_run(
        file,
        [
            "train.steps=7",
            "train.num_workers=[1, 4]",
            "data.sources.0.weight=1.5",
            "model.ladder=[1x1, 2x4]",
            "model.lora.rank=4",
            "objective.preset=metaembed",
            "name='007'",
        ],
    )
    assert run.train.steps == 7
    assert (run.train.min_workers, run.train.max_workers) == (1, 4)
    assert run.data.sources[0].weight == 1.5
    assert run.model.ladder == ("1x1", "2x4")
    assert run.model.lora is not None
    assert run.model.lora.rank == 4
    assert run.objective.w_fused == 0
    assert run.name == "007"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stpes=3", r"unknown key train\.stpes; did you mean train\.steps\?"),
        ("trian.steps=3", r"unknown key trian; did you mean train\? allowed: data, model"),
        ("data.sources.0.wieght=3", r"did you mean data\.sources\.N\.weight\?"),
        ("data.order.window_size=3", r"did you mean data\.order\.window\?"),
        ("model.lora.ranks=3", r"did you mean model\.lora\.rank\?"),
        ("data.sources.7.weight=3", r"names no entry; allowed: 0 to 1"),
        ("train.steps", "not of the form key=value"),
        ("train.steps=[", "the value is not YAML"),
        ("name.x=3", "name is a single value"),
        (
            "train.steps=many",
            r"^override 'train.steps=many': train\.steps: input should be a valid",
        ),
        ("train.num_workers=0", r"train\.num_workers: 0 is neither a number above 0 nor such a"),
        ("train.num_workers=[4, 2]", r"train\.num_workers: \[4, 2\] is neither a number"),
        ("train.num_workers=many", r"'many' is neither a number above 0 nor such a \[min, max\]"),
        (
            "train.steps=0",
            r"^override 'train.steps=0': train\.steps: input should be greater than 0",
        ),
        ("data.order.sub_batch=7", "global_batch 64 is not a whole number of sub-batches"),
        ("data.sources.1.name=emoji", "source names emoji, emoji repeat"),
        ("objective.w_fused=0", "w_match needs the fused vector"),
        ("model.readout_layers=all", "input should be 'last'"),
        ("name=a/b", "name: string should match pattern"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(file: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_run(file, [override])
    assert "\n" not in str(caught.value)


def test_what_the_file_says_and_what_an_override_says_are_told_apart(file: Path) -> None:
    file.write_text(yaml.safe_dump({**RUN, "seed": -1}))
    message = r"run\.yaml: seed: .*\(given: -1\); override 'train.steps=0': train\.steps: "
    with pytest.raises(UserError, match=message):
        read_run(file, ["name=other", "train.steps=0"])


def test_an_unknown_key_in_the_file_is_named_with_the_file(file: Path) -> None:
    file.write_text(yaml.safe_dump({**RUN, "sede": 1}))
    with pytest.raises(UserError, match=r"run\.yaml: unknown key sede; did you mean seed\?"):
        read_run(file)


def test_a_file_that_is_missing_or_no_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_run(tmp_path / "none.yaml")
    for text, message in (("a: [", "is not YAML"), ("- 1", "holds a list"), ("", "required")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            read_run(tmp_path / "bad.yaml")


def test_defaults_alone_can_be_read() -> None:
    assert read_settings(KINDS["embed"], None, ["batch_rows=3"]).model_dump()["batch_rows"] == 3


def test_an_evaluation_is_read_the_same_way(tmp_path: Path) -> None:
    task = {"name": "t", "queries": "q.parquet", "qrels": "r.parquet"}
    file = tmp_path / "e.yaml"
    file.write_text(yaml.safe_dump({"index": "i", "out": "o", "tasks": [task]}))
    assert read_evaluation(file, ["tasks.0.source=emoji"]).tasks[0].source == "emoji"
    with pytest.raises(UserError, match=r"unknown key tasks\.0\.sauce"):
        read_evaluation(file, ["tasks.0.sauce=emoji"])


@pytest.mark.parametrize("kind", KINDS)
def test_help_lists_every_key_with_a_meaning(kind: Any) -> None:
    lines = describe_keys(kind).splitlines()
    assert len(lines) % 2 == 0
    for key, text in zip(lines[::2], lines[1::2], strict=True):
        assert len(text.strip()) > 10, f"{key.strip()} has no docstring line"


def test_help_names_nested_keys_types_and_defaults() -> None:
    text = describe_keys("run")
    for expected in (
        "  train.num_workers: int | list of int = 2",
        "  data.sources.N.path: path | text (required)",
        "  model.lora: section | null = null",
        '  data.order.when_source_ends: end_epoch | leave_out = "end_epoch"',
    ):
        assert expected in text
    assert meaning(RunConfig, "name").startswith("Name of the run")


def test_the_rematch_preset_has_banks_of_sixteen_unless_a_ladder_is_named(file: Path) -> None:
    assert read_run(file, ["objective.preset=rematch"]).model.ladder == ("16x16",)
    named = ["objective.preset=rematch", "model.ladder=[1x1, 8x8]"]
    assert read_run(file, named).model.ladder == ("1x1", "8x8")
    assert read_run(file, ["objective.preset=joint"]).model.ladder[-1] == "16x64"


def test_the_rematch_preset_has_a_fused_vector_as_wide_as_the_model(file: Path) -> None:
    assert read_run(file, ["objective.preset=rematch"]).model.fused_width(2048) == 2048
    named = ["objective.preset=rematch", "model.fused_dim=256"]
    assert read_run(file, named).model.fused_width(2048) == 256
    assert read_run(file).model.fused_width(2048) == 512


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.freeze=[language]", "model.lora={}"], "freeze names 'language'.*adapters"),
        (["model.fuse_k=40", "model.ladder=[1x1, 16x64]"], "fuse_k 40 is more than the 16"),
        (["model.min_pixels=5000", "model.max_pixels=4000"], "min_pixels 5000 is above"),
    ],
)
def test_what_would_take_no_effect_is_refused(file: Path, changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_run(file, changes)
    assert read_run(file, ["model.ladder=[1x1]"]).model.fuse_k == 16


VALIDATION = (
    "validation={sets: [{name: emoji, queries: q, corpus: c, qrels: r}, {name: n, samples: s}]}"
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["validation.every=150"], "every 150 is not a multiple of train.checkpoint_every 100"),
        (["validation.metric=recall@5/full"], "recall@5/full' is not one of recall@1/BUDGET"),
        (["validation.metric=other/recall@1/full"], r"after SET/ \(sets: emoji, n\)"),
        (["validation.metric=recall@1/3x3"], "budget '3x3' does not exist here; allowed: fused"),
        (["validation.sets.0.samples=s"], "'emoji' needs either samples, or queries, corpus and"),
        (["validation.sets.0.qrels=null"], "'emoji' needs either samples, or queries, corpus and"),
        (["validation.sets.1.name=emoji"], "set names emoji, emoji repeat"),
        (["validation.evry=3"], r"did you mean validation\.every\?"),
        (["track.tensorbord=false"], r"did you mean track\.tensorboard\?"),
        (
            ["objective.preset=metaembed", "validation.metric=recall@1/fused"],
            "budget 'fused' does not exist here",
        ),
    ],
)
def test_a_validation_that_cannot_be_is_refused(
    file: Path, changes: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_run(file, [VALIDATION, *changes])


def test_the_metric_of_the_best_names_a_rung_of_the_ladder(file: Path) -> None:
    assert read_run(file, [VALIDATION]).validation_metric == "recall@10/16x64"
    changes = [VALIDATION, "validation.metric=n/recall@1/fast", "validation.every=200"]
    assert read_run(file, changes).validation_metric == "n/recall@1/2x4"
    rematch = [VALIDATION, "objective.preset=rematch", "validation.metric=recall@1/16x16"]
    assert read_run(file, rematch).validation_metric == "recall@1/16x16"
    # no budget is trained: what is, the fused vector, tells which weights are best
    assert read_run(file, rematch[:2]).validation_metric == "recall@10/fused"


@pytest.mark.parametrize(
    ("workers", "parts", "fits"),
    [("2", 2, True), ("1", 4, True), ("2", 4, False), ("2", 3, False), ("[1,2]", 2, True)],
)
def test_parts_of_a_step_do_not_depend_on_the_workers(
    file: Path, workers: str, parts: int, fits: bool
) -> None:
    changes = [
        "data.order={global_batch: 8, sub_batch: 2}",
        f"train.num_workers={workers}",
        f"optimisation.accumulation={parts}",
    ]
    if fits:
        assert read_run(file, changes).optimisation.accumulation == parts
    else:
        with pytest.raises(UserError, match=f"accumulation {parts} cuts the 4 sub-batches"):
            read_run(file, changes)
