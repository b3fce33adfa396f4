"""The presets of the papers, keys that win over them, and combinations that cannot train."""

from typing import Any

import pytest
from pydantic import ValidationError

from rematch_ray.training.settings import ObjectiveSettings, OptimisationSettings


@pytest.mark.parametrize(
    ("preset", "weights", "reduce", "hard_negatives"),
    [
        ("joint", (1, 1, 0.5, 0.1), "mean", "private"),
        ("rematch", (1, 0, 0.5, 0.1), "mean", "pooled"),
        ("metaembed", (0, 1, 0, 0), "sum", "private"),
    ],
)
def test_a_preset_is_its_row_of_the_design(
    preset: str, weights: tuple[float, ...], reduce: str, hard_negatives: str
) -> None:
    settings = ObjectiveSettings.model_validate({"preset": preset})
    assert tuple(settings.weights.values()) == weights
    assert settings.maxsim_reduce == reduce
    assert settings.hard_negatives == hard_negatives
    assert (settings.temperature_fused, settings.temperature_maxsim) == (0.02, 0.03)


def test_a_key_given_beside_a_preset_wins() -> None:
    settings = ObjectiveSettings(preset="rematch", hard_negatives="private", w_groups=0.3)
    assert settings.hard_negatives == "private"
    assert settings.w_groups == 0.3
    assert settings.w_orth == 0.5


def test_settings_read_back_from_json() -> None:
    for preset in ("joint", "rematch", "metaembed"):
        settings = ObjectiveSettings.model_validate({"preset": preset, "margin": None})
        assert ObjectiveSettings.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"w_fused": 0, "w_groups": 0, "w_match": 0}, "w_fused and w_groups"),
        ({"w_fused": 0}, "w_match needs the fused"),
        ({"preset": "metaembed", "margin": 0.1}, "margin is judged"),
        ({"w_fused": -1}, "w_fused"),
        ({"preset": "colbert"}, "preset"),
        ({"match_form": "unpacked"}, "match_form"),
        ({"z_tokens": 4}, "z_tokens"),
        ({"match_share": 0}, "match_share"),
        ({"train_reduce": "topk_mean"}, "train_reduce"),
        ({"temprature_fused": 0.1}, "temprature_fused"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_its_key(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ObjectiveSettings(**given)


def test_optimisation_refuses_what_is_no_rate() -> None:
    for given in ({"learning_rate": 0}, {"clip": 0}, {"schedule": "step"}, {"warmup": 3}):
        with pytest.raises(ValidationError, match=next(iter(given))):
            OptimisationSettings.model_validate(given)


@pytest.mark.parametrize("key", ["temperature_fused", "temperature_maxsim"])
def test_a_learned_temperature_begins_in_its_range(key: str) -> None:
    for value in (0.01, 0.2):
        assert ObjectiveSettings.model_validate({key: value, "learn_temperatures": True})
    for value in (0.0099, 0.5):
        assert ObjectiveSettings.model_validate({key: value})
        with pytest.raises(ValidationError, match=rf"{key} is {value}.*\[0.01, 0.2\]"):
            ObjectiveSettings.model_validate({key: value, "learn_temperatures": True})
