"""Several shards and several replicas on a real Ray Serve."""

import http.client
import json
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from rematch_ray.index.build import build_index
from rematch_ray.index.changes import add_documents, delete_documents
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.sharding.build import build_sharded
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.embeddings import Embeddings
from rematch_ray.serve.settings import ServeArgs
from tests.serve.conftest import write_shards
from tests.serve.test_serving import free_port

SMALL = {"num_cpus": 0.1}
# searches of a millisecond, on a machine that does other things too: waits say nothing
CALM = {"enabled": False}


def ask(url: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{url}/v1/search", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        text = refused.read()
        is_ours = refused.headers.get_content_type() == "application/json"
        return refused.code, json.loads(text) if is_ours else text


def run(args: ServeArgs) -> str:
    from ray import serve
    from ray.serve.config import HTTPOptions

    from rematch_ray.serve.app import build

    port = free_port()
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    serve.run(build(args), name="replicas", route_prefix="/")
    return f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def copy(pair: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of two shards over the documents of the pair."""
    out = tmp_path_factory.mktemp("copy") / "index"
    build_sharded(pair.index.parent / "embeddings", out, 2)
    return out


# of a class: Serve runs once at a time, and the other tests start theirs
@pytest.fixture(scope="class")
def split(ray_cluster: None, pair: Any, copy: Path) -> Iterator[str]:
    from ray import serve

    yield run(
        ServeArgs(
            index=copy, model=str(pair.export), allow_anonymous=True, encoder=SMALL, shard=SMALL
        )
    )
    serve.shutdown()


class TestTwoShards:
    def test_an_index_of_two_shards_answers_as_one(self, split: str, pair: Any) -> None:
        model = Embedder.from_pretrained(pair.export, device="cpu")
        query = model.encode_query("a red square")
        assert query.fused is not None
        given = {"vectors": query.vectors[0].tolist(), "fused": query.fused[0].tolist()}
        index = SearchIndex.open(pair.index)
        for fields in (
            {"budget": "4x6"},
            {"budget": "2x3", "candidates": 3, "top_k": 2},
            {"budget": "1x1", "filter": {"name": ["a red square", "a blue square"]}},
            {"budget": "fused"},
            {"budget": "full", "group_by": "name"},
        ):
            [expected] = index.search(query, **fields)
            status, body = ask(split, {**given, **fields})
            assert status == 200, body
            assert [(hit["id"], hit["score"]) for hit in body["results"]] == [
                (hit.id, hit.score) for hit in expected.hits
            ]
            assert body["generation"] == "set-000001"

    def test_a_change_of_a_split_index_is_seen_as_a_whole(self, split: str, copy: Path) -> None:
        from rematch_ray.index.sharding import changes

        changes.delete_documents(copy, ["red", "green", "blue"])
        deadline = time.monotonic() + 30
        lives = set()
        while time.monotonic() < deadline:
            status, body = ask(split, {"query": "a red square"})
            assert status == 200, body
            lives.add((body["generation"], body["live"]))
            if body["generation"] == "set-000002":
                break
            time.sleep(0.05)
        assert lives == {("set-000001", 6), ("set-000002", 3)}


def test_an_index_in_the_ingress_answers_as_one_in_a_deployment(
    ray_cluster: None, pair: Any, tmp_path: Path
) -> None:
    import ray
    from ray import serve

    path = tmp_path / "index"
    shutil.copytree(pair.index, path)
    held = {**SMALL, "in_ingress": True, "num_replicas": 2}
    url = run(
        ServeArgs(
            index=path, model=str(pair.export), allow_anonymous=True, encoder=SMALL, shard=held
        )
    )
    actors = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True)]
    assert sum("#ingress#" in name for name in actors) == 2
    assert not [name for name in actors if "#shard-0#" in name]
    query = Embedder.from_pretrained(pair.export, device="cpu").encode_query("a red square")
    [expected] = SearchIndex.open(path).search(query, budget="4x6")
    given = {"vectors": query.vectors[0].tolist(), "budget": "4x6"}
    status, body = ask(url, given)
    assert status == 200, body
    assert [(hit["id"], hit["score"]) for hit in body["results"]] == [
        (hit.id, hit.score) for hit in expected.hits
    ]
    delete_documents(path, ["red"])
    deadline = time.monotonic() + 30
    while (live := {ask(url, given)[1]["live"] for _ in range(8)}) != {5}:
        assert time.monotonic() < deadline, live
        time.sleep(0.2)
    serve.shutdown()


def test_a_quota_holds_for_all_ingress_replicas_together(ray_cluster: None, pair: Any) -> None:
    from ray import serve

    per_s, burst, num_replicas = 5.0, 10.0, 2
    url = run(
        ServeArgs(
            index=pair.index,
            model=str(pair.export),
            allow_anonymous=True,
            ingress_replicas=num_replicas,
            encoder=SMALL,
            shard=SMALL,
            load=CALM,
            quotas={"requests_per_s": per_s, "burst_s": burst / per_s},
        )
    )
    given = {"like": "red", "budget": "1x1"}
    began = time.monotonic()
    over = threading.Event()

    def load(_: int) -> Counter[int]:
        seen: Counter[int] = Counter()
        while not over.is_set():
            seen[ask(url, given)[0]] += 1
        return seen

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(load, number) for number in range(8)]
        time.sleep(15)
        over.set()
        seen = sum((one.result() for one in running), Counter[int]())
    took = time.monotonic() - began
    serve.shutdown()
    assert set(seen) == {200, 429}, seen
    # one credit of each replica: see `leases`
    assert seen[200] <= burst + per_s * took + num_replicas
    assert seen[200] >= burst + 0.5 * per_s * 15
    assert seen[429] > seen[200]


def kill_replica(part: str, but: str = "") -> str:
    """Kills one; waits for one to come where only `but` was there."""
    import ray

    deadline = time.monotonic() + 60
    while True:
        names = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True)]
        names = [name for name in names if f"#{part}#" in name and name != but]
        if names:
            ray.kill(ray.get_actor(names[0], namespace="serve"))
            return names[0]
        assert time.monotonic() < deadline, f"no replica of {part} came back"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["shard-0", "encoder", "coordinator", "ingress"])
def test_a_part_that_dies_under_load_loses_no_request_without_an_answer(
    ray_cluster: None, pair: Any, part: str
) -> None:
    from ray import serve

    url = run(
        ServeArgs(
            index=pair.index,
            model=str(pair.export),
            allow_anonymous=True,
            ingress_replicas=2,
            encoder={**SMALL, "num_replicas": 2},
            shard={**SMALL, "num_replicas": 2},
            load=CALM,
        )
    )
    over = threading.Event()

    def load(number: int) -> Counter[int | str]:
        seen: Counter[int | str] = Counter()
        while not over.is_set():
            # no two alike
            text = f"a red square, {number} {sum(seen.values())}"
            try:
                seen[ask(url, {"query": text, "budget": "4x6"})[0]] += 1
            except (OSError, http.client.HTTPException) as broken:
                seen[type(broken).__name__] += 1
        return seen

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(load, number) for number in range(8)]
        try:
            time.sleep(2)
            first = kill_replica(part)
            time.sleep(4)
            kill_replica(part, but=first)
            time.sleep(4)
        finally:
            over.set()
        seen = sum((each.result() for each in running), Counter())
    serve.shutdown()
    print(f"{part}: {dict(seen)}")
    # who holds the connection cannot be asked again: Serve's proxy answers 500 in its place
    lost = {500} if part == "ingress" else set()
    assert set(seen) <= {200, 503} | lost, seen
    assert seen[500] <= 2 * 8
    assert seen[200] > 50
    assert seen[503] <= 0.05 * seen[200], seen


@pytest.mark.slow
def test_changes_under_load_fail_no_request(ray_cluster: None, pair: Any, tmp_path: Path) -> None:
    from ray import serve

    copy = tmp_path / "index"
    shutil.copytree(pair.index, copy)
    url = run(
        ServeArgs(
            index=copy,
            model=str(pair.export),
            allow_anonymous=True,
            encoder=SMALL,
            shard={**SMALL, "num_replicas": 2},
            load=CALM,
        )
    )
    over = threading.Event()

    def load(_: int) -> list[tuple[int, str]]:
        seen = []
        while not over.is_set():
            status, body = ask(url, {"query": "a red square", "budget": "4x6"})
            seen.append((status, body.get("generation", "")))
        return seen

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(load, number) for number in range(4)]
        for number in range(6):
            time.sleep(2)
            if number % 2:
                add_documents(copy, pair.index.parent / "embeddings")
            else:
                delete_documents(copy, ["red"])
        time.sleep(4)
        over.set()
        seen = [answer for each in running for answer in each.result()]
    serve.shutdown()
    assert {status for status, _ in seen} == {200}
    assert len({generation for _, generation in seen}) > 2


@pytest.mark.slow
def test_a_second_replica_comes_when_more_is_asked_than_one_should_do(
    ray_cluster: None, pair: Any, tmp_path: Path
) -> None:
    import ray
    from ray import serve

    count, random = 20_000, torch.Generator().manual_seed(0)
    model = Embedder.from_pretrained(pair.export, device="cpu")
    few = model.encode_document(["a red square"])
    assert few.fused is not None
    many = Embeddings(
        normalize(torch.randn(count, *few.vectors.shape[1:], generator=random), dim=-1),
        normalize(torch.randn(count, few.fused.shape[1], generator=random), dim=-1),
    )
    names = [f"document {number}" for number in range(count)]
    write_shards(tmp_path / "many", model, many, [{"name": name} for name in names], ids=names)
    build_index(tmp_path / "many", tmp_path / "index")
    url = run(
        ServeArgs(
            index=tmp_path / "index",
            model=str(pair.export),
            allow_anonymous=True,
            encoder=SMALL,
            shard={**SMALL, "max_replicas": 2},
            load=CALM,
        )
    )

    def replicas() -> int:
        actors = ray.util.list_named_actors(all_namespaces=True)
        return sum("#shard-0#" in actor["name"] for actor in actors)

    query = model.encode_query("a red square")
    given = {"vectors": query.vectors[0].tolist(), "candidates": "all"}
    assert ask(url, given)[0] == 200
    time.sleep(15)  # longer than a replica takes to be asked for: an idle one is enough
    assert replicas() == 1
    over, end = threading.Event(), time.monotonic() + 120

    def load(_: int) -> Counter[int]:
        seen: Counter[int] = Counter()
        while not over.is_set() and time.monotonic() < end:
            seen[ask(url, given)[0]] += 1
        return seen

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(load, number) for number in range(4)]
        while replicas() < 2 and time.monotonic() < end:
            time.sleep(0.5)
        time.sleep(5)  # it takes requests, too
        over.set()
        statuses = sum((one.result() for one in running), Counter[int]())
    assert replicas() == 2
    assert set(statuses) == {200}, statuses
    serve.shutdown()
