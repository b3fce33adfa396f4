"""Exports: how an embedder is written, found and read back, and what its identity is.

Layout of an export: `backbone/` (transformers model, tokenizer, image processor),
`heads.safetensors` (banks, projections, projector, roles), `rematch.json` (settings, whether there
is a fused vector, identity). No pickles, no remote code. Middle floor.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer

from rematch_ray.data.prompts import Template
from rematch_ray.data.rows import RowEncoder
from rematch_ray.errors import UserError
from rematch_ray.model.backbone import Backbone
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.settings import ModelIdentity, ModelSettings, settings_digest

FORMAT_VERSION = 1
META_FILE = "rematch.json"
HEADS_FILE = "heads.safetensors"
TEMPLATE_FILE = "template.json"
_BACKBONE_PREFIX = "backbone."
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


def resolve_export(path: str | Path) -> Path:
    """The export that a path names: itself, `best/` (then `last/`) of a run directory, or a hub id.

    Raises:
        UserError: the path is none of them, or the hub does not give it.
    """
    folder = Path(path)
    if not folder.exists() and is_hub_id(str(path)):
        folder = _download(str(path))
    if (export := find_export(folder)) is not None:
        return export
    if not folder.exists():
        raise UserError(
            f"no model at '{folder}': give an export folder, a run directory or a hub id"
        )
    raise UserError(
        f"'{folder}' is neither an export (it has no {META_FILE}) nor a run directory "
        "(it has no best/): pass what `train` or `save_pretrained` wrote"
    )


def is_hub_id(name: str) -> bool:
    """Whether a name could be that of a model on the Hugging Face hub.

    >>> [is_hub_id(name) for name in ("Qwen/Qwen3-VL-2B-Instruct", "/mnt/model", "model", "a/b/c")]
    [True, False, False, False]
    """
    return _HUB_ID.match(name) is not None


def find_export(folder: Path) -> Path | None:
    """The export in a folder or run directory, None where there is none."""
    candidates = (folder, folder / "best", folder / "last")
    return next((found for found in candidates if (found / META_FILE).is_file()), None)


def _download(repo_id: str) -> Path:
    """An export from the Hugging Face hub, weights and settings only; kept in the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"no folder '{repo_id}' here, and the hub does not give it as a model: {reason}"
        ) from error


def save_embedder(
    model: Embedder, path: str | Path, *, state: Mapping[str, Tensor] | None = None
) -> ModelIdentity:
    """Writes an export; the folder appears whole or not at all.

    Args:
        model: the embedder.
        path: folder to write; an existing export there is replaced.
        state: whole weights by the model's names; None = the model's own.

    Returns:
        The identity, hashed once, here.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        weights = model.state_dict() if state is None else state
        inner = f"{_BACKBONE_PREFIX}model."
        model.backbone.save(
            partial / "backbone",
            {name[len(inner) :]: t for name, t in weights.items() if name.startswith(inner)},
        )
        model.row_encoder.save_processors(partial / "backbone")
        heads = {
            name: tensor.detach().float().cpu().contiguous()
            for name, tensor in weights.items()
            if not name.startswith(_BACKBONE_PREFIX)
        }
        save_file(heads, partial / HEADS_FILE)
        identity = _identity(model, partial)
        meta = {
            "format_version": FORMAT_VERSION,
            "has_fused": model.has_fused,
            "settings": {**model.settings.model_dump(mode="json"), "base": _base_name(model)},
            "identity": identity.to_json(),
        }
        (partial / META_FILE).write_text(json.dumps(meta, indent=2) + "\n")
        _replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return identity


def load_embedder(path: str | Path) -> Embedder:
    """Reads an export (or a run directory's best).

    Raises:
        UserError: files missing, of another format version, or not fitting together.
    """
    folder = resolve_export(path)
    meta = read_meta(folder)
    settings = export_settings(meta, folder)
    backbone = Backbone.load(folder / "backbone", dtype=getattr(torch, settings.dtype))
    encoder = build_row_encoder(folder / "backbone", settings)
    identity = _recorded_identity(meta, folder)
    model = Embedder(
        backbone, encoder, settings, has_fused=bool(meta["has_fused"]), name=identity.name
    )
    heads, wanted = read_heads(folder), head_shapes(model)
    missing, unexpected = sorted(wanted.keys() - heads), sorted(heads.keys() - wanted)
    misshapen = sorted(name for name in wanted.keys() & heads if heads[name].shape != wanted[name])
    if missing or unexpected or misshapen:
        raise UserError(
            f"'{folder / HEADS_FILE}' does not fit {META_FILE} beside it: "
            f"missing {missing or 'nothing'}, unexpected {unexpected or 'nothing'}, "
            f"of another shape {misshapen or 'nothing'}"
        )
    model.load_state_dict(heads, strict=False)
    model.identity = identity
    return model


def read_heads(folder: Path) -> dict[str, Tensor]:
    """Banks, projections and matcher of an export; UserError when they cannot be read."""
    try:
        return load_file(folder / HEADS_FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"'{folder / HEADS_FILE}' cannot be read: {error}") from error


def head_shapes(model: Embedder) -> dict[str, torch.Size]:
    """Shapes by name of what an export keeps of a model beside its backbone."""
    return {
        name: tensor.shape
        for name, tensor in model.state_dict().items()
        if not name.startswith(_BACKBONE_PREFIX)
    }


def load_row_encoder(path: str | Path) -> RowEncoder:
    """Processors and template of an export, without weights."""
    folder = resolve_export(path)
    return build_row_encoder(folder / "backbone", export_settings(read_meta(folder), folder))


def load_identity(path: str | Path) -> ModelIdentity:
    """The identity of an export, without weights."""
    folder = resolve_export(path)
    return _recorded_identity(read_meta(folder), folder)


def read_meta(folder: Path) -> dict[str, Any]:
    """The contents of `rematch.json`; UserError when unreadable or of another version."""
    try:
        meta = json.loads((folder / META_FILE).read_text())
        if not isinstance(meta, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"'{folder / META_FILE}' cannot be read: {error}") from error
    version = meta.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"'{folder}' has format version {version}; this version reads {FORMAT_VERSION}"
        )
    return meta


def build_row_encoder(path: str | Path, settings: ModelSettings) -> RowEncoder:
    """Tokenizer and image processor of a base model or export, with the settings' limits.

    Raises:
        UserError: the folder holds no tokenizer or image processor.
    """
    sizes = {
        name: value
        for name, value in (
            ("min_pixels", settings.min_pixels),
            ("max_pixels", settings.max_pixels),
        )
        if value is not None
    }
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(
            path, trust_remote_code=False, backend="pil", **sizes
        )
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer and image processor at '{path}': {error}") from error
    least, most = processor.size["shortest_edge"], processor.size["longest_edge"]
    if least > most:
        raise UserError(
            f"model.max_pixels {most} is below the least that images are enlarged to, {least} "
            f"({'model.min_pixels' if settings.min_pixels else 'the processor of the base'}): "
            "raise it, or set model.min_pixels"
        )
    return RowEncoder(
        tokenizer,
        processor,
        settings.template or base_template(path),
        max_text_tokens=settings.max_text_tokens,
        max_image_pixels=settings.max_image_pixels,
    )


def base_template(path: str | Path) -> Template:
    """The template that a base folder brings along in `template.json`; Qwen's without one.

    Raises:
        UserError: the file is there but is not a template.
    """
    file = Path(path) / TEMPLATE_FILE
    if not file.is_file():
        return Template()
    try:
        return Template.model_validate_json(file.read_text())
    except (OSError, ValidationError) as error:
        raise UserError(f"'{file}' is not a template: {error}") from error


def export_settings(meta: dict[str, Any], folder: Path) -> ModelSettings:
    """The model settings in what `read_meta` gave; UserError when they are not settings."""
    try:
        return ModelSettings.model_validate(meta["settings"])
    except (KeyError, ValidationError) as error:
        raise UserError(
            f"'{folder / META_FILE}' holds settings that do not fit: {error}"
        ) from error


def _recorded_identity(meta: dict[str, Any], folder: Path) -> ModelIdentity:
    try:
        return ModelIdentity.from_json(meta["identity"])
    except (KeyError, TypeError) as error:
        raise UserError(f"'{folder / META_FILE}' holds no complete identity: {error}") from error


def _identity(model: Embedder, folder: Path) -> ModelIdentity:
    digest = hashlib.sha256()
    files = [*sorted((folder / "backbone").glob("*.safetensors")), folder / HEADS_FILE]
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return ModelIdentity(
        digest=settings_digest(model.settings, digest.hexdigest()),
        name=model.name,
        ladder=tuple(model.ladder.texts()),
        num_query_vectors=model.num_vectors("query"),
        num_document_vectors=model.num_vectors("document"),
        embedding_dim=model.embedding_dim,
        fused_dim=model.fused_dim,
        template_digest=model.template.digest,
        weights_digest=digest.hexdigest(),
    )


def _base_name(model: Embedder) -> str:
    """What an export says of its base: hub id or folder name; where a folder lay is nobody's."""
    base = model.settings.base
    return base if is_hub_id(base) and not Path(base).exists() else Path(base).name


def _replace(partial: Path, target: Path) -> None:
    """Puts a finished folder in place; an older one moves aside first, then goes."""
    if target.exists():
        old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
        os.replace(target, old)
        os.replace(partial, target)
        shutil.rmtree(old)
    else:
        os.replace(partial, target)
