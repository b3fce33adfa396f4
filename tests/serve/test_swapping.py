"""Writes and a change of model and index on a real Ray Serve, under load: no request fails, and
none is answered by half of one set and half of another."""

import json
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rematch_ray.index.search import SearchIndex
from rematch_ray.index.sharding.build import build_sharded
from rematch_ray.model.embedder import Embedder
from rematch_ray.serve.settings import ServeArgs
from rematch_ray.serve.writer import VISIBLE_WITHIN_S
from tests.serve.conftest import COLOURS, Pair, png, write_shards

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
QUERY = "a red square"
# three tries to load a model, on a busy machine
SWAP_S = 400


@pytest.fixture(scope="module")
def other_pair(other_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The same documents, embedded by another model, in two shards."""
    folder = tmp_path_factory.mktemp("other-pair")
    model = Embedder.from_pretrained(other_export, device="cpu")
    documents = model.encode_document([png(32, 32, colour) for colour in COLOURS])
    payloads = [{"name": f"another {c} square", "media": ""} for c in COLOURS]
    write_shards(folder / "embeddings", model, documents, payloads)
    build_sharded(folder / "embeddings", folder / "index", num_shards=2)
    return Pair(other_export, folder / "index", folder, folder)


def scores_of(pair: Pair, index: Path | None = None) -> dict[str, float]:
    query = Embedder.from_pretrained(pair.export, device="cpu").encode_query(QUERY)
    [found] = SearchIndex.open(index or pair.index).search(query, budget="1x1")
    return {hit.id: round(hit.score, 4) for hit in found.hits}


@pytest.fixture(scope="module", params=["in a deployment", "in the ingress"])
def form(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where an index that is not split is held, by two processes each."""
    if request.param == "in the ingress":
        return {"shard": {"num_cpus": 0.2, "in_ingress": True, "num_replicas": 2}}
    return {"shard": {"num_cpus": 0.2}, "ingress_replicas": 2}


@pytest.fixture(scope="module")
def index(pair: Any, form: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that may be written to."""
    path = tmp_path_factory.mktemp("written") / "index"
    shutil.copytree(pair.index, path)
    return path


@pytest.fixture(scope="module")
def url(ray_cluster: None, pair: Any, index: Path, form: dict[str, Any]) -> Iterator[str]:
    from ray import serve
    from ray.serve.config import HTTPOptions

    from rematch_ray.serve.app import build

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    small = {"num_cpus": 0.2}
    args = ServeArgs(
        index=index,
        model=str(pair.export),
        allow_anonymous=True,
        encoder=small,
        writer=small,
        **form,
    )
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    serve.run(build(args), name="test", route_prefix="/")
    url = f"http://127.0.0.1:{port}"
    until(lambda: ask(url, "/readyz")[0] == 200)
    yield url
    serve.shutdown()


def ask(url: str, path: str, body: Any = None, method: str | None = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        url + path, data, {"content-type": "application/json"}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, json.loads(refused.read())


def search(url: str, **asked: Any) -> tuple[int, Any]:
    return ask(url, "/v1/search", {"query": QUERY, "budget": "1x1"} | asked)


def until(is_so: Callable[[], bool], seconds: float = 60) -> float:
    started = time.monotonic()
    while not is_so():
        assert time.monotonic() - started < seconds, "it did not come to be"
        time.sleep(0.05)
    return time.monotonic() - started


@dataclass
class Load:
    """Searches one after another in several threads, until it ends."""

    url: str
    threads: int = 3
    failed: list[Any] = field(default_factory=list)
    answers: Counter[Any] = field(default_factory=Counter)
    slowest_s: float = 0.0
    generations: set[str] = field(default_factory=set)

    def __enter__(self) -> "Load":
        self._ended = threading.Event()
        self._running = [threading.Thread(target=self._run) for _ in range(self.threads)]
        for thread in self._running:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        for thread in self._running:
            thread.join()
        seen = f"{self.answers.total()} answers, {len(self.failed)} failures"
        print(f"{seen}, slowest {self.slowest_s:.2f} s, generations {sorted(self.generations)}")

    def _run(self) -> None:
        while not self._ended.is_set():
            started = time.monotonic()
            try:
                status, body = search(self.url)
            except OSError as broken:
                status, body = 0, repr(broken)
            self.slowest_s = max(self.slowest_s, time.monotonic() - started)
            if status != 200:
                self.failed.append((status, body))
                continue
            self.generations.add(body["generation"])
            self.answers[frozenset((h["id"], round(h["score"], 4)) for h in body["results"])] += 1


def test_documents_are_written_found_in_time_and_deleted(url: str, pair: Any) -> None:
    document = {"id": "new", "text": QUERY, "payload": {"name": "written", "media": ""}}
    status, written = ask(url, "/v1/documents", {"documents": [document]})
    assert status == 200, written
    assert (written["added"], written["replaced"]) == (1, 0)
    assert written["visible_within_s"] == VISIBLE_WITHIN_S
    seconds = until(lambda: any(h["id"] == "new" for h in search(url)[1]["results"]))
    print(f"found after {seconds:.2f} s of {VISIBLE_WITHIN_S} s")
    assert seconds < VISIBLE_WITHIN_S
    # the other ingress may be a moment behind: the answer that is looked at is the one waited for
    read: dict[str, Any] = {}

    def is_there() -> bool:
        status, body = ask(url, "/v1/documents/new")
        read.update(body)
        return status == 200

    until(is_there, VISIBLE_WITHIN_S)
    assert read["payload"]["name"] == "written"
    alone = Embedder.from_pretrained(pair.export, device="cpu").encode_document([QUERY])
    by_vectors = {
        **document,
        "vectors": alone.vectors[0].tolist(),
        "fused": alone.fused[0].tolist(),
    }
    del by_vectors["text"]
    status, written = ask(url, "/v1/documents", {"documents": [by_vectors]})
    assert (status, written["replaced"]) == (200, 1), written
    bad = {**document, "payload": {"name": 7, "media": ""}}
    status, refused = ask(url, "/v1/documents", {"documents": [bad]})
    assert (status, "'name' is a number" in refused["error"]["message"]) == (400, True), refused
    status, gone = ask(url, "/v1/documents", {"ids": ["new", "nobody"]}, "DELETE")
    assert (gone["deleted"], gone["unknown"]) == (1, 1), gone
    until(lambda: all(h["id"] != "new" for h in search(url)[1]["results"]), VISIBLE_WITHIN_S)


def test_generations_change_under_load_without_a_failed_request(url: str) -> None:
    with Load(url) as load:
        for number in range(8):
            document = {"id": f"g{number}", "text": f"a {number}", "payload": {"name": "g"}}
            assert ask(url, "/v1/documents", {"documents": [document]})[0] == 200
            time.sleep(0.7)
        assert ask(url, "/v1/documents", {"filter": {"name": "g"}}, "DELETE")[1]["deleted"] == 8
        time.sleep(VISIBLE_WITHIN_S)
    assert load.failed == []
    assert len(load.generations) >= 3


def test_a_pair_that_does_not_fit_is_refused_at_once(url: str, pair: Any, other_pair: Any) -> None:
    for body, says in (
        ({"index": str(pair.index), "model": str(other_pair.export)}, "does not fit this index"),
        ({"index": "/no/index"}, "/no/index"),
        ({"index": str(pair.index), "mdel": "x"}, "mdel"),
    ):
        status, refused = ask(url, "/v1/admin/swap", body)
        assert status in (400, 422), refused
        assert says in refused["error"]["message"]
    assert ask(url, "/v1/admin/swap")[1]["phase"] == "serving"


def swap(url: str, pair: Any) -> dict[str, Any]:
    """Changes to a pair and waits for the end."""
    body = {"index": str(pair.index), "model": str(pair.export)}
    status, begun = ask(url, "/v1/admin/swap", body)
    assert status == 202, begun
    assert ask(url, "/v1/admin/swap", body)[0] == 409
    seconds = until(lambda: ask(url, "/v1/admin/swap")[1]["phase"] == "serving", SWAP_S)
    last: dict[str, Any] = ask(url, "/v1/admin/swap")[1]["last"]
    print(f"changed after {seconds:.1f} s: {last}")
    return last


def test_a_set_that_cannot_load_leaves_the_old_one_serving(
    url: str, pair: Any, other_pair: Any, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(other_pair.export, broken)
    for file in broken.glob("**/*.safetensors"):
        file.write_bytes(b"no weights")
    with Load(url, threads=1) as load:
        last = swap(url, Pair(broken, other_pair.index, tmp_path, tmp_path))
    assert not last["done"]
    assert last["error"]
    assert load.failed == []
    until(lambda: list(applications()) == ["test"])


def applications() -> Any:
    from ray import serve

    return serve.status().applications


def test_model_and_index_change_under_load_without_a_failed_request(
    url: str, index: Path, pair: Any, other_pair: Any
) -> None:
    before, after = scores_of(pair, index), scores_of(other_pair)
    assert before != after
    with Load(url) as load:
        time.sleep(1)
        last = swap(url, other_pair)
        time.sleep(1)
    assert last["done"]
    assert load.failed == []
    assert set(load.answers) == {frozenset(before.items()), frozenset(after.items())}
    info = ask(url, "/v1/info")[1]
    assert info["index"]["shards"] == 2
    assert ask(url, "/v1/documents/red")[1]["payload"]["name"] == "another red square"

    document = {"id": "there", "text": QUERY, "payload": {"name": "written to the new set"}}
    assert ask(url, "/v1/documents", {"documents": [document]})[0] == 200
    until(lambda: any(h["id"] == "there" for h in search(url)[1]["results"]), VISIBLE_WITHIN_S)

    # and back: the first pair as a set of its own; the one between is removed
    [between] = [name for name in applications() if name != "test"]
    with Load(url) as load:
        last = swap(url, Pair(pair.export, index, pair.media, pair.keys))
        time.sleep(1)
    assert last["done"]
    assert load.failed == []
    until(lambda: between not in applications())
    assert {h["id"]: round(h["score"], 4) for h in search(url)[1]["results"]} == before


def test_a_manager_that_dies_starts_anew_with_what_is_served(url: str, pair: Any) -> None:
    import os
    import signal

    from ray.util.state import list_actors

    serving = ask(url, "/v1/admin/swap")[1]["serving"]
    [actor] = [a for a in list_actors(detail=True)
               if a.state == "ALIVE" and "#sets#" in (a.name or "")]  # fmt: skip
    with Load(url) as load:
        os.kill(actor.pid, signal.SIGKILL)

        def is_back() -> bool:
            status, told = ask(url, "/v1/admin/swap")
            return status == 200 and told["phase"] == "serving"

        time.sleep(1)
        until(is_back)
        time.sleep(1)
    assert load.failed == []
    assert ask(url, "/v1/admin/swap")[1]["serving"] == serving
