"""Records of an index read from the fields of its JSON files, each of the type it is said to be.

Knows which file is read for messages alone, and no record. Middle floor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rematch_ray.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")

# what a field is, by how its type begins
_TYPES = {"int": int, "str": str, "bool": bool, "Mapping": Mapping, "tuple": tuple}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what a damaged file leads to into an error that names it.

    Args:
        path: the file that records are read from.

    Raises:
        UserError: in place of what a missing, unknown or mistyped field raises.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as broken:
        raise UserError(
            f"{path} is no manifest that this software wrote ({broken!r}): the index is damaged, "
            "build it again"
        ) from broken


def read_record(kind: type[Record], given: Mapping[str, Any]) -> Record:
    """A record, once its fields are of the types that they are said to be.

    Args:
        kind: a dataclass.
        given: its fields.

    Raises:
        TypeError: a field is missing, unknown or of another type.
    """
    made = kind(**given)
    for each in dataclasses.fields(made):
        value, name = getattr(made, each.name), str(each.type)
        expected = next((t for start, t in _TYPES.items() if name.startswith(start)), object)
        if not isinstance(value, expected) and not (value is None and name.endswith("| None")):
            raise TypeError(f"{each.name} is {value!r}, not {name}")
    return made
