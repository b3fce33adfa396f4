"""What a service says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from rematch_ray.serve.api.base import ApiModel


class CalibrationBody(ApiModel):
    """Whether plans are chosen by measurement."""

    valid: bool
    why: str | None = Field(description="why it is not valid")
    summary: dict[str, Any] = Field(description="what was measured, on which queries")


class InfoBody(ApiModel):
    """What is served, to whom how much of it."""

    name: str
    version: str
    index: dict[str, Any]
    model: dict[str, Any]
    budgets: dict[str, str] = Field(description="every budget -> the rung it stands for")
    default_budget: str
    coarse_choices: list[str] = Field(description="what 'coarse' of a search may be")
    instruction: str = Field(description="default instruction of queries")
    calibration: CalibrationBody
    load: dict[str, Any] = Field(description="of the moment: ceiling, level, refusing")
    limits: dict[str, Any]


def calibration_body(calibration: Mapping[str, Any] | None) -> CalibrationBody:
    """What the index says of its calibration, in one shape whether there is one or not.

    >>> calibration_body(None).why
    'the index has not been calibrated: run rematch-ray doctor'
    """
    if calibration is None:
        why = "the index has not been calibrated: run rematch-ray doctor"
        return CalibrationBody(valid=False, why=why, summary={})
    summary = {name: value for name, value in calibration.items() if name != "void"}
    void = calibration.get("void")
    return CalibrationBody(valid=void is None, why=void, summary=summary)
