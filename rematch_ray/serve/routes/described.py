"""The application as its OpenAPI describes it: with the keys that `key_check` asks for.

Keys are looked at in a layer around the routes, which the framework cannot see; so they are written
into its description here. Knows no route.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from rematch_ray.serve.key_check import OPEN_PATHS

SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "the API key"},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


class DescribedApi(FastAPI):
    """See `FastAPI`.

    Args:
        takes_keys: whether callers need one.
        settings: of `FastAPI`.
    """

    def __init__(self, *, takes_keys: bool, **settings: Any) -> None:
        super().__init__(**settings)
        self._takes_keys = takes_keys

    def openapi(self) -> dict[str, Any]:
        """The description; the framework keeps it, so what is added is added once."""
        described = super().openapi()
        if self._takes_keys and "securitySchemes" not in described["components"]:
            described["components"]["securitySchemes"] = SCHEMES
            for path, operations in described["paths"].items():
                if path not in OPEN_PATHS:
                    for operation in operations.values():
                        operation["security"] = [{name: []} for name in SCHEMES]
        return described
