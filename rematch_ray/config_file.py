"""Any configuration: YAML plus dotted overrides -> a checked settings class, or one line of error.

Knows pydantic models and their keys, none of ours in particular: what can be set stands in
config.py and beside what is built. Middle floor.
"""

import inspect
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from rematch_ray.errors import UserError, did_you_mean


class Settings(BaseModel):
    """A section of a configuration: frozen, unknown keys refused, one docstring line per key."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


AnySettings = TypeVar("AnySettings", bound=BaseModel)


def read_settings(
    model: type[AnySettings], path: Path | str | None, overrides: Sequence[str] = ()
) -> AnySettings:
    """Read a configuration.

    Args:
        model: the settings class.
        path: YAML file; None starts from the defaults.
        overrides: `a.b=value` each, the value in YAML; they replace what the file says.

    Returns:
        The checked settings.

    Raises:
        UserError: no such file, no YAML, an unknown key (with the nearest known one) or a value
            that its key does not allow.
    """
    where = f"{path}: " if path is not None else ""
    values = _read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        _apply(model, values, override)
    _refuse_unknown(model, values, where)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(_complaints(error, where, overrides)) from error


def describe(model: type[BaseModel]) -> str:
    """List every key of a settings class: dotted name, type, default and what it means."""
    lines = []
    for key, owner, name in _walk(model, ""):
        field = owner.model_fields[name]
        if _model_inside(field.annotation) is None or not _shows_inside(field):
            lines.append(f"  {key}: {_spell(field.annotation)}{_default(field)}")
            lines.append(f"      {meaning(owner, name)}")
    return "\n".join(lines)


def meaning(model: type[BaseModel], name: str) -> str:
    """Return a key's docstring line: below the field, or under `Attributes` of its class."""
    if description := model.model_fields[name].description:
        return " ".join(description.split())
    _, _, attributes = inspect.cleandoc(model.__doc__ or "").partition("Attributes:\n")
    found = re.search(rf"^ +{name}: (.*(?:\n {{8,}}.*)*)", attributes, re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read configuration {path}: {error.strerror}; name a YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; write 'key: value' lines")
    return content


def _apply(model: type[BaseModel], values: dict[str, Any], override: str) -> None:
    """Set one `a.b=value` in nested values; a number in the dotted name is a place in a list."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(
            f"override '{override}' is not of the form key=value, as in train.steps=100"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override '{override}': the value is not YAML") from error
    *path, last = key.split(".")
    node: Any = values
    for i, part in enumerate(path):
        node = _child(node, part, ".".join(path[: i + 1]), override)
    if isinstance(node, list):
        node[_place(node, last, key, override)] = value
    else:
        node[last] = value
    # at once, so that the message names the override and not the file
    _refuse_unknown(model, values, f"override '{override}': ")


def _child(node: Any, part: str, key: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_place(node, part, key, override)]
    if node.get(part) is None:
        node[part] = {}
    if not isinstance(node[part], dict | list):
        raise UserError(f"override '{override}': {key} is a single value, it has no keys")
    return node[part]


def _place(node: list[Any], part: str, key: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise UserError(
            f"override '{override}': {key} names no entry; allowed: 0 to {len(node) - 1}"
        )
    return int(part)


def _refuse_unknown(model: type[BaseModel], values: Mapping[Any, Any], where: str) -> None:
    for key in _unknown_keys(model, values, ""):
        section = key.rpartition(".")[0]
        known = [name for name, _, _ in _walk(model, "")]
        siblings = [name for name in known if name.rpartition(".")[0] == _unindexed(section)]
        raise UserError(f"{where}unknown key {key}; {did_you_mean(_unindexed(key), siblings)}")


def _unindexed(key: str) -> str:
    return ".".join("N" if part.isdigit() else part for part in key.split("."))


def _unknown_keys(model: type[BaseModel], values: Mapping[Any, Any], prefix: str) -> list[str]:
    unknown: list[str] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        field = model.model_fields.get(str(key))
        if field is None:
            unknown.append(name)
            continue
        inner = _model_inside(field.annotation)
        if inner is not None and isinstance(value, Mapping):
            unknown += _unknown_keys(inner, value, f"{name}.")
        elif inner is not None and isinstance(value, list):
            for i, entry in enumerate(value):
                if isinstance(entry, Mapping):
                    unknown += _unknown_keys(inner, entry, f"{name}.{i}.")
    return unknown


def _model_inside(annotation: Any) -> type[BaseModel] | None:
    """Return the settings class that an annotation holds, alone, optional or in a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        if (inner := _model_inside(argument)) is not None:
            return inner
    return None


def _walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel], str]]:
    """Yield (dotted key, its class, its name) of every key, a section before its keys."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        yield key, model, name
        if (inner := _model_inside(field.annotation)) is not None:
            many = typing.get_origin(field.annotation) in (tuple, list)
            yield from _walk(inner, f"{key}.N." if many else f"{key}.")


def _shows_inside(field: FieldInfo) -> bool:
    """Whether a section's keys say all there is: it is neither optional nor a list."""
    return isinstance(field.annotation, type)


def _spell(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Literal:
        return " | ".join(str(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_spell(argument) for argument in arguments)
    if origin in (tuple, list):
        return f"list of {_spell(arguments[0])}"
    if origin is not None:
        return "mapping"
    if _model_inside(annotation):
        return "section"
    return {"Path": "path", "str": "text"}.get(annotation.__name__, annotation.__name__)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return " (required)"
    value = field.get_default(call_default_factory=True)
    plain = TypeAdapter(Any).dump_python(value, mode="json")
    return f" = {json.dumps(plain, ensure_ascii=False)}"


def _complaints(error: ValidationError, where: str, overrides: Sequence[str]) -> str:
    """What is wrong, in one line, each with the override that said it or else the file."""
    set_by = {text.partition("=")[0]: text for text in overrides}
    found: list[str] = []
    last = ""
    for detail in error.errors(include_url=False):
        key = ".".join(str(part) for part in detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        given = detail["input"]
        override = next((text for name, text in set_by.items() if _is_within(key, name)), None)
        place = where if override is None else f"override '{override}': "
        is_said = override is not None or isinstance(given, dict | list | BaseModel)
        shown = "" if is_said else f" (given: {given!r})"
        found.append(
            ("" if place == last else place) + (f"{key}: " if key else "") + message + shown
        )
        last = place
    return "; ".join(found)


def _is_within(key: str, section: str) -> bool:
    """Whether a dotted key is one that an override of `section` set, itself or inside it.

    >>> [_is_within(key, "train.steps") for key in ("train.steps", "train.steps.0", "train")]
    [True, True, False]
    """
    return f"{key}.".startswith(f"{section}.")
