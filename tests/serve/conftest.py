"""A backend of a few lines, so that everything HTTP can be tested without models and Ray; and a
tiny real pair of model and index for the rest."""

import asyncio
import base64
import hashlib
import io
import json
from collections.abc import Callable, Mapping
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
from rematch_ray.serve.backend import Answer, EncodedQuery, NotReadyError, SearchPlan, ServedIndex
from rematch_ray.serve.limits import KeyRing
from rematch_ray.serve.media import MediaRoots
from rematch_ray.serve.observation import RequestRecord
from rematch_ray.serve.routes import make_api
from rematch_ray.serve.settings import ApiKey, Limits
from tests.tiny import new_embedder, write_base

BUDGETS = {
    "auto": "4x8",
    "fused": "fused",
    "fast": "1x1",
    "full": "4x8",
    "1x1": "1x1",
    "4x8": "4x8",
}


class FakeBackend:
    """Five documents; remembers what it was asked, fails when told to."""

    def __init__(self, media: Path) -> None:
        self.items: list[Item] = []
        self.instructions: list[str | None] = []
        self.plans: list[SearchPlan] = []
        self.encoded: list[EncodedQuery] = []
        self.failure: Exception | None = None
        self.is_ready = True
        self.documents: dict[str, dict[str, Any]] = {
            f"doc/{n}": {"name": f"shape {n}", "media": str(media / f"{n}.png")} for n in range(5)
        }

    async def encode(self, query: Item, instruction: str | None) -> EncodedQuery:
        for part in query.images:
            await asyncio.to_thread(decode_image, part.image or b"", max_pixels=10_000)
        self.items.append(query)
        self.instructions.append(instruction)
        used = "find the picture" if instruction is None else instruction
        vectors = np.full((1, 4, 2), 2**-0.5, np.float32)
        return EncodedQuery(vectors, np.ones((1, 1), np.float32), used)

    async def search(self, query: EncodedQuery, plan: SearchPlan) -> Answer:
        if self.failure:
            raise self.failure
        self.plans.append(plan)
        self.encoded.append(query)
        hits = [Hit(name, 0.9 - n / 10, p) for n, (name, p) in enumerate(self.documents.items())]
        stages = [{"name": "maxsim", "in": 5, "out": plan.top_k, "ms": 0.5}]
        budget = plan.budget or ""
        found = hits[: plan.top_k]
        return Answer(SearchResult(found, budget, 5, stages, 5, 5, "float", True, "g1"))

    async def payload(self, document_id: str) -> Mapping[str, Any] | None:
        return self.documents.get(document_id)

    async def served(self) -> ServedIndex:
        await self.ready()
        model = {
            "name": "fake",
            "digest": "0" * 64,
            "ladder": ["1x1", "4x8"],
            "num_query_vectors": 4,
            "embedding_dim": 2,
            "fused_dim": 1,
        }
        index = {"documents": len(self.documents), "generation": "g1"}
        return ServedIndex(index, model, BUDGETS, "find the picture")

    async def ready(self) -> None:
        if not self.is_ready:
            raise NotReadyError("the encoder does not answer yet")

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

    def make(*keys: str, **limits: Any) -> TestClient:
        hashed = [
            ApiKey(name=f"key{n}", sha256=hashlib.sha256(key.encode()).hexdigest())
            for n, key in enumerate(keys)
        ]
        api = make_api(
            backend,
            keys=KeyRing(hashed),
            limits=Limits(**limits),
            media=MediaRoots([media]),
            record=records.append,
        )
        return TestClient(api, raise_server_exceptions=False)

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
    folder: Path, model: Embedder, documents: Embeddings, payloads: list[dict[str, str]]
) -> None:
    """An embedding directory as the embedding job writes it."""
    folder.mkdir()
    assert model.identity is not None
    assert documents.fused is not None
    _, num_vectors, dim = documents.vectors.shape
    table = pa.table(
        {
            "id": COLOURS,
            "vectors": _halves(documents.vectors.flatten(1)),
            "fused": _halves(documents.fused),
            "source": ["squares"] * len(COLOURS),
            "payload": payloads,
        }
    )
    pq.write_table(table, folder / "part-00000.parquet")
    content = (folder / "part-00000.parquet").read_bytes()
    shard = {
        "file": "part-00000.parquet",
        "rows": len(COLOURS),
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
        "rows_in": len(COLOURS),
        "embedded": len(COLOURS),
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
