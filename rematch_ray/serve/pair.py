"""The model that goes with an index: the one given, or the one that the index names; and it fits.

Reads an identity, loads no weights; knows no HTTP and no Ray.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rematch_ray.errors import UserError

if TYPE_CHECKING:
    from rematch_ray.index.search import SearchIndex


def fitting_export(index: SearchIndex, given: str | Path | None) -> Path:
    """Find the export to encode queries with.

    Args:
        index: what will be searched.
        given: an export or run directory; None takes the one that the index names.

    Returns:
        The export's directory.

    Raises:
        UserError: there is none, or it is not the model that embedded the documents.
    """
    from rematch_ray.model.checkpoint import load_identity, resolve_export

    chosen = given or recorded_model(index)
    export = resolve_export(chosen)
    index.check_model(load_identity(export))
    return export.resolve()


def recorded_model(index: SearchIndex) -> Path:
    """The model directory that the index names.

    Raises:
        UserError: it names none, or none that is there.
    """
    recorded = index.info()["model_path"]
    if recorded and Path(recorded).exists():
        return Path(recorded)
    named = f"names {recorded}, which is not there" if recorded else "names no model"
    raise UserError(f"the index {named}; say which model embedded its documents with --model")
