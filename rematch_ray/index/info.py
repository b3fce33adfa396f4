"""What an index is, told in plain JSON types: for `info`, the server and reports. Middle floor."""

from __future__ import annotations

from typing import Any

from rematch_ray.index.calibration import judge_calibration
from rematch_ray.index.coarse.keys import QUERY_VECTORS
from rematch_ray.index.generation import Generation
from rematch_ray.index.manifest import FORMAT_VERSION, GenerationManifest
from rematch_ray.scoring.budget import Ladder

_SCALE_BYTES = 4


def bytes_per_document(manifest: GenerationManifest) -> dict[str, int]:
    """Bytes of 8-bit vectors that a score at each rung reads per document, fused first."""
    ladder = Ladder.parse(manifest.ladder)
    sizes = {"fused": manifest.fused_dim + _SCALE_BYTES} if manifest.fused_dim else {}
    for rung in ladder.rungs:
        sizes[str(rung)] = rung.r_d * (manifest.dim + _SCALE_BYTES)
    return sizes


def describe(generation: Generation) -> dict[str, Any]:
    """Everything that an index says about itself."""
    manifest = generation.manifest
    sizes = bytes_per_document(manifest)
    segments = [segment.manifest for segment in generation.segments]
    named = Ladder.parse(manifest.ladder).names()
    return {
        "path": str(generation.path),
        "format_version": FORMAT_VERSION,
        "generation": generation.name,
        "created": manifest.created,
        "documents": manifest.documents,
        "live": manifest.live,
        "shards": generation.num_shards,
        "segments": len(segments),
        "bytes": sum(file.bytes for segment in segments for file in segment.files.values()),
        "bytes_per_document": sizes,
        "budgets": list(sizes),
        "named_budgets": {name: str(rung) for name, rung in named.items()},
        "embedding_dim": manifest.dim,
        "fused_dim": manifest.fused_dim,
        "originals": generation.has_originals,
        "coarse": {key: entry["kind"] for key, entry in segments[0].coarse.items()},
        "coarse_dot_products": coarse_dot_products(generation),
        "default_coarse": manifest.default_coarse,
        "fields": generation.fields(),
        "side": manifest.side,
        "instruction": manifest.instruction,
        "identity": dict(manifest.identity),
        "model_path": manifest.model_path,
        "lexical": None if manifest.lexical is None else dict(manifest.lexical),
        "calibration": _calibration(generation),
        "software": dict(manifest.software),
    }


def coarse_dot_products(generation: Generation) -> dict[str, int]:
    """Vectors that one query is compared with on each coarse list, all segments together.

    Inverted lists: their centroids, and the documents of those that are looked into.
    """
    counts: dict[str, int] = {}
    for segment in generation.segments:
        for key in segment.coarse_keys:
            each = segment.listed_vectors(key) * QUERY_VECTORS.get(key, 1)
            entry = segment.manifest.coarse.get(key, {})
            lists = entry.get("nlist")
            looked = segment.rows * entry.get("nprobe", 0) // lists + lists if lists else None
            counts[key] = counts.get(key, 0) + each * (segment.rows if looked is None else looked)
    return counts


def _calibration(generation: Generation) -> dict[str, Any] | None:
    calibration, void = judge_calibration(generation)
    if calibration is None and void is None:
        return None
    return {**({} if calibration is None else calibration.summary()), "void": void}
