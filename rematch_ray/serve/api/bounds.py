"""Lists of a body, measured before anything in them is looked at.

Otherwise a list that is a thousand times too long is read to its end, and each of its mistakes is
told, before its length is. Knows no endpoint; how long a list may be is a setting of the service,
which `limits_held` tells while a body is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from rematch_ray.serve.failures import TOO_MANY
from rematch_ray.serve.settings import Limits

_held: ContextVar[Limits | None] = ContextVar("limits", default=None)


@contextmanager
def limits_held(limits: Limits) -> Iterator[None]:
    """Read bodies within these limits; without it, those of `Limits` by default."""
    token = _held.set(limits)
    try:
        yield
    finally:
        _held.reset(token)


@dataclass(frozen=True)
class Bounded:
    """Annotation of a list: its length is checked first, and its first mistake is the only one.

    Attributes:
        what: its members, in messages.
        most: members: a number, or the field of `Limits` that holds it.
        least: members.
    """

    what: str
    most: str | int
    least: int = 0

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """See pydantic: the list's own schema, behind the check of its length."""
        inner = handler(source)
        assert inner["type"] == "list", "only lists are bounded"
        least = {"min_length": self.least} if self.least else {}
        bounded = {**inner, **least, "fail_fast": True}
        return core_schema.no_info_before_validator_function(self._check, bounded)

    def _check(self, value: Any) -> Any:
        if isinstance(value, list):
            check_count(len(value), self.what, self.most)
        return value


def check_count(count: int, what: str, most: str | int) -> None:
    """Refuse more of something than a request may hold.

    Args:
        count: of them, or as many as were counted until it was too many.
        what: they are.
        most: see `Bounded`.

    Raises:
        PydanticCustomError: it is more; answered with 400, see `failures.from_validation`.
    """
    allowed = most if isinstance(most, int) else int(getattr(_held.get() or Limits(), most))
    if count > allowed:
        told = {"count": count, "what": what, "allowed": allowed}
        raise PydanticCustomError(TOO_MANY, "{count} {what}, at most {allowed}", told)
