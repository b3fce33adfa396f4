"""Which documents share a hit: one per value of a payload field, or per source. Middle floor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Grouping:
    """One hit per value of a payload field, and a document that stands for no group.

    Attributes:
        field: of the payload, nested ones by dots; `source` is the document's.
        apart: id that is a group of its own: whoever leaves it out afterwards loses nothing else.
    """

    field: str
    apart: str


# a field's name alone sets no document apart
GroupBy = str | Grouping
# kept beside the payload, though a filter names it as it does a field
SOURCE = "source"


def field_of(group_by: GroupBy) -> str:
    """The payload field."""
    return group_by.field if isinstance(group_by, Grouping) else group_by


def needs_source(group_by: GroupBy | None) -> bool:
    """Whether documents are grouped by what their payload may not hold."""
    return group_by is not None and field_of(group_by) == SOURCE


def value_of(payload: Mapping[str, Any], group_by: GroupBy, *, source: str = "") -> Any:
    """What a document is grouped by, None for nothing; arguments as of `group_of`.

    >>> value_of({"of": {"name": "x"}}, "of.name"), value_of({}, "source", source="emoji")
    ('x', 'emoji')
    """
    value: Any = payload
    for name in field_of(group_by).split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return (source or None) if value is None and needs_source(group_by) else value


def group_of(
    document_id: str, payload: Mapping[str, Any], group_by: GroupBy, *, source: str = ""
) -> str:
    """The group of a document; one without the field is a group of its own.

    Args:
        document_id: of the document.
        payload: of the document.
        group_by: what is grouped by.
        source: of the document, "" for none, where `needs_source` says so; a payload's own field
            of that name comes first.

    >>> group_of("a", {"kind": "cat"}, "kind") == group_of("b", {"kind": "cat"}, "kind")
    True
    >>> group_of("a", {"kind": "cat"}, Grouping("kind", "a")), group_of("a", {}, "kind")
    ('id a', 'id a')
    >>> group_of("a", {}, "source", source="emoji"), group_of("a", {}, "source")
    ('value "emoji"', 'id a')
    """
    value = value_of(payload, group_by, source=source)
    is_apart = isinstance(group_by, Grouping) and document_id == group_by.apart
    if value is None or is_apart:
        return f"id {document_id}"
    return f"value {json.dumps(value, sort_keys=True)}"
