"""A backend that looks real on the page: thirty drawn pictures, a few texts, and true MaxSim.

Words have random directions; a document's vectors lean towards its own words, more precisely the
later ones, so that a larger budget really ranks better. `python -m tests.serve.gallery` serves it.
"""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI

from rematch_ray.data.item import Item
from rematch_ray.errors import UserError
from rematch_ray.index.hits import Hit, SearchResult
from rematch_ray.serve.backend import (
    Answer,
    Caller,
    EncodedQuery,
    Float32,
    NotReadyError,
    SearchPlan,
    ServedIndex,
    Side,
)
from rematch_ray.serve.keys import KeyRing
from rematch_ray.serve.media import MediaRoots
from rematch_ray.serve.routes import make_api
from rematch_ray.serve.settings import ApiKey, Limits
from tests.serve.shapes import COLOURS, SHAPES, draw, name_of_colour

TEXTS = [
    "a note on blue circles: they are seldom alone",
    "how to draw a green star with a ruler",
    "the red square, a short history",
]
LADDER = ["1x1", "2x4", "4x8", "8x16", "16x64"]
DIM, NUM_QUERY, NUM_DOCUMENT = 32, 16, 64
ANYONE = Caller()
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


class Gallery:
    """The backend; tests set `failure`, `degraded` and such, and read `plans`."""

    def __init__(self, media: Path) -> None:
        self.failure: Exception | None = None
        self.failing_budget: str | None = None
        self.waiting_for = ""
        self.degraded: tuple[str, ...] = ()
        self.plans: list[SearchPlan] = []
        self.queries: list[Item] = []
        self.documents = _documents(media)
        self._words: dict[str, Float32] = {}
        self._vectors: dict[str, Float32] = {}
        for name, payload in list(self.documents.items()):
            self.add(name, payload, str(payload["name"]))

    def add(self, name: str, payload: dict[str, Any], words: str) -> None:
        """A document that is found by these words, whatever its payload says."""
        self.documents[name] = payload
        self._vectors[name] = self._encode(words, NUM_DOCUMENT, len(self._vectors))

    async def encode(
        self, query: Item, instruction: str | None, side: Side = "query"
    ) -> EncodedQuery:
        """Words as they are, images as the name of their colour."""
        self.queries.append(query)
        words = query.text
        for part in query.images:
            words += " " + await asyncio.to_thread(name_of_colour, part.image or b"")
        await asyncio.sleep(0.004)
        used = "find what is described" if instruction is None else instruction
        vectors = self._encode(words, NUM_QUERY, 7_000)
        return EncodedQuery(vectors[None], vectors[None, 0], used, tokens=3 + len(words.split()))

    async def search(
        self, query: EncodedQuery, plan: SearchPlan, caller: Caller = ANYONE
    ) -> Answer:
        """Every document, at the budget asked for."""
        self.plans.append(plan)
        if self.failure and self.failing_budget in (None, plan.budget):
            raise self.failure
        started = time.perf_counter()
        rung = "4x8" if plan.is_auto else str(plan.budget)
        r_q, r_d = (1, 1) if rung == "fused" else map(int, rung.split("x"))
        passed = [
            name
            for name in self._vectors
            if name != plan.exclude and _passes(self.documents[name], plan.filter)
        ]
        first = {name: float(query.vectors[0, 0] @ self._vectors[name][0]) for name in passed}
        kept = sorted(passed, key=lambda name: (-first[name], name))
        if plan.candidates != "all":
            kept = kept[: max(plan.top_k, 24 if plan.candidates == "auto" else plan.candidates)]
        matrices = {
            name: (query.vectors[0, :r_q] @ self._vectors[name][:r_d].T).astype(np.float32)
            for name in kept
        }
        scores = {name: float(matrix.max(axis=1).mean()) for name, matrix in matrices.items()}
        best = sorted(scores, key=lambda name: (-scores[name], name))[: plan.top_k]
        parts = {"vector": 0.71, "lexical": 2.5} if plan.text else None
        hits = [Hit(name, scores[name], self.documents[name], parts) for name in best]
        ms = 1e3 * (time.perf_counter() - started)
        result = SearchResult(
            hits=hits,
            budget=rung,
            candidates=len(scores),
            stages=_stages([len(self.documents), len(passed), len(kept), len(hits)], rung, ms),
            scored=len(scores),
            live=len(self.documents),
            scores="float",
            exact=len(kept) == len(passed),
            generation="gen-000007",
            expected_recall=None if plan.text else 0.973,
            plan={"name": f"first:{len(scores)} > {rung}", "chosen_by": "counts"},
        )
        return Answer(
            result,
            degraded=self.degraded,
            dot_products=len(scores) * r_q * r_d,
            queue_ms=0.4,
            search_ms=ms + 0.6,
            explained={name: matrices[name] for name in best} if plan.with_explain else {},
        )

    async def like(self, document_id: str) -> EncodedQuery | None:
        """The first vectors of a document."""
        vectors = self._vectors.get(document_id)
        return (
            None if vectors is None else EncodedQuery(vectors[None, :NUM_QUERY], vectors[None, 0])
        )

    async def payload(self, document_id: str) -> Mapping[str, Any] | None:
        """What is stored."""
        return self.documents.get(document_id)

    async def served(self) -> ServedIndex:
        """As an index of this size would say."""
        await self.ready()
        model = {
            "name": "gallery",
            "digest": "0" * 64,
            "ladder": LADDER,
            "num_query_vectors": NUM_QUERY,
            "num_document_vectors": NUM_DOCUMENT,
            "embedding_dim": DIM,
            "fused_dim": DIM,
        }
        sizes = {rung: int(rung.split("x")[1]) * (DIM + 4) for rung in LADDER}
        index = {
            "documents": len(self.documents),
            "live": len(self.documents),
            "generation": "gen-000007",
            "shards": 2,
            "segments": 3,
            "bytes": 1_234_567,
            "bytes_per_document": {"fused": DIM + 4, **sizes},
            "fields": ["name", "colour", "shape", "text"],
            "coarse": {"first": "flat"},
            "lexical": {"fields": ["name"]},
            "calibration": {
                "created": "2026-11-20T10:00:00",
                "k": 10,
                "queries": {"count": 300},
                "void": None,
            },
        }
        names = {"fast": "2x4", "balanced": "8x16", "full": "16x64"}
        budgets = {"auto": "auto", "fused": "fused", **names, **{rung: rung for rung in LADDER}}
        load = {"ceiling": "16x64", "level": 0, "refusing": False}
        return ServedIndex(index, model, budgets, "find what is described", load)

    async def ready(self) -> None:
        """Unless a test has it wait."""
        if self.waiting_for:
            raise NotReadyError(f"{self.waiting_for} does not answer yet")

    async def begin_search(self, plan: SearchPlan, caller: Caller) -> None:
        """Nobody is limited."""

    def admit_search(self) -> None:
        pass

    def charge(self, caller: Caller) -> None:
        """Nobody is limited."""

    def allowance(self, caller: Caller) -> Mapping[str, str]:
        """Nobody is limited."""
        return {}

    async def metrics(self) -> str:
        """None."""
        return ""

    def _encode(self, text: str, count: int, seed: int) -> Float32:
        words = [word for word in text.lower().split() if len(word) > 1] or ["nothing"]
        noise = np.random.default_rng(seed).normal(size=(count, DIM))
        rows = []
        for place in range(count):
            whole = sum(self._word(word) for word in words) / len(words)
            own = self._word(words[place % len(words)])
            rows.append(0.6 * whole + 0.6 * own + 0.13 * noise[place])
        vectors = np.array(rows, np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _word(self, word: str) -> Float32:
        if word not in self._words:
            letters = np.random.default_rng(list(word.encode()))
            vector = letters.normal(size=DIM)
            self._words[word] = vector / np.linalg.norm(vector)
        return self._words[word]


def gallery_api(backend: Gallery, media: Path, *keys: ApiKey, **limits: Any) -> FastAPI:
    """The real routes over the gallery."""
    return make_api(
        backend,  # type: ignore[arg-type]
        keys=KeyRing(keys, allow_anonymous=not keys),
        limits=Limits(**limits),
        media=MediaRoots([media]),
    )


def _documents(media: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for colour, rgb in COLOURS.items():
        for shape in SHAPES:
            file = media / f"{colour}-{shape}.png"
            file.write_bytes(draw(shape, rgb))
            name = f"{'an' if colour == 'orange' else 'a'} {colour} {shape}"
            found[f"shapes/{colour}-{shape}"] = {
                "name": name,
                "colour": colour,
                "shape": shape,
                "media": file.name,
            }
    for number, text in enumerate(TEXTS):
        found[f"notes/{number}"] = {"name": text, "text": f"{text}. {text.capitalize()}, again."}
    return found


def _passes(payload: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> bool:
    for field in wanted or {}:
        if field not in ("name", "colour", "shape", "text"):
            raise UserError(f"filter field '{field}' is not there; allowed: name, colour, shape")
    return all(payload.get(field) == value for field, value in (wanted or {}).items())


def _stages(counts: list[int], rung: str, ms: float) -> list[dict[str, Any]]:
    names = {"filter": 0.02, "first": 0.3, rung: 0.5, "exact": 0.18}
    flow = [*counts, counts[-1]]
    return [
        {"name": name, "in": flow[place], "out": flow[place + 1], "ms": round(share * ms + 0.1, 3)}
        for place, (name, share) in enumerate(names.items())
    ]


if __name__ == "__main__":
    import tempfile

    import uvicorn

    folder = Path(tempfile.mkdtemp())
    uvicorn.run(gallery_api(Gallery(folder), folder), port=8765)
