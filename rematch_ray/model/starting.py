"""What training begins from: a base model, or an export with its banks and heads. Middle floor."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rematch_ray.data.prompts import Template
from rematch_ray.data.rows import RowEncoder
from rematch_ray.errors import UserError
from rematch_ray.model.backbone import Backbone
from rematch_ray.model.checkpoint import (
    build_row_encoder,
    export_settings,
    find_export,
    head_shapes,
    is_hub_id,
    read_heads,
    read_meta,
)
from rematch_ray.model.settings import ModelSettings

if TYPE_CHECKING:
    from rematch_ray.model.embedder import Embedder

_SIZES = {"ladder", "embedding_dim", "fused_dim", "fuse_k"}
_FUSED = "fused_projection.weight"
_SHIPPED = "rematch_ray/assets/"
_INSTALLED_IN = Path(__file__).resolve().parents[2]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """What `model.base` names.

    Attributes:
        backbone: folder or hub id of the base model's weights and processors.
        export: the export that they are part of; None = a base model alone.
        template: the template it was trained with; None = the base's own.
    """

    backbone: str | Path
    export: Path | None = None
    template: Template | None = None

    def row_encoder(self, settings: ModelSettings) -> RowEncoder:
        """Processors of the base, with the settings' template or else the one trained before.

        Raises:
            UserError: the folder holds no tokenizer or image processor, or limits contradict.
        """
        template = settings.template or self.template
        return build_row_encoder(self.backbone, settings.model_copy(update={"template": template}))

    def load_heads(self, embedder: Embedder) -> None:
        """Copies banks, projections and the matcher of the export, where there is one.

        What only one of both has (a fused vector) is left as it is, and said.

        Raises:
            UserError: the files cannot be read, a shape differs, or what a fused vector is made of.
        """
        if self.export is None:
            return
        given = export_settings(read_meta(self.export), self.export)
        heads, wanted = read_heads(self.export), head_shapes(embedder)
        misshapen = sorted(n for n in wanted.keys() & heads if heads[n].shape != wanted[n])
        if misshapen:
            has, asked = tuple(heads[misshapen[0]].shape), tuple(wanted[misshapen[0]])
            raise UserError(
                f"model.base '{self.export}' was trained with {misshapen[0]} of {has}, this run "
                f"has {asked}: give it the sizes of that export, {_told(given)}"
            )
        if {_FUSED} <= wanted.keys() & heads and given.fuse_k != embedder.settings.fuse_k:
            raise UserError(
                f"model.base '{self.export}' was trained to fuse the first {given.fuse_k} states, "
                f"this run fuses {embedder.settings.fuse_k}: give it what that export has, "
                f"{_told(given)}"
            )
        for names, fate in ((wanted.keys() - heads, "begin anew"), (heads.keys() - wanted, "go")):
            if names:
                _log.warning("%s: %s, %s", self.export, fate, ", ".join(sorted(names)))
        embedder.load_state_dict(heads, strict=False)


def _told(settings: ModelSettings) -> str:
    """What has to be as an export has it, as overrides."""
    sizes = settings.model_dump(mode="json", include=_SIZES)
    return " ".join(f"model.{name}={json.dumps(size)}" for name, size in sizes.items())


def check_base(base: str) -> None:
    """Refuse early what `Embedder.build` could not begin from, as far as one can see from here.

    Raises:
        UserError: neither a folder nor a hub id, or a folder of another kind of model.
    """
    start = find_start(base)
    if Path(start.backbone).is_dir():
        Backbone.check(start.backbone)
    elif Path(base).exists() or not is_hub_id(base):
        raise UserError(
            f"model.base '{base}' {'is a file' if Path(base).exists() else 'does not exist'}: give "
            "the folder of a base model, an export or a run, or a hub id (OWNER/NAME)"
        )


def located(base: str | Path) -> str | Path:
    """Where a shipped model lies: `rematch_ray/assets/NAME` leads to it from any folder.

    The configurations of `jobs/configs` name it so; they run where only the package is, too.
    """
    shipped = _INSTALLED_IN / base
    if str(base).startswith(_SHIPPED) and not Path(base).exists() and shipped.exists():
        return shipped
    return base


def find_start(base: str | Path) -> Start:
    """The base model that a path or hub id names, or the base of an export or run directory.

    Raises:
        UserError: an export that cannot be read.
    """
    base = located(base)
    export = find_export(Path(base))
    if export is None:
        return Start(base)
    settings = export_settings(read_meta(export), export)
    return Start(export / "backbone", export, settings.template)
