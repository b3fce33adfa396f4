"""Another engine behind plain FastAPI and uvicorn: what a team would write in an afternoon.

The same request bodies as ours; `vectors` and `fused` are read, the rest is let by. Answers have
ids alone, no payloads. One process; searches run in so many threads.

    python benchmarks/peers/vector_service.py PORT ENGINE DOCUMENTS FOLDER WIDTH THREADS
"""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import uvicorn
from arms.searching import SearchArm, fresh
from fastapi import FastAPI
from pydantic import BaseModel
from shapes.search_task import Query

from rematch_ray.index.shards import EmbeddingShards

ENGINES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "faiss": ("arms.searching", "PlainFaiss", ("fused",)),
    "qdrant": ("peers.qdrant_search", "QdrantArm", ()),
    "lancedb": ("peers.lancedb_search", "LanceArm", ()),
}


class Asked(BaseModel):
    """The part of a request that is read."""

    vectors: list[list[float]]
    fused: list[float]


def make_app(engine: SearchArm, width: int, threads: int) -> FastAPI:
    """The service."""
    app, pool = FastAPI(), ThreadPoolExecutor(threads)

    def find(asked: Asked) -> list[str]:
        vectors = np.array([asked.vectors], np.float32)
        return engine.search(Query(vectors, np.array([asked.fused], np.float32)), width)

    @app.get("/readyz")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/search")
    async def search(asked: Asked) -> dict[str, Any]:
        found = await asyncio.get_running_loop().run_in_executor(pool, find, asked)
        return {"results": [{"id": name} for name in found]}

    return app


def make_engine(name: str) -> SearchArm:
    """An engine that is not built yet.

    Raises:
        ImportError: it is not installed.
    """
    module, kind, arguments = ENGINES[name]
    made = getattr(import_module(module), kind)(*arguments)
    assert isinstance(made, SearchArm)
    return made


def main() -> int:
    """Builds the engine and serves until the input ends."""
    port, name, documents, folder, width, threads = sys.argv[1:]
    engine = make_engine(name)
    engine.build(EmbeddingShards.open(documents), fresh(Path(folder)))
    app = make_app(engine, int(width), int(threads))
    server = uvicorn.Server(
        uvicorn.Config(app, port=int(port), log_level="warning", access_log=False)
    )

    async def serve() -> None:
        running = asyncio.create_task(server.serve())
        await asyncio.to_thread(os.read, 0, 1)  # its end says that we are to end
        server.should_exit = True
        await running

    asyncio.run(serve())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
