"""Whether a model is the one that embedded an index. Knows digests only. Middle floor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rematch_ray.errors import UserError


def check_identity(given: Any, recorded: Mapping[str, Any]) -> None:
    """Refuses a model other than the one recorded.

    Args:
        given: a `ModelIdentity` or its JSON.
        recorded: identity in a manifest.

    Raises:
        UserError: the digests differ.
    """
    identity = identity_json(given)
    if identity.get("digest") != recorded.get("digest"):
        raise UserError(
            f"model {_name(identity)} does not fit this index, whose documents were embedded by "
            f"{_name(recorded)}: search with that model or embed the corpus again"
        )


def identity_json(identity: Any) -> dict[str, Any]:
    """An identity as a plain mapping, whether object, mapping or JSON text."""
    if hasattr(identity, "to_json"):
        identity = identity.to_json()
    if isinstance(identity, str):
        identity = json.loads(identity)
    return dict(identity) if isinstance(identity, Mapping) else asdict(identity)


def _name(identity: Mapping[str, Any]) -> str:
    return f"{identity.get('name') or 'unnamed'} ({str(identity.get('digest'))[:12]})"
