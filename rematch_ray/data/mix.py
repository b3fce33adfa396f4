"""VLM2Vec's training YAML, read as sources: `<name>: {dataset_parser, dataset_name, weight, ...}`.

Data sets are looked for below a folder: nothing is downloaded. Entries of videos are refused, or
left out where that is asked. Middle floor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, ValidationError

from rematch_ray.config_file import Settings
from rematch_ray.data.readers.files import absolute_path, is_uri, join
from rematch_ray.data.sources import SourceSettings
from rematch_ray.errors import UserError, did_you_mean

# their names of row layouts -> ours
PARSERS = {"mmeb": "mmeb", "mmeb_neg": "mmeb", "vidore": "pages", "visrag": "pages"}


class MixSettings(Settings):
    """A mix of training sources in VLM2Vec's YAML."""

    path: Path
    """The YAML file."""
    root: str = "."
    """Folder or URI below which its data sets and image folders lie."""
    leave_out: tuple[str, ...] = ()
    """Entries that are not read, such as those of videos."""


class _Entry(Settings):
    """One data set of the YAML, under its own keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset_parser: str
    dataset_name: str | None = None
    dataset_path: str | None = None
    subset_name: str | None = None
    dataset_split: str | None = None
    image_dir: str | None = None
    num_sample_per_subset: int | None = None
    num_rows: int | None = None
    weight: float | None = None
    global_dataset_name: str | None = None


def read_mix(settings: MixSettings) -> tuple[SourceSettings, ...]:
    """The sources of a mix, in the order of the file.

    Raises:
        UserError: no such file, no mapping of data sets, an entry with a key or a parser that is
            not read, or a name in `leave_out` that the file does not hold.
    """
    content = _read(settings.path)
    if missing := [name for name in settings.leave_out if name not in content]:
        raise UserError(
            f"data.mix.leave_out names {missing[0]!r}, which {settings.path} does not hold; "
            f"{did_you_mean(missing[0], content)}"
        )
    return tuple(
        _source(name, values, settings)
        for name, values in content.items()
        if name not in settings.leave_out
    )


def _source(name: str, values: Any, settings: MixSettings) -> SourceSettings:
    where = f"{settings.path}: {name}"
    parser = values.get("dataset_parser") if isinstance(values, dict) else None
    if parser not in PARSERS:
        raise UserError(
            f"{where}: dataset_parser {parser!r} is not read ({', '.join(PARSERS)} are); leave it "
            f"out with data.mix.leave_out=[{name}]"
        )
    try:
        entry = _Entry.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        hint = did_you_mean(key, _Entry.model_fields) if first["type"] == "extra_forbidden" else ""
        raise UserError(f"{where}: {key}: {first['msg']} {hint}".rstrip()) from error
    limits = [limit for limit in (entry.num_sample_per_subset, entry.num_rows) if limit is not None]
    return SourceSettings(
        name=name,
        path=_path(entry, where, settings),
        format=PARSERS[entry.dataset_parser],
        split=entry.dataset_split,
        image_root=None if entry.image_dir is None else _below(settings.root, entry.image_dir),
        source=entry.global_dataset_name,
        weight=entry.weight,
        max_rows=min(limits, default=None),
    )


def _path(entry: _Entry, where: str, settings: MixSettings) -> str:
    named = entry.dataset_path or entry.dataset_name
    if named is None:
        raise UserError(f"{where}: neither dataset_name nor dataset_path; name the data set")
    path = _below(settings.root, named)
    return path if entry.subset_name is None else join(path, entry.subset_name)


def _below(root: str, path: str) -> str:
    alone = is_uri(path) or path.startswith(("/", "~"))
    return absolute_path(path if alone else join(root, path))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"{path} cannot be read as a mix: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds no data sets; expected lines of <name>: {{dataset_parser}}")
    return content
