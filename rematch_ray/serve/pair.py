"""The model that goes with an index: the one given, or the one that the index names; and it fits.
While a service changes, vectors of one pair may reach the other: they are refused.

Reads an identity, loads no weights; knows no HTTP and no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rematch_ray.errors import UserError
from rematch_ray.serve.backend import NotReadyError

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


def refuse_other_model(encoded_by: str, identity: Mapping[str, Any]) -> None:
    """Refuse vectors that another model of this service made than the index holds.

    Args:
        encoded_by: digest of the model; "" for vectors that a caller gave.
        identity: of the model that embedded the documents.

    Raises:
        NotReadyError: they do not belong together; scores of both would mean nothing.
    """
    digest = str(identity.get("digest"))
    if encoded_by and encoded_by != digest:
        raise NotReadyError(
            f"encoded by model {encoded_by[:12]}, but the index that answers is of {digest[:12]}: "
            "the service is changing to another pair; ask again"
        )
