"""What a shard's manifest records of the embeddings it was built from, and what it lacks of others.

Knows file checksums and settings, no rows. Middle floor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rematch_ray.errors import UserError
from rematch_ray.index.build import IndexForm
from rematch_ray.index.generation import CURRENT_FILE, Generation
from rematch_ray.index.shards import EmbeddingShards

# with more rows in new files than this share of all, one new segment is the better index
TOP_UP_SHARE = 0.5
_DIGEST_CHARACTERS = 16


def source_of(embeddings: EmbeddingShards, form: IndexForm) -> dict[str, Any]:
    """What a manifest is to record of embeddings and settings, in plain JSON types."""
    return {
        "vectors": {
            "model": embeddings.identity.get("digest"),
            "side": embeddings.side,
            "instruction": embeddings.manifest.get("instruction"),
            "shape": [embeddings.num_vectors, embeddings.dim, embeddings.fused_dim],
        },
        "settings": form.to_json(),
        "files": [entry["sha256"][:_DIGEST_CHARACTERS] for entry in embeddings.manifest["shards"]],
    }


def digest_of(source: Mapping[str, Any]) -> str:
    """A name for embeddings and settings."""
    text = json.dumps(source, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARACTERS]


def source_in(path: Path) -> Mapping[str, Any] | None:
    """What a shard's manifest records of its embeddings; None where there is no whole shard."""
    if not (path / CURRENT_FILE).is_file():
        return None
    try:
        return Generation(path).manifest.source
    except UserError:
        # files missing or cut short: built anew, which is what the message would ask for
        return None


def new_files(
    embeddings: EmbeddingShards, source: Mapping[str, Any], held: Mapping[str, Any] | None
) -> tuple[frozenset[str] | None, bool]:
    """Files that a shard lacks, and whether it holds rows of files that are gone; or (None, False)
    where it is to be built anew.
    """
    if held is None or any(held[key] != source[key] for key in ("vectors", "settings")):
        return None, False
    known = set(held["files"])
    new = [
        entry
        for entry, digest in zip(embeddings.manifest["shards"], source["files"], strict=True)
        if digest not in known
    ]
    if sum(entry["rows"] for entry in new) > TOP_UP_SHARE * embeddings.num_rows:
        return None, False
    return frozenset(entry["file"] for entry in new), bool(known - set(source["files"]))
