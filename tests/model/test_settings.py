"""What can be set about a model, and what is refused by name."""

from typing import Any

import pytest
from pydantic import ValidationError

from rematch_ray.model.settings import LoraSettings, ModelSettings


def test_the_defaults_are_the_design() -> None:
    settings = ModelSettings(base="x")
    assert settings.ladder == ("1x1", "2x4", "4x8", "8x16", "16x64")
    assert (settings.embedding_dim, settings.fuse_k, settings.lora) == (128, 16, None)
    assert settings.budgets.num_document_vectors == 64


@pytest.mark.parametrize(
    "given",
    [
        {"ladder": ["4x8", "2x4"]},
        {"ladder": []},
        {"ladder": ["4by8"]},
        {"embedding_dim": 0},
        {"dtype": "float16"},
        {"freeze": ["tower"]},
        {"lora": {"rank": 0}},
        {"lora": {"targets": "all"}},
        {"readout_layers": "all"},
        {"generator": "autoregressive"},
        {"visual_tokens": 64},
        {"fused_dimension": 7},
        {"fused_dim": "wide"},
        {"fused_dim": 0},
        {"min_pixels": 1_000_000, "max_pixels": 10_000},
        {"template": {"match_gap": 0}},
        {"instructions": {"notes": {"passage": "x"}}},
    ],
)
def test_what_is_not_built_or_not_possible_is_refused_by_its_key(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(given))):
        ModelSettings(base="x", **given)


def test_rungs_are_kept_as_written_in_one_form() -> None:
    assert ModelSettings(base="x", ladder=("1X1", " 2x4 ")).ladder == ("1x1", "2x4")


def test_settings_read_back_from_json() -> None:
    settings = ModelSettings(
        base="x", lora=LoraSettings(rank=4), instructions={"a": {"query": "find"}}
    )
    assert ModelSettings.model_validate(settings.model_dump(mode="json")) == settings
