"""Pretraining on a handful of pictures: resumes to the same weights, writes a base others read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from rematch_ray.data.rows import RowEncoder
from rematch_ray.data.schema import Item
from rematch_ray.errors import UserError
from rematch_ray.model.embedder import Embedder
from rematch_ray.training import pretraining
from rematch_ray.training.generative import Picture
from rematch_ray.training.pretraining import (
    LOG_FILE,
    RECIPE_FILE,
    STATE_FILE,
    PretrainSettings,
    pretrain,
)
from tests.tiny import COLOURS, SIZES, TEXTS, model_settings, png

SETTINGS = PretrainSettings(
    tiny=SIZES,
    steps=4,
    pictures={"emoji": 3, "scenes": 2},
    num_questions=2,
    warmup_steps=1,
    log_every=1,
    save_every=2,
)


def squares(encoder: RowEncoder, *_: Any, **__: Any) -> list[Picture]:
    return [
        Picture(
            row=encoder.encode(Item.of(png(colour), id=colour), "document"),
            source=("emoji", "scenes")[number % 2],
            captions=(f"a {colour} square",),
            truths=(f"a {colour} square", f"this is {colour}"),
        )
        for number, colour in enumerate(COLOURS)
    ]


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "training_texts", lambda: iter(TEXTS))
    monkeypatch.setattr(pretraining, "training_pictures", squares)
    monkeypatch.setattr(
        pretraining, "held_out_pictures", lambda part, encoder, *, split: squares(encoder)
    )


class Stopped(Exception):
    """Somebody pulled the plug."""


def stop_at(step: int) -> Callable[[str], None]:
    def say(line: str) -> None:
        if line.startswith(f'{{"step": {step},'):
            raise Stopped

    return say


def quiet(_: str) -> None:
    """Says nothing."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForImageTextToText.from_pretrained(folder).state_dict())


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = pretrain(tmp_path / "whole", SETTINGS, say=quiet)
    with pytest.raises(Stopped):
        pretrain(tmp_path / "cut", SETTINGS, say=stop_at(3))
    assert (tmp_path / "cut" / STATE_FILE).is_file()
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    resumed = pretrain(tmp_path / "cut", SETTINGS, say=quiet)

    assert resumed == whole
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
    # it went on at step 3 and did not begin anew
    log = (tmp_path / "cut" / LOG_FILE).read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4]
    # the state is of no more use and gone
    assert not (tmp_path / "cut" / STATE_FILE).exists()


def test_the_result_is_a_base_with_a_recipe_and_a_log(tmp_path: Path) -> None:
    measured = pretrain(tmp_path, SETTINGS.model_copy(update={"steps": 2}), say=quiet)
    recipe = json.loads((tmp_path / RECIPE_FILE).read_text())
    assert recipe["settings"]["steps"] == 2
    assert recipe["held_out"] == measured
    assert set(measured) == {"composed", "novel", "scenes", "pages"}
    for part in measured.values():
        assert part["caption_loss"] > 0
        assert 0 <= part["caption_exact"] <= 1
        assert 0 <= part["question_accuracy"] <= 1
    log = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2]
    embedder = Embedder.build(model_settings(tmp_path))
    assert len(embedder.encode_document(["a red square", png()])) == 2


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"steps": 25, "learning_rate": 5e-3})
    pretrain(tmp_path, settings, say=quiet)
    log = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert log[-1]["caption"] < 0.7 * log[0]["caption"]


def test_state_of_another_recipe_is_not_continued(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        pretrain(tmp_path, SETTINGS, say=stop_at(3))
    for change in ({"seed": 7}, {"learning_rate": 1e-4}, {"steps": 9}):
        with pytest.raises(UserError, match=rf"{next(iter(change))}.*{STATE_FILE}"):
            pretrain(tmp_path, SETTINGS.model_copy(update=change), say=quiet)
    # how often it logs and saves is no part of the recipe
    pretrain(tmp_path, SETTINGS.model_copy(update={"log_every": 2, "save_every": 1}), say=quiet)


def test_a_recipe_that_asks_for_more_pictures_than_there_are_is_refused(tmp_path: Path) -> None:
    for pictures in ({"emoji": 5}, {"photos": 1}):
        settings = SETTINGS.model_copy(update={"pictures": pictures})
        with pytest.raises(UserError, match=next(iter(pictures))):
            pretrain(tmp_path, settings, say=quiet)
