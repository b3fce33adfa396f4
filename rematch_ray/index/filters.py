"""A filter over payload fields, checked against the fields that there are. Middle floor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rematch_ray.errors import UserError, did_you_mean


def check_filter(
    filter: Mapping[str, Any] | None, fields: Mapping[str, str]
) -> dict[str, list[str | int | float | bool]]:
    """Turns a filter into field -> allowed values.

    Raises:
        UserError: an unknown field (the nearest known one is named) or a value of another kind.

    >>> check_filter({"group": "animals"}, {"group": "string"})
    {'group': ['animals']}
    """
    checked = {}
    for field, wanted in (filter or {}).items():
        if field not in fields:
            raise UserError(f"filter field '{field}' is not there; {did_you_mean(field, fields)}")
        values = list(wanted) if isinstance(wanted, (list, tuple, set, frozenset)) else [wanted]
        for value in values:
            if not _is_scalar(value):
                raise UserError(
                    f"filter value {value!r} of '{field}' is not possible: give a text, a number "
                    "that is finite, true or false, or a list of those"
                )
        checked[field] = values
    return checked


def _is_scalar(value: Any) -> bool:
    """Whether SQLite takes a value in JSON: no infinity, NaN or half of a surrogate pair."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return not any("\ud800" <= sign <= "\udfff" for sign in value)
    return isinstance(value, int)
