"""Request bodies, a JSON text on each line, written once so that sending them costs little."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from shapes.search_task import Query

DIGITS = 8  # of a float32: more say nothing


def vector_bodies(file: Path, queries: Query, **fields: Any) -> Path:
    """A body for each query, by its vectors.

    Args:
        file: to write.
        queries: B queries.
        fields: of every body: budget, candidates, ...
    """
    pairs = zip(queries.vectors, queries.fused, strict=True)
    bodies = ({"vectors": _rows(v), "fused": _rows(f[None])[0], **fields} for v, f in pairs)
    return _write(file, list(bodies))


def text_bodies(file: Path, texts: Sequence[str], **fields: Any) -> Path:
    """A body for each text."""
    return _write(file, [{"query": text, **fields} for text in texts])


def _rows(vectors: np.ndarray) -> list[list[float]]:
    return [[float(f"{x:.{DIGITS}g}") for x in row] for row in vectors.tolist()]


def _write(file: Path, bodies: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    return file
