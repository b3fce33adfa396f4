"""The application on a real Ray Serve, with a tiny random model and its index."""

import asyncio
import base64
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rematch_ray.errors import UserError
from rematch_ray.index.search import SearchIndex
from rematch_ray.model.embedder import Embedder
from rematch_ray.serve.settings import ServeArgs
from tests.serve.test_hostile_requests import bomb


def test_an_application_without_keys_is_refused(pair: Any) -> None:
    from rematch_ray.serve.app import build

    with pytest.raises(UserError, match="without API keys"):
        build(ServeArgs(index=pair.index, model=str(pair.export)))


def test_a_model_that_the_index_was_not_built_with_is_refused(
    pair: Any, other_export: Path
) -> None:
    from rematch_ray.serve.app import build

    args = ServeArgs(index=pair.index, model=str(other_export), allow_anonymous=True)
    with pytest.raises(UserError, match=r"tiny \(.* does not fit this index"):
        build(args)


def test_the_shipped_serve_configuration_is_valid(repository: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    text = (repository / "cluster" / "serve.yaml").read_text()
    deploy = ServeDeploySchema.model_validate(yaml.safe_load(text))
    [application] = deploy.applications
    assert application.import_path == "rematch_ray.serve.app:build"
    args = ServeArgs.model_validate(application.args)
    assert not args.allow_anonymous
    known = {"encoder", "shard-0", "ingress", "coordinator"}
    assert {deployment.name for deployment in application.deployments} <= known


def test_queries_of_one_batch_get_the_vectors_they_get_alone(pair: Any, device: str) -> None:
    from rematch_ray.data.item import Item
    from rematch_ray.serve.batching import Queued
    from rematch_ray.serve.encoder import embed_queued

    model = Embedder.from_pretrained(pair.export, device=device)
    texts = ["a red square", "blue", "a very long query about a yellow square"]
    rows = [
        Queued(model.row_encoder.encode(Item.of(text), "query", ""), "query", 4) for text in texts
    ]
    together = embed_queued(model, rows)
    for row, mine in zip(rows, together, strict=True):
        [alone] = embed_queued(model, [row])
        assert mine.vectors.shape == (1, 4, 16)
        assert mine.model == model.identity.digest
        assert np.abs(mine.vectors - alone.vectors).max() < 1e-5


def test_queries_and_documents_may_share_a_batch(pair: Any, device: str) -> None:
    from rematch_ray.data.item import Item
    from rematch_ray.serve.batching import Queued
    from rematch_ray.serve.encoder import embed_queued

    model = Embedder.from_pretrained(pair.export, device=device)
    asked = [("a red square", "query"), ("blue", "document"), ("a word " * 40, "query")]
    rows = [
        Queued(model.row_encoder.encode(Item.of(text), side, ""), side, model.num_vectors(side))
        for text, side in asked
    ]
    query, document, long = embed_queued(model, rows)
    assert (query.vectors.shape[1], document.vectors.shape[1]) == (4, 6)
    assert (
        np.abs(
            query.vectors - model.encode_query("a red square", instruction="").vectors.cpu().numpy()
        ).max()
        < 1e-5
    )
    alone = model.encode_document("blue", instruction="").vectors.cpu().numpy()
    assert np.abs(document.vectors - alone).max() < 1e-5
    assert query.tokens == len(rows[0].row.input_ids) < long.tokens


def test_the_matching_head_answers_from_fused_vectors_alone(pair: Any, device: str) -> None:
    from rematch_ray.serve.encoder import MATCH_CHUNK, match_fused

    model = Embedder.from_pretrained(pair.export, device=device)
    query = model.encode_query("a red square").fused
    documents = model.encode_document([f"text {n}" for n in range(3)]).fused
    many = documents.repeat(MATCH_CHUNK, 1)
    answers = match_fused(model, query.cpu().numpy(), many.cpu().numpy())
    expected = model.match(query, documents[None])[0].cpu().numpy()
    assert answers.shape == (3 * MATCH_CHUNK,)
    assert np.abs(answers.reshape(-1, 3) - expected).max() < 1e-4
    assert match_fused(model, query.cpu().numpy(), documents[:0].cpu().numpy()).shape == (0,)
    with pytest.raises(UserError, match="do not fit"):
        match_fused(model, query.cpu().numpy()[:, 1:], documents.cpu().numpy())


def test_serve_turns_the_arguments_of_its_configuration_into_ours(pair: Any) -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call

    from rematch_ray.serve.app import build

    args = {"index": str(pair.index), "model": str(pair.export)}
    with pytest.raises(UserError, match="without API keys"):
        call(build, args)
    with pytest.raises(ValueError, match="allow_anonymus"):
        call(build, {**args, "allow_anonymus": True})
    application = call(build, {**args, "api_keys_file": str(pair.keys)})
    assert application._bound_deployment.name == "ingress"


@pytest.fixture(scope="module")
def url(ray_cluster: None, pair: Any) -> Iterator[str]:
    from ray import serve
    from ray.serve.config import HTTPOptions

    from rematch_ray.serve.app import build

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    args = ServeArgs(
        index=pair.index,
        model=str(pair.export),
        allow_anonymous=True,
        media_roots=(pair.media,),
        limits={"max_image_pixels": 10_000},
        encoder={"num_cpus": 0.5},
        shard={"num_cpus": 0.5},
        # what is answered is asked here, however busy this machine is
        load={"enabled": False},
    )
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    serve.run(build(args), name="test", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def ask(url: str, body: Any = None) -> tuple[int, Any]:
    """GET, or POST of JSON; returns status and parsed answer (bytes when it is no JSON)."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data, headers), timeout=60
        ) as answer:
            status, content = answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        status, content = refused.code, refused.read()
    try:
        return status, json.loads(content)
    except ValueError:
        return status, content


def test_the_endpoint_gives_the_hits_of_the_search_in_process(url: str, pair: Any) -> None:
    assert ask(f"{url}/readyz") == (200, {"status": "ready"})
    model = Embedder.from_pretrained(pair.export, device="cpu")
    query = model.encode_query("a red square")
    index = SearchIndex.open(pair.index)
    for budget in ("1x1", "2x3", "fused"):
        [expected] = index.search(query, budget=budget, top_k=4)
        status, body = ask(
            f"{url}/v1/search", {"query": "a red square", "budget": budget, "top_k": 4}
        )
        assert status == 200, body
        assert [hit["id"] for hit in body["results"]] == [hit.id for hit in expected.hits]
        scores = [hit["score"] for hit in body["results"]]
        assert scores == pytest.approx([hit.score for hit in expected.hits], abs=1e-5)
        assert (body["budget"], body["exact"]) == (budget, True)


def test_concurrent_queries_keep_their_own_answers(
    url: str, pair: Any, png: Callable[..., bytes]
) -> None:
    image = base64.b64encode(png(32, 32, "green")).decode()
    bodies = [
        {"query": "a red square"},
        {"query": {"image": image}},
        {"query": {"text": "green", "image": image}},
        {"query": {"image": base64.b64encode(b"no image").decode()}},
    ] * 6
    alone = [ask(f"{url}/v1/search", body) for body in bodies[:4]]
    assert [status for status, _ in alone] == [200, 200, 200, 400]
    assert alone[3][1]["error"]["param"] == "query"
    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(lambda body: ask(f"{url}/v1/search", body), bodies))
    for number, (status, body) in enumerate(together):
        expected_status, expected = alone[number % 4]
        assert status == expected_status
        if status == 200:
            ids = [hit["id"] for hit in body["results"]]
            assert ids == [hit["id"] for hit in expected["results"]]


def test_a_huge_image_and_an_unknown_field_get_one_line_errors(
    url: str, png: Callable[..., bytes]
) -> None:
    image = base64.b64encode(png(200, 200)).decode()
    for body, says in (
        ({"query": {"image": image}}, "10000"),
        ({"query": "x", "filter": {"nmae": "a"}}, "nmae"),
        ({"query": "x", "group_by": "nothing"}, "nothing"),
    ):
        status, answer = ask(f"{url}/v1/search", body)
        assert status == 400
        assert says in answer["error"]["message"].replace(",", "")
        assert "Traceback" not in answer["error"]["message"]


def test_a_document_of_200_megapixels_is_refused_by_name_and_not_written(url: str) -> None:
    huge = base64.b64encode(bomb(20_000, 10_000)).decode()
    documents = [{"id": "small", "text": "blue"}, {"id": "huge", "image": huge}]
    status, answer = ask(f"{url}/v1/documents", {"documents": documents})
    assert status == 400, answer
    message = answer["error"]["message"]
    assert "'huge'" in message
    assert "too many pixels, at most 10000" in message
    for name in ("small", "huge"):
        assert ask(f"{url}/v1/documents/{name}")[0] == 404
    assert ask(f"{url}/v1/search", {"query": {"image": huge}})[0] == 400


def test_embeddings_are_the_vectors_that_a_search_can_be_asked_with(url: str, pair: Any) -> None:
    asked = {"model": "rematch", "input": ["a red square"], "num_vectors": 4}
    status, embedded = ask(f"{url}/v1/embeddings", asked)
    assert status == 200, embedded
    [datum] = embedded["data"]
    given = {"vectors": datum["vectors"], "fused": datum["embedding"], "budget": "full"}
    by_text = ask(f"{url}/v1/search", {"query": "a red square", "budget": "full"})[1]
    by_vectors = ask(f"{url}/v1/search", given)[1]
    assert [hit["id"] for hit in by_vectors["results"]] == [hit["id"] for hit in by_text["results"]]
    assert embedded["usage"]["total_tokens"] == by_text["usage"]["tokens"] > 0
    status, document = ask(f"{url}/v1/embeddings", asked | {"input_type": "document"})
    assert (status, len(document["data"][0]["vectors"])) == (200, 4)
    assert document["data"][0]["embedding"] != datum["embedding"]


def test_rerank_orders_documents_by_the_model_that_is_served(
    url: str, pair: Any, png: Callable[..., bytes]
) -> None:
    model = Embedder.from_pretrained(pair.export, device="cpu")
    texts = ["a red square", "blue", "some other text"]
    image = base64.b64encode((pair.media / "red.png").read_bytes()).decode()
    documents = [*texts, {"image": image}]
    query = model.encode_query("a red square")
    stored = model.encode_document([*texts, (pair.media / "red.png").read_bytes()])
    cosines = model.similarity(query, stored)[0]
    odds = model.match(query.fused, stored.fused[None])[0]
    for name, expected in (
        ("rematch-maxsim", (1 + cosines) / 2),
        ("rematch-match-head", odds.sigmoid()),
    ):
        asked = {"model": name, "query": "a red square", "documents": documents}
        status, body = ask(f"{url}/v2/rerank", asked)
        assert status == 200, body
        scores = {result["index"]: result["relevance_score"] for result in body["results"]}
        assert [scores[place] for place in range(4)] == pytest.approx(expected.tolist(), abs=2e-3)
        assert list(scores.values()) == sorted(scores.values(), reverse=True)


def test_the_clients_of_openai_and_cohere_work_against_the_real_service(
    url: str, pair: Any
) -> None:
    openai, cohere = pytest.importorskip("openai"), pytest.importorskip("cohere")
    model = Embedder.from_pretrained(pair.export, device="cpu")
    texts = ["a red square", "blue"]
    query, stored = model.encode_query(texts), model.encode_document(texts)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    embedded = client.embeddings.create(model="rematch", input=texts)
    found = np.array([datum.embedding for datum in embedded.data])
    assert np.abs(found - query.fused.numpy()).max() < 1e-5
    assert embedded.usage.total_tokens > 0
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="text-embedding-3-small", input="x")
    reranked = cohere.ClientV2(api_key="none", base_url=url, timeout=60).rerank(
        model="rematch-maxsim", query=texts[0], documents=texts
    )
    cosines = model.similarity(query, stored)[0]
    scores = {result.index: result.relevance_score for result in reranked.results}
    expected = ((1 + cosines) / 2).tolist()
    assert [scores[place] for place in range(2)] == pytest.approx(expected, abs=2e-3)


def test_searches_like_a_document_several_at_once_and_explained(url: str) -> None:
    status, like = ask(f"{url}/v1/search", {"like": "red", "with_explain": True, "top_k": 3})
    assert status == 200, like
    assert "red" not in [hit["id"] for hit in like["results"]]
    r_q, r_d = map(int, like["budget"].split("x"))
    matrix = like["results"][0]["explain"]
    assert (len(matrix), len(matrix[0])) == (r_q, r_d)
    searches = [{"query": "a red square"}, {"query": "x", "budget": "9x9"}, {"like": "blue"}]
    status, several = ask(f"{url}/v1/search", {"searches": searches})
    assert status == 200
    assert ["error" in answer for answer in several["answers"]] == [False, True, False]


def test_documents_images_pages_and_metrics_are_served(url: str) -> None:
    status, document = ask(f"{url}/v1/documents/red")
    assert (status, document["payload"]["name"]) == (200, "a red square")
    status, image = ask(f"{url}/v1/documents/red/image")
    assert status == 200
    assert image.startswith(b"\x89PNG")
    status, info = ask(f"{url}/v1/info")
    assert info["budgets"]["full"] == "4x6"
    assert info["index"]["documents"] == 6
    assert ask(f"{url}/")[0] == 200
    assert b"rematch_requests_total" in wait_for(url, b"rematch_requests_total")
    assert ask(f"{url}/v1/search", {"query": "a red square"})[0] == 200
    passes = wait_for(url, b"rematch_encode_seconds_count")
    assert b"rematch_batch_size_count{" in passes


def wait_for(url: str, text: bytes) -> bytes:
    """The metrics once they hold a text: agents export every few seconds."""

    async def poll() -> bytes:
        while True:
            _, metrics = await asyncio.to_thread(ask, f"{url}/metrics")
            if text in metrics:
                return bytes(metrics)
            await asyncio.sleep(0.5)

    return asyncio.run(asyncio.wait_for(poll(), 40))


def test_the_ingress_and_the_shards_need_no_torch() -> None:
    # its import would be paid by the first query, in the event loop
    program = (
        "import sys, rematch_ray.serve.app, rematch_ray.index.search\n"
        "import rematch_ray.serve.searching\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
