"""A backend of a few lines, so that everything HTTP can be tested without models and Ray; and a
tiny real pair of model and index for the rest."""

import asyncio
import base64
import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from fastapi.testclient import TestClient
from PIL import Image

from rematch_ray.data.item import Item
from rematch_ray.data.media import decode_image
from rematch_ray.index.build import build_index
from rematch_ray.index.search import Hit, SearchResult
from rematch_ray.model.embedder import Embedder, Embeddings
from rematch_ray.serve.backend import (
    Answer,
    Caller,
    EncodedQuery,
    NewDocument,
    NotReadyError,
    OverloadedError,
    SearchPlan,
    ServedIndex,
    Side,
    WriteResult,
)
from rematch_ray.serve.keys import KeyRing
from rematch_ray.serve.media import MediaRoots
from rematch_ray.serve.observation import RequestRecord
from rematch_ray.serve.query_log import QueryLog
from rematch_ray.serve.routes import make_api
from rematch_ray.serve.settings import ApiKey, Limits
from tests.tiny import new_embedder, write_base

BUDGETS = {
    "auto": "auto",
    "fused": "fused",
    "fast": "1x1",
    "balanced": "1x1",
    "full": "4x8",
    "1x1": "1x1",
    "4x8": "4x8",
}


ANYONE = Caller()


@pytest.fixture(autouse=True)
def package_log() -> Iterator[None]:
    """Afterwards the log of the package is joined to Serve's no more.

    A replica made in this process joins it, and pytest listens to both: the tests after it would
    find each line twice.
    """
    yield
    package = logging.getLogger("rematch_ray")
    package.setLevel(logging.NOTSET)
    package.handlers.clear()


@pytest.fixture(autouse=True)
def shards_that_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Afterwards no shard that a test has made looks at the disk any more.

    Its threads live as long as the process: they would run what a later test puts in their way.
    """
    from rematch_ray.serve.shard import Shard

    made: list[Shard] = []
    init = Shard.__init__

    def remembered(self: Shard, *values: Any, **named: Any) -> None:
        init(self, *values, **named)
        made.append(self)

    monkeypatch.setattr(Shard, "__init__", remembered)
    yield
    for shard in made:
        shard.close()


class FakeBackend:
    """Five documents; remembers what it was asked, fails when told to.

    Vectors are (4, 2) of queries and (8, 2) of documents, fused ones (1,). What is encoded as
    "east" or "north" points there, anything else between the two.
    """

    def __init__(self, media: Path) -> None:
        self.items: list[Item] = []
        self.charged: list[str] = []
        self.sides: list[str] = []
        self.instructions: list[str | None] = []
        self.plans: list[SearchPlan] = []
        self.encoded: list[EncodedQuery] = []
        self.callers: list[Caller] = []
        self.written: list[NewDocument] = []
        self.failure: Exception | None = None
        self.refusal: Exception | None = None
        self.encode_s = 0.0
        self.degraded: tuple[str, ...] = ()
        self.log_odds: list[float] | None = None
        self.is_ready = True
        self.is_full = False
        self.documents: dict[str, dict[str, Any]] = {
            f"doc/{n}": {"name": f"shape {n}", "media": str(media / f"{n}.png")} for n in range(5)
        }

    async def encode(
        self, query: Item, instruction: str | None, side: Side = "query"
    ) -> EncodedQuery:
        if self.failure:
            raise self.failure
        for part in query.images:
            await asyncio.to_thread(decode_image, part.image or b"", max_pixels=10_000)
        if self.encode_s:
            await asyncio.sleep(self.encode_s)
        self.items.append(query)
        self.sides.append(side)
        self.instructions.append(instruction)
        default = "find the picture" if side == "query" else ""
        used = default if instruction is None else instruction
        pointing = {"east": (1.0, 0.0), "north": (0.0, 1.0)}.get(query.text, (2**-0.5, 2**-0.5))
        vectors = np.tile(np.array(pointing, np.float32), (1, 4 if side == "query" else 8, 1))
        return EncodedQuery(vectors, np.ones((1, 1), np.float32), used, tokens=7)

    async def search(
        self, query: EncodedQuery, plan: SearchPlan, caller: Caller = ANYONE
    ) -> Answer:
        if self.failure:
            raise self.failure
        self.plans.append(plan)
        self.encoded.append(query)
        self.callers.append(caller)
        page = [(n, name) for n, name in enumerate(self.documents) if name != plan.exclude]
        page = page[plan.offset : plan.offset + plan.top_k]
        parts = {"vector": 0.5, "lexical": 2.0} if plan.text else None
        hits = [Hit(name, 0.9 - n / 10, self.documents[name], parts) for n, name in page]
        stages = [{"name": "maxsim", "in": 5, "out": plan.top_k, "ms": 0.5}]
        rung = "4x8" if plan.is_auto or plan.budget in (None, "auto") else plan.budget
        found = SearchResult(
            hits, rung or "", 5, stages, 5, 5, "float", True, "g1", 1.0, {"chosen_by": "request"}
        )
        return Answer(
            found,
            degraded=self.degraded,
            dot_products=160,
            queue_ms=0.25,
            search_ms=0.5,
            rerank={"top_n": plan.rerank.top_n, "ms": 1.5} if plan.rerank else None,
            explained=(
                {hit.id: np.full((4, 8), 0.1, np.float32) for hit in hits}
                if plan.with_explain
                else {}
            ),
        )

    async def like(self, document_id: str) -> EncodedQuery | None:
        if document_id not in self.documents:
            return None
        return EncodedQuery(np.full((1, 4, 2), 2**-0.5, np.float32), np.ones((1, 1), np.float32))

    async def match(self, query: EncodedQuery, documents: Sequence[EncodedQuery]) -> list[float]:
        if self.failure:
            raise self.failure
        return self.log_odds or [float(place) for place in range(len(documents))]

    async def payload(self, document_id: str) -> Mapping[str, Any] | None:
        return self.documents.get(document_id)

    async def upsert(self, documents: Sequence[NewDocument], caller: Caller) -> WriteResult:
        if self.failure:
            raise self.failure
        self.callers.append(caller)
        self.written.extend(documents)
        replaced = sum(document.id in self.documents for document in documents)
        self.documents |= {document.id: dict(document.payload) for document in documents}
        return WriteResult(len(documents) - replaced, replaced, 0, 0, "g2", 1.0)

    async def delete(
        self, ids: Sequence[str], filter: Mapping[str, Any] | None, caller: Caller
    ) -> WriteResult:
        self.callers.append(caller)
        wanted = set(ids) | {
            name
            for name, payload in self.documents.items()
            if filter and all(payload.get(field) == value for field, value in filter.items())
        }
        gone = wanted & self.documents.keys()
        self.documents = {n: p for n, p in self.documents.items() if n not in gone}
        return WriteResult(0, 0, len(gone), len(wanted - gone), "g3", 1.0)

    async def served(self) -> ServedIndex:
        await self.ready()
        model = {
            "name": "fake",
            "digest": "0" * 64,
            "ladder": ["1x1", "4x8"],
            "num_query_vectors": 4,
            "num_document_vectors": 8,
            "embedding_dim": 2,
            "fused_dim": 1,
        }
        index = {
            "documents": len(self.documents),
            "generation": "g1",
            "instruction": "index these",
            "coarse": {"fused": "flat", "first": "flat"},
            "calibration": None,
            "path": "/srv/index/gen-1",
            "model_path": "/srv/models/tiny",
        }
        load = {"ceiling": "4x8", "level": 0, "refusing": False}
        return ServedIndex(index, model, BUDGETS, "find the picture", load)

    async def ready(self) -> None:
        if not self.is_ready:
            raise NotReadyError("the encoder does not answer yet")

    async def begin_search(self, plan: SearchPlan, caller: Caller) -> None:
        if self.refusal:
            raise self.refusal

    def admit_search(self) -> None:
        if self.is_full:
            raise OverloadedError("no budget is small enough", retry_after_s=1.5)

    def charge(self, caller: Caller) -> None:
        self.charged.append(caller.name)

    def allowance(self, caller: Caller) -> Mapping[str, str]:
        return {"ratelimit-remaining": str(10 - len(self.charged))}

    async def metrics(self) -> str:
        return "rematch_requests_total 1\n"


def png(width: int = 8, height: int = 8, colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


@pytest.fixture(name="png")
def png_fixture() -> Callable[..., bytes]:
    return png


@pytest.fixture(name="data_uri")
def data_uri_fixture() -> Callable[[bytes], str]:
    return data_uri


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(png())
    return folder


@pytest.fixture
def backend(media: Path) -> FakeBackend:
    return FakeBackend(media)


@pytest.fixture
def records() -> list[RequestRecord]:
    return []


Connect = Callable[..., TestClient]


@pytest.fixture
def connect(backend: FakeBackend, media: Path, records: list[RequestRecord]) -> Connect:
    """A client of an application with the given limits and keys (none = everyone)."""

    def make(*keys: str, query_log: QueryLog | None = None, **limits: Any) -> TestClient:
        hashed = [
            ApiKey(name=f"key{n}", sha256=hashlib.sha256(key.encode()).hexdigest())
            for n, key in enumerate(keys)
        ]
        api = make_api(
            backend,
            keys=KeyRing(hashed, allow_anonymous=not hashed),
            limits=Limits(**limits),
            media=MediaRoots([media]),
            record=records.append,
            query_log=query_log,
        )
        # without keys no other name is answered
        return TestClient(api, base_url="http://localhost", raise_server_exceptions=False)

    return make


@pytest.fixture
def client(connect: Connect) -> TestClient:
    return connect()


COLOURS = ["red", "green", "blue", "yellow", "black", "white"]


@dataclass(frozen=True)
class Pair:
    """A model with random weights, an index of six coloured squares made with it, their images."""

    export: Path
    index: Path
    media: Path
    keys: Path


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    transformers.utils.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("pair")
    export = make_export(folder, seed=0)
    media = folder / "media"
    media.mkdir()
    payloads = []
    for colour in COLOURS:
        (media / f"{colour}.png").write_bytes(png(32, 32, colour))
        payloads.append({"name": f"a {colour} square", "media": str(media / f"{colour}.png")})
    model = Embedder.from_pretrained(export, device="cpu")
    documents = model.encode_document([png(32, 32, colour) for colour in COLOURS])
    write_shards(folder / "embeddings", model, documents, payloads)
    build_index(folder / "embeddings", folder / "index")
    keys = folder / "keys"
    keys.write_text(f"# who may ask\nme {hashlib.sha256(b'secret').hexdigest()}\n")
    return Pair(export, folder / "index", media, keys)


def make_export(folder: Path, *, seed: int) -> Path:
    """An embedder of random weights."""
    base = write_base(folder / f"base-{seed}", seed=seed)
    export = folder / f"export-{seed}"
    new_embedder(base, seed=seed).save_pretrained(export)
    return export


def write_shards(
    folder: Path,
    model: Embedder,
    documents: Embeddings,
    payloads: list[dict[str, str]],
    *,
    ids: list[str] = COLOURS,
) -> None:
    """An embedding directory as the embedding job writes it."""
    folder.mkdir()
    assert model.identity is not None
    assert documents.fused is not None
    _, num_vectors, dim = documents.vectors.shape
    table = pa.table(
        {
            "id": ids,
            "vectors": _halves(documents.vectors.flatten(1)),
            "fused": _halves(documents.fused),
            "source": ["squares"] * len(ids),
            "payload": payloads,
        }
    )
    pq.write_table(table, folder / "part-00000.parquet")
    content = (folder / "part-00000.parquet").read_bytes()
    shard = {
        "file": "part-00000.parquet",
        "rows": len(ids),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    manifest = {
        "format_version": 1,
        "identity": model.identity.to_json(),
        "side": "document",
        "instruction": "",
        "R": num_vectors,
        "D": dim,
        "F": documents.fused.shape[1],
        "dtype": "float16",
        "rows_in": len(ids),
        "embedded": len(ids),
        "quarantined": 0,
        "shards": [shard],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _halves(rows: torch.Tensor) -> pa.Array:
    values = pa.array(rows.numpy().astype(np.float16).ravel())
    return pa.FixedSizeListArray.from_arrays(values, rows.shape[1])


@pytest.fixture(scope="session")
def other_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same sizes and other weights."""
    return make_export(tmp_path_factory.mktemp("other"), seed=1)
