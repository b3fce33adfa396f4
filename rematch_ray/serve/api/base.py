"""What every body that crosses HTTP shares: unknown fields refused, types taken at their word, and
JSON of the caller's own checked before it is kept. Knows no endpoint.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from rematch_ray.serve.api.bounds import check_count

MAX_JSON_DEPTH = 16
_LEAST, _MOST = -(2**63), 2**63 - 1


class ApiModel(BaseModel):
    """Base of everything that crosses HTTP."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class RequestModel(ApiModel):
    """Base of what callers send: of many fields that there are not, the first alone is told."""

    @model_validator(mode="before")
    @classmethod
    def _first_unknown(cls, sent: Any) -> Any:
        if not isinstance(sent, dict) or len(sent) <= len(cls.model_fields):
            return sent
        unknown = next(name for name in sent if name not in cls.model_fields)
        known = {name: sent[name] for name in cls.model_fields if name in sent}
        return known | {unknown: sent[unknown]}


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


def plain_json(value: Any, *, most: str | int | None = None) -> Any:
    """Refuse JSON that a parser lets through and that cannot be stored or sent.

    Args:
        value: what was parsed: an object or an array.
        most: names and values that it may hold, inner ones with them, see `check_count`; None: any.

    Returns:
        The same value.

    Raises:
        ValueError: NaN or infinity, a number beyond 64 bits, half of a surrogate pair, or too deep.
        PydanticCustomError: it holds too many.

    >>> plain_json({"year": 1999, "tags": ["a"]})
    {'year': 1999, 'tags': ['a']}
    """
    waiting, count = [(value, MAX_JSON_DEPTH)], 0
    while waiting:
        held, depth = waiting.pop()
        if depth == 0 or (held and depth == 1):
            raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels")
        count += len(held)
        if most is not None:
            check_count(count, "values", most)
        for one in chain(held, held.values()) if isinstance(held, dict) else held:
            # by their own types, as a parser gives them: there may be millions
            kind = type(one)
            if kind is dict or kind is list:
                waiting.append((one, depth - 1))
            elif kind is str:
                encodable(one)
            elif kind is int:
                if not _LEAST <= one <= _MOST:
                    raise ValueError("a number beyond 64 bits: send it as text")
            elif kind is float and not math.isfinite(one):
                raise ValueError("NaN and infinity are not JSON: leave the field out, or send null")
    return value


def _plain_filter(value: dict[str, Any]) -> Any:
    return plain_json(value, most="max_filter_values")


PlainJson = Annotated[dict[str, Any], AfterValidator(plain_json)]
Filter = Annotated[dict[str, Any], AfterValidator(_plain_filter)]


def number_or_word(value: Any) -> str:
    """Which of two forms a value has, so that a mistake is explained for that one alone."""
    return "<word>" if isinstance(value, str) else "<number>"


def flag_or_fields(value: Any) -> str:
    """As `number_or_word`, of a switch that may be given in detail."""
    return "<fields>" if isinstance(value, dict | BaseModel) else "<flag>"
