"""Indexes of seeded random vectors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rematch_ray.index.build import build_index
from rematch_ray.index.search import SearchIndex
from tests.index.made import unit, write_embeddings


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    """300 documents of 8 vectors in 16 dimensions, fused in 24, two shards."""
    return write_embeddings(tmp_path / "embeddings", unit((300, 8, 16), 1), unit((300, 24), 2))


@pytest.fixture
def make_index(tmp_path: Path) -> Callable[..., SearchIndex]:
    """Builds and opens an index of given vectors."""

    def make(
        vectors: np.ndarray, fused: np.ndarray | None, *, name: str = "made", **options: Any
    ) -> SearchIndex:
        build = {
            key: options.pop(key)
            for key in ("coarse", "coarse_keys", "coarse_kind", "batch_rows")
            if key in options
        }
        source = write_embeddings(tmp_path / f"{name}-embeddings", vectors, fused, **options)
        build_index(source, tmp_path / f"{name}-index", **build)
        return SearchIndex.open(tmp_path / f"{name}-index")

    return make


@pytest.fixture
def index(embeddings: Path, tmp_path: Path) -> SearchIndex:
    build_index(embeddings, tmp_path / "index")
    return SearchIndex.open(tmp_path / "index")
