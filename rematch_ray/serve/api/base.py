"""What every body that crosses HTTP shares: unknown fields refused, types taken at their word, and
JSON of the caller's own checked before it is kept. Knows no endpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

MAX_JSON_DEPTH = 16
_INT64 = range(-(2**63), 2**63)


class ApiModel(BaseModel):
    """Base of everything that crosses HTTP."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


def encodable(text: str) -> str:
    """Refuse text that UTF-8 cannot carry: JSON escapes may hold half of a surrogate pair.

    Raises:
        ValueError: it does.
    """
    try:
        text.encode()
    except UnicodeEncodeError as half:
        raise ValueError("a text holds half of a surrogate pair: send valid Unicode") from half
    return text


# of every text that a caller sends
Text = Annotated[str, AfterValidator(encodable)]


class ErrorDetail(ApiModel):
    """What went wrong."""

    message: str
    type: str
    code: str
    param: str | None


class ErrorBody(ApiModel):
    """The one shape of every failure."""

    error: ErrorDetail


def plain_json(value: Any) -> Any:
    """Refuse JSON that a parser lets through and that cannot be stored or sent.

    Args:
        value: what was parsed.

    Returns:
        The same value.

    Raises:
        ValueError: NaN or infinity, a number beyond 64 bits, half of a surrogate pair, or too deep.

    >>> plain_json({"year": 1999, "tags": ["a"]})
    {'year': 1999, 'tags': ['a']}
    """
    _check(value, MAX_JSON_DEPTH)
    return value


def _check(value: Any, depth: int) -> None:
    if depth == 0:
        raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels")
    if isinstance(value, Mapping):
        for name, held in value.items():
            _check(name, depth - 1)
            _check(held, depth - 1)
    elif isinstance(value, list):
        for held in value:
            _check(held, depth - 1)
    elif isinstance(value, str):
        encodable(value)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("NaN and infinity are not JSON: leave the field out, or send null")
    elif isinstance(value, int) and value not in _INT64:
        raise ValueError("a number beyond 64 bits: send it as text")


PlainJson = Annotated[dict[str, Any], AfterValidator(plain_json)]


def number_or_word(value: Any) -> str:
    """Which of two forms a value has, so that a mistake is explained for that one alone."""
    return "<word>" if isinstance(value, str) else "<number>"


def flag_or_fields(value: Any) -> str:
    """As `number_or_word`, of a switch that may be given in detail."""
    return "<fields>" if isinstance(value, dict | BaseModel) else "<flag>"
