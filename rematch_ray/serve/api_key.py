"""An API key as settings and key files give it: by its hash, with what it may do and how much.

Read and checked without Ray; who compares a sent key with it is `serve.keys`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from rematch_ray.errors import UserError

KeyScope = Literal["read", "write", "admin", "metrics"]
SCOPES: tuple[str, ...] = get_args(KeyScope)
LINE = "NAME SHA256 [read,write,admin,metrics] [requests_per_s=N] [dot_products_per_s=N]"

_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_RATES = ("requests_per_s", "dot_products_per_s")


class ApiKey(BaseModel):
    """One caller's key, by its hash: the key itself is never written down."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(
        min_length=1,
        description="who holds it; appears in logs. Two keys of one name are for rotation",
    )
    sha256: str = Field(description="hex digest: printf %s KEY | sha256sum")
    scopes: frozenset[KeyScope] = Field(
        frozenset({"read"}), description="read, write, admin and metrics: what it may do"
    )
    requests_per_s: float | None = Field(
        None, gt=0, description="quota of its name, over all replicas; none: quotas.requests_per_s"
    )
    dot_products_per_s: float | None = Field(
        None, gt=0, description="likewise, of search work; none: quotas.dot_products_per_s"
    )

    @field_validator("sha256")
    @classmethod
    def _is_a_digest(cls, text: str) -> str:
        if not _SHA256.match(text.lower()):
            raise ValueError("sha256 must be 64 hex digits: printf %s KEY | sha256sum")
        return text.lower()


def read_key_file(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file, one a line; empty lines and those that start with # are left out.

    Raises:
        UserError: it cannot be read, or a line of it is no key.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as unreadable:
        raise UserError(f"api keys file {path} cannot be read: {unreadable}") from unreadable
    keys = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            keys.append(_parse(line))
        except ValueError as wrong:
            raise UserError(
                f"api keys file {path}, line {number}: {_reason(wrong)}; expected '{LINE}'"
            ) from wrong
    return tuple(keys)


def all_keys(
    given: Iterable[ApiKey], file: Path | None, *, allow_anonymous: bool
) -> tuple[ApiKey, ...]:
    """The keys of settings and of the file they name, checked together.

    Args:
        given: in the settings themselves.
        file: with more; None for none. One that is named has to hold a key where the settings hold
            none: a secret that is mounted empty must not open a service.
        allow_anonymous: whether there may be no keys at all, and no file.

    Raises:
        UserError: the file cannot be read or a line of it is no key, keys contradict each other,
            or there is no key where there has to be one.
    """
    keys = (*given, *(read_key_file(file) if file else ()))
    check_keys(keys)
    if not keys and file is not None:
        raise UserError(
            f"api keys file {file} holds no key: add a line '{LINE}', or name no file on a "
            "service that is bound to loopback"
        )
    if not keys and not allow_anonymous:
        raise UserError(
            "refusing to start without API keys: give api_keys or api_keys_file "
            f"(lines '{LINE}'); 'rematch-ray serve' takes --api-keys-file, and needs none on "
            "loopback (--host 127.0.0.1, its default)"
        )
    return keys


def check_keys(keys: Iterable[ApiKey]) -> None:
    """Whether keys make sense together.

    Raises:
        UserError: one key belongs to two names, or the keys of one name have different quotas.
    """
    names: dict[str, str] = {}
    rates: dict[str, tuple[float | None, float | None]] = {}
    for key in keys:
        if names.setdefault(key.sha256, key.name) != key.name:
            raise UserError(
                f"API keys: {names[key.sha256]!r} and {key.name!r} have the same key; give each "
                "its own"
            )
        given = (key.requests_per_s, key.dot_products_per_s)
        if rates.setdefault(key.name, given) != given:
            raise UserError(
                f"API keys: two keys of {key.name!r} have different quotas; a quota belongs to the "
                "name: write the same on both lines"
            )


def _parse(line: str) -> ApiKey:
    name, *rest = line.split()
    if not rest:
        raise ValueError("only one word")
    fields: dict[str, object] = {"name": name, "sha256": rest[0]}
    for word in rest[1:]:
        key, given, value = word.partition("=")
        key, value = (key, value) if given else ("scopes", word)
        if key in fields or (given and key not in _RATES):
            raise ValueError(f"{word!r} is unknown or there twice")
        fields[key] = value.split(",") if key == "scopes" else value
    return ApiKey.model_validate(fields)


def _reason(wrong: ValueError) -> str:
    if not isinstance(wrong, ValidationError):
        return str(wrong)
    problem = wrong.errors()[0]
    # never what was given: it may be a key that was pasted in the wrong place
    return f"{problem['loc'][0]}: {problem['msg']}"
