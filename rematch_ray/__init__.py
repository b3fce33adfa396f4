"""Multi-vector multimodal retrieval on Ray: from image+text pairs to a search endpoint.

The public names below are loaded on first use, so that ``import rematch_ray`` costs milliseconds
and brings in neither torch, transformers nor ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rematch_ray.data.schema import Item
    from rematch_ray.index.search import SearchIndex
    from rematch_ray.model.embedder import Embedder, Embeddings
    from rematch_ray.scoring.budget import Budget, Ladder

__version__ = "0.1.0"

__all__ = ["Budget", "Embedder", "Embeddings", "Item", "Ladder", "SearchIndex", "__version__"]

_HOMES = {
    "Budget": "rematch_ray.scoring.budget",
    "Ladder": "rematch_ray.scoring.budget",
    "Embedder": "rematch_ray.model.embedder",
    "Embeddings": "rematch_ray.model.embedder",
    "Item": "rematch_ray.data.schema",
    "SearchIndex": "rematch_ray.index.search",
}


def __getattr__(name: str) -> object:
    """Load a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rematch_ray' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
