"""What a run, an embedding job and an evaluation are told: YAML plus dotted overrides, checked.

Settings of the middle floor stand beside what they build; those of the Ray workloads stand here, so
that a configuration is read, checked and documented without importing Ray. Every key takes effect
or is refused by name. Middle floor.
"""

import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rematch_ray.data.order import OrderSettings
from rematch_ray.errors import UserError, did_you_mean
from rematch_ray.model.settings import ModelSettings
from rematch_ray.training.settings import ObjectiveSettings, OptimisationSettings


class Settings(BaseModel):
    """A section of a configuration: frozen, unknown keys refused, one docstring line per key."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SourceSettings(Settings):
    """One source of training rows."""

    name: str
    """Name of the source; sub-batches hold one source each."""
    path: Path
    """A Parquet file of Samples, or a directory of them."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the sub-batches relative to the other sources; none = by its number of rows."""


class DataSettings(Settings):
    """What is read, in which order, and what of each row."""

    sources: tuple[SourceSettings, ...] = Field(min_length=1)
    """The sources of training rows."""
    max_negatives: int = Field(default=1, ge=0)
    """Hard negatives taken from each row, drawn anew every epoch."""
    order: OrderSettings = OrderSettings()
    """Batch sizes, shuffle window and mixing."""

    @model_validator(mode="after")
    def _names_differ(self) -> "DataSettings":
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"source names {', '.join(names)} repeat; give each its own")
        return self


class TrainSettings(Settings):
    """How the training run is spread over the cluster, saved and reported."""

    steps: int = Field(gt=0)
    """Optimisation steps of the whole run, over all epochs."""
    num_workers: int = Field(default=2, gt=0)
    """Training processes; may change when a run goes on."""
    cpus_per_worker: float = Field(default=0.5, gt=0)
    """Logical CPUs each training process reserves."""
    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs each training process reserves; 0 trains on CPU with gloo."""
    cpus_per_encoder: float = Field(default=1.0, gt=0)
    """Logical CPUs of each task that decodes images and runs the processor."""
    prefetch_steps: int = Field(default=2, ge=0)
    """Steps whose batches a training process holds ready."""
    checkpoint_every: int = Field(default=100, gt=0)
    """Steps between checkpoints; one is always written after the last step."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """Checkpoints kept; older ones are deleted."""
    max_failures: int = Field(default=3, ge=0)
    """Times the workers are restarted from the last checkpoint before the run fails."""
    progress_seconds: float = Field(default=5.0, gt=0)
    """Seconds between two lines of progress."""
    collective_timeout_seconds: float = Field(default=300.0, gt=0)
    """Seconds after which a rank that waits for another one fails (and the run is restarted)."""


class RunConfig(Settings):
    """A training run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; with `storage` it is the run's directory, and its identity when resumed."""
    storage: Path = Path("runs")
    """Directory that holds runs; on several nodes one that all of them share."""
    seed: int = Field(default=0, ge=0)
    """Seed of the initial weights, the order of rows and every draw."""
    model: ModelSettings
    """The base model and what is added to it."""
    objective: ObjectiveSettings = Field(default_factory=ObjectiveSettings)
    """The loss: its terms, weights, groups and masks."""
    optimisation: OptimisationSettings = Field(default_factory=OptimisationSettings)
    """The optimiser and its schedule."""
    data: DataSettings
    """Sources and order of the training rows."""
    train: TrainSettings
    """Workers, checkpoints and progress."""

    @property
    def directory(self) -> Path:
        """The run directory, absolute: training workers run in a directory of their own."""
        return self.storage.expanduser().absolute() / self.name


class EmbedSettings(Settings):
    """How an embedding job is spread over the cluster and what it accepts."""

    batch_rows: int = Field(default=32, gt=0)
    """Items per forward pass."""
    num_actors: int = Field(default=1, gt=0)
    """Processes that hold the model."""
    cpus_per_actor: float = Field(default=1.0, gt=0)
    """Logical CPUs each of them reserves."""
    gpus_per_actor: float = Field(default=0, ge=0)
    """GPUs each of them reserves; 0 embeds on CPU."""
    cpus_per_encoder: float = Field(default=1.0, gt=0)
    """Logical CPUs of each task that decodes images and runs the processor."""
    rows_per_shard: int = Field(default=4096, gt=0)
    """Rows that a shard holds at least (but for the last), unless the whole corpus is smaller."""
    max_bad_share: float = Field(default=0.01, ge=0, le=1)
    """Share of rows that may be quarantined before the job stops with an error."""


AnySettings = TypeVar("AnySettings", bound=BaseModel)
Kind = Literal["run", "embed"]


def read_run(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a training run.

    Args:
        path: YAML file.
        overrides: `a.b=value` each, the value in YAML; they replace what the file says.

    Returns:
        The checked configuration.

    Raises:
        UserError: no such file, no YAML, an unknown key (with the nearest known one) or a value
            that its key does not allow.
    """
    return read_settings(RunConfig, path, overrides)


def read_settings(
    model: type[AnySettings], path: Path | str | None, overrides: Sequence[str] = ()
) -> AnySettings:
    """Read any configuration; `path` None starts from the defaults. Errors as in `read_run`."""
    where = str(path) if path is not None else "defaults"
    values = _read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        _apply(model, values, override)
    _refuse_unknown(model, values, where)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {_one_line(error)}") from error


def describe_keys(kind: Kind) -> str:
    """List every key of a configuration: dotted name, type, default and what it means."""
    rows = list(_walk({"run": RunConfig, "embed": EmbedSettings}[kind], ""))
    width = max(len(key) for key, _, _ in rows)
    return "\n".join(f"  {key:<{width}}  {form}\n  {'':<{width}}  {doc}" for key, form, doc in rows)


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
    _refuse_unknown(model, values, f"override '{override}'")


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
        known = [name for name, _, _ in _walk(model, "", sections=True)]
        siblings = [name for name in known if name.rpartition(".")[0] == _unindexed(section)]
        raise UserError(f"{where}: unknown key {key}; {did_you_mean(_unindexed(key), siblings)}")


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


def _walk(
    model: type[BaseModel], prefix: str, *, sections: bool = False
) -> typing.Iterator[tuple[str, str, str]]:
    """Yield (dotted key, type and default, meaning) of every key; sections too when asked."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        inner = _model_inside(field.annotation)
        if inner is None or sections:
            yield (
                key,
                f"{_type_name(field)}{_default(field)}",
                " ".join((field.description or "").split()),
            )
        if inner is not None:
            many = typing.get_origin(field.annotation) in (tuple, list)
            yield from _walk(inner, f"{key}.N." if many else f"{key}.", sections=sections)


def _type_name(field: FieldInfo) -> str:
    return _spell(field.annotation)


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
    return getattr(annotation, "__name__", str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ", required"
    value = field.get_default(call_default_factory=True)
    return "" if value is PydanticUndefined else f", default {_plain(value)}"


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_plain(entry) for entry in value) + "]"
    return str(value)


def _one_line(error: ValidationError) -> str:
    found = []
    for detail in error.errors(include_url=False):
        key = ".".join(str(part) for part in detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        given = detail["input"]
        shown = "" if isinstance(given, dict | list | BaseModel) else f" (given: {given!r})"
        found.append(f"{key}: {message}{shown}" if key else message)
    return "; ".join(found)
