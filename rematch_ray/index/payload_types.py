"""Types of payload fields: what an index holds, what a new document gives, and whether they agree.

A filter compares values of one kind, so a field keeps the kind that its first document gave it.
Knows nothing of where payloads are kept. Middle floor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rematch_ray.errors import UserError

MOST_NESTING = 16
_WHOLE_NUMBERS = range(-(2**63), 2**63)
_LIST = re.compile(r"^(?:large_|fixed_size_)?list(?:_view)?<\w+: (.*?)>(?:\[\d+\])?$")
_NUMBER = re.compile(r"^(u?int\d+|float|double|halffloat|float\d+|decimal\d*\(.*)$")
_TEXT = re.compile(r"^(large_)?(string|utf8)(_view)?$|^(timestamp|date|time|duration|dictionary)")
_ANY, _LIST_OF_ANY = "anything", "a list"
# type of a field that is null wherever it stands
_NOTHING = "null"


def field_types(payload: Mapping[str, Any], document_id: str) -> dict[str, str]:
    """Arrow type of every field of a payload, nested ones by dotted name; none of a null.

    Args:
        payload: what `plain_payload` gives.
        document_id: for messages.

    Raises:
        UserError: a list of several kinds, a text or number that cannot be stored, or too deep a
            nesting; names field and document.

    >>> field_types({"year": 1984, "of": {"name": "x", "tags": ["a"]}, "none": None}, "d")
    {'year': 'int64', 'of.name': 'string', 'of.tags': 'list<element: string>'}
    """
    return dict(_walk(payload, "", document_id, 1))


def check_types(given: Mapping[str, str], held: Mapping[str, str], where: str) -> None:
    """Compares the fields of documents with those of an index.

    Args:
        given: what `field_types` or an embedding directory says.
        held: fields of the index and their types; others are new, and welcome.
        where: the fields are from, for messages.

    Raises:
        UserError: a field of another kind than the index holds; names it and where it is from.
    """
    for name, kind in given.items():
        if kind == _NOTHING:
            continue
        if (stored := held.get(name, _NOTHING)) != _NOTHING:
            if not _agree(kind_of(kind), kind_of(stored)):
                raise UserError(
                    f"{where}: payload field '{name}' is {kind_of(kind)}, the index holds "
                    f"{kind_of(stored)} there: give that, or use another field"
                )
            continue
        if (other := _crossing(name, held)) is not None:
            raise UserError(
                f"{where}: payload field '{name}' crosses '{other}', which the index holds: a "
                "field is a value or has fields of its own, use another name"
            )


def join_types(parts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Fields of several documents, files or segments, each of the type of the first value there.

    >>> join_types([{"a": "null", "b": "int64"}, {"a": "string", "b": "double"}])
    {'a': 'string', 'b': 'int64'}
    """
    fields: dict[str, str] = {}
    for part in parts:
        for name, kind in part.items():
            # nulls, and a list without members, say less than what is there
            if name not in fields or _NOTHING in fields[name]:
                fields[name] = kind
    return fields


def kind_of(arrow_type: str) -> str:
    """What a user calls an Arrow type.

    >>> [kind_of(text) for text in ("int64", "timestamp[us]", "list<element: string>")]
    ['a number', 'a text', 'a list of texts']
    """
    if inner := _LIST.match(arrow_type):
        member = kind_of(inner.group(1))
        plain = member in ("a number", "a text", "a boolean")
        return f"a list of {member.removeprefix('a ')}s" if plain else _LIST_OF_ANY
    if arrow_type == "bool":
        return "a boolean"
    if _NUMBER.match(arrow_type):
        return "a number"
    return "a text" if _TEXT.match(arrow_type) else _ANY


def _agree(given: str, stored: str) -> bool:
    if _ANY in (given, stored):
        return True
    if _LIST_OF_ANY in (given, stored):
        return given.startswith(_LIST_OF_ANY) and stored.startswith(_LIST_OF_ANY)
    return given == stored


def _crossing(name: str, held: Mapping[str, str]) -> str | None:
    crossing = (h for h in held if h.startswith(f"{name}.") or name.startswith(f"{h}."))
    return next((h for h in crossing if held[h] != _NOTHING), None)


def _walk(
    payload: Mapping[str, Any], prefix: str, document_id: str, depth: int
) -> Iterable[tuple[str, str]]:
    for name, value in payload.items():
        field = prefix + name
        _refuse_unstorable(name, field, document_id)
        if depth > MOST_NESTING:
            raise _refusal(document_id, field, f"lies deeper than {MOST_NESTING} levels")
        if isinstance(value, Mapping):
            yield from _walk(value, f"{field}.", document_id, depth + 1)
        elif value is not None:
            yield field, _type_of(value, field, document_id, depth)


def _type_of(value: Any, field: str, document_id: str, depth: int) -> str:
    if isinstance(value, list):
        if depth > MOST_NESTING:
            raise _refusal(document_id, field, f"lies deeper than {MOST_NESTING} levels")
        members = {_type_of(m, field, document_id, depth + 1) for m in value if m is not None}
        if members == {"int64", "double"}:
            members = {"double"}
        if len(members) > 1:
            named = ", ".join(sorted(kind_of(member) for member in members))
            raise _refusal(document_id, field, f"is a list of different kinds ({named})")
        return f"list<element: {members.pop() if members else 'null'}>"
    if isinstance(value, Mapping):
        for inner in _walk(value, f"{field}.", document_id, depth + 1):
            del inner  # read for what it refuses: fields of a list's members have no type
        return "struct"
    _refuse_unstorable(value, field, document_id)
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    return "int64" if isinstance(value, int) else "double"


def refuse_large(value: int, field: str, document_id: str) -> None:
    """Refuses what is stored nowhere as a whole number: Arrow's uint64 goes further than SQLite.

    Raises:
        UserError: names field and document.
    """
    if value not in _WHOLE_NUMBERS:
        raise _refusal(
            document_id,
            field,
            f"is {value}, whole numbers have at most 64 bits with their sign (up to 2**63 - 1): "
            "write it as a text",
        )


def _refuse_unstorable(value: Any, field: str, document_id: str) -> None:
    if isinstance(value, int):
        refuse_large(value, field, document_id)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as broken:
            raise _refusal(
                document_id, repr(field)[1:-1], "holds half of a surrogate pair, which is no text"
            ) from broken


def _refusal(document_id: str, field: str, reason: str) -> UserError:
    return UserError(f"document '{document_id}': payload field '{field}' {reason}")
