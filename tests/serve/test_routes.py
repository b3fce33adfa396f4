"""What a caller sees: answers, errors in one shape, limits and keys."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rematch_ray.errors import UserError
from rematch_ray.serve.api_key import ApiKey
from rematch_ray.serve.backend import Caller, OverloadedError
from rematch_ray.serve.key_check import KeyCheck, is_open
from rematch_ray.serve.keys import KeyRing
from rematch_ray.serve.observation import RequestRecord
from rematch_ray.serve.routes import readiness
from rematch_ray.serve.search_gate import SearchGate

Backend = Any


def error_of(answer: Any, status: int) -> dict[str, Any]:
    """The error of an answer, after checking its status and that it has the one shape."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "code", "param"}
    assert "\n" not in body["error"]["message"]
    return dict(body["error"])


def test_a_text_query_returns_hits_and_what_was_used(client: TestClient, backend: Backend) -> None:
    answer = client.post("/v1/search", json={"query": "an otter", "budget": "full", "top_k": 2})
    assert answer.status_code == 200
    body = answer.json()
    assert [hit["id"] for hit in body["results"]] == ["doc/0", "doc/1"]
    assert body["budget"] == "4x8"
    assert body["instruction"] == "find the picture"
    assert (body["candidates"], body["scored"], body["live"]) == (5, 5, 5)
    assert body["exact"] is True
    assert body["generation"] == "g1"
    assert body["stages"] == [{"name": "maxsim", "in": 5, "out": 2, "ms": 0.5}]
    assert body["timing"]["total_ms"] >= body["timing"]["encode_ms"] >= 0
    assert backend.items[0].text == "an otter"


def test_fields_and_parts_keep_their_order(
    client: TestClient, backend: Backend, png: Callable[..., bytes], data_uri: Callable[..., str]
) -> None:
    image = data_uri(png())
    client.post("/v1/search", json={"query": {"text": "a", "image": image}})
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": image}},
        {"type": "text", "text": "b"},
    ]
    client.post("/v1/search", json={"query": parts})
    kinds = [[part.kind for part in item.parts] for item in backend.items]
    assert kinds == [["image", "text"], ["text", "image", "text"]]
    assert backend.items[1].images[0].image == png()


def test_the_instruction_reaches_the_encoder_and_comes_back(
    client: TestClient, backend: Backend
) -> None:
    for given, used in ((None, "find the picture"), ("", ""), ("find a page", "find a page")):
        answer = client.post("/v1/search", json={"query": "x", "instruction": given})
        assert answer.json()["instruction"] == used
    assert backend.instructions == [None, "", "find a page"]


def test_the_plan_reaches_the_index(client: TestClient, backend: Backend) -> None:
    asked = {"candidates": "all", "filter": {"source": "emoji"}, "group_by": "family"}
    client.post("/v1/search", json={"query": "x", "budget": "fast", "top_k": 3, **asked})
    [plan] = backend.plans
    assert (plan.budget, plan.top_k, plan.candidates) == ("1x1", 3, "all")
    assert (plan.filter, plan.group_by) == ({"source": "emoji"}, "family")


def test_given_vectors_are_searched_as_they_are(client: TestClient, backend: Backend) -> None:
    vectors = [[0.6, 0.8], [1.0, 0.0], [0.0, 1.0], [0.8, 0.6]]
    answer = client.post("/v1/search", json={"vectors": vectors, "fused": [1.0]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["instruction"] is None
    sent = backend.encoded[0]
    assert sent.vectors.shape == (1, 4, 2)
    assert sent.vectors[0, 0].tolist() == pytest.approx([0.6, 0.8])
    assert sent.fused.tolist() == [[1.0]]
    assert backend.items == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"vectors": [[1.0, 0.0, 0.0]]}, "vectors"),
        ({"vectors": []}, "vectors"),
        ({"vectors": [[1.0, 0.0]]}, "vectors"),
        ({"vectors": [[3.0, 4.0]] * 4}, "vectors"),
        ({"vectors": [[1.0, 0.0]] * 4, "budget": "fused"}, "fused"),
        ({"vectors": [[1.0, 0.0]] * 4, "fused": [1.0, 0.0]}, "fused"),
        ({"query": "x", "top_k": 101}, "top_k"),
        ({"query": "x", "candidates": 0}, "candidates"),
        ({"query": "x", "candidates": 5, "top_k": 6}, "candidates"),
        ({"query": "x", "candidates": 10_001}, "candidates"),
        ({"query": "x", "budget": "5x5"}, "budget"),
        ({"query": "x", "budget": "huge"}, "budget"),
        ({"query": ""}, "query"),
        ({"query": {"text": " "}}, "query"),
        ({"query": []}, "query"),
        ({"query": "x" * 9000}, "query"),
        ({"query": [{"type": "text", "text": "a"}] * 9}, "query"),
        ({"query": {"image": "data:image/png;base64,@@"}}, "query.image"),
        ({"query": {"image": "data:image/png,abc"}}, "query.image"),
        ({"query": {"image": "http://example.com/a.png"}}, "query.image"),
        ({"query": {"image": "file:///etc/passwd"}}, "query.image"),
    ],
)
def test_a_value_that_cannot_be_is_refused_and_named(
    client: TestClient, backend: Backend, body: dict[str, Any], param: str
) -> None:
    error = error_of(client.post("/v1/search", json=body), 400)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert backend.plans == []


def test_an_unknown_budget_is_answered_with_those_that_exist(client: TestClient) -> None:
    error = error_of(client.post("/v1/search", json={"query": "x", "budget": "3x3"}), 400)
    assert error["code"] == "unknown_budget"
    for name in ("fast", "fused", "4x8"):
        assert name in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"query": "x", "topk": 3}, "topk"),
        ({"query": "x", "top_k": 0}, "top_k"),
        ({"query": "x", "top_k": "many"}, "top_k"),
        ({}, None),
        ({"query": "x", "vectors": [[1.0, 0.0]]}, None),
    ],
)
def test_a_body_of_another_shape_is_422_and_names_the_field(
    client: TestClient, body: dict[str, Any], param: str | None
) -> None:
    assert error_of(client.post("/v1/search", json=body), 422)["param"] == param


def test_a_vector_with_nan_is_refused(client: TestClient) -> None:
    body = b'{"vectors": [[NaN, 1.0]]}'
    answer = client.post("/v1/search", content=body, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500
    error_of(answer, answer.status_code)


def test_a_body_that_is_not_json_is_400(client: TestClient) -> None:
    answer = client.post(
        "/v1/search", content=b'{"query": ', headers={"content-type": "application/json"}
    )
    assert error_of(answer, 400)["code"] == "invalid_json"


@pytest.mark.parametrize("kind", ["truncated", "text", "too many pixels"])
def test_a_bad_image_is_refused_and_the_next_query_is_answered(
    client: TestClient, png: Callable[..., bytes], data_uri: Callable[..., str], kind: str
) -> None:
    content = {
        "truncated": png(64, 64)[:60],
        "text": b"hello",
        "too many pixels": png(200, 200),
    }[kind]
    answer = client.post("/v1/search", json={"query": {"image": data_uri(content)}})
    assert error_of(answer, 400)["param"] == "query"
    assert client.post("/v1/search", json={"query": "an otter"}).status_code == 200


def test_a_body_beyond_the_limit_is_413_whether_or_not_it_says_so(
    connect: Callable[..., TestClient], backend: Backend
) -> None:
    client = connect(max_body_bytes=2000)
    huge = b'{"query": "' + b"x" * 5000 + b'"}'
    assert error_of(client.post("/v1/search", content=huge), 413)["code"] == "body_too_large"

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(huge), 500):
            yield huge[start : start + 500]

    assert error_of(client.post("/v1/search", content=chunks()), 413)["code"] == "body_too_large"
    assert backend.items == []


def test_a_key_is_asked_for_everywhere_below_v1(connect: Callable[..., TestClient]) -> None:
    client = connect("secret", "other")
    paths = ["/v1/info", "/v1/documents/doc/0", "/v1/documents/doc/0/image"]
    for path in paths:
        assert error_of(client.get(path), 401)["code"] == "missing_api_key"
        wrong = client.get(path, headers={"authorization": "Bearer secre"})
        assert error_of(wrong, 401)["code"] == "invalid_api_key"
        for headers in ({"authorization": "Bearer secret"}, {"x-api-key": "other"}):
            assert client.get(path, headers=headers).status_code == 200
    assert error_of(client.get("/metrics"), 401)
    assert error_of(client.post("/v1/search", json={"query": "x"}), 401)


def test_without_a_key_no_body_is_looked_at(
    connect: Callable[..., TestClient], records: list[Any]
) -> None:
    client = connect("secret", max_body_bytes=2000)
    good = {"x-api-key": "secret", "content-type": "application/json"}
    for path in ("/v1/search", "/v1/rerank", "/v1/documents", "/v1/embeddings"):
        assert error_of(client.post(path, content=b"{"), 401)["code"] == "missing_api_key"
        known = client.post(path, content=b"{", headers=good)
        assert error_of(known, 400)["code"] == "invalid_json"
    assert error_of(client.post("/v1/search", content=b"x" * 2001), 401)
    assert error_of(client.post("/v1/search", content=b"x" * 2001, headers=good), 413)
    # what does not exist is nobody's business either
    assert error_of(client.get("/v1/nothing"), 401)
    assert error_of(client.get("/v1/nothing", headers=good), 404)
    assert {record.facts.code for record in records if record.status == 401} == {"missing_api_key"}


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("POST", "/v1/search", "/v1/search"),
        ("DELETE", "/v1/documents", "/v1/documents"),
        ("GET", "/v1/documents/a/b/image", "/v1/documents/{document_id:path}/image"),
        ("GET", "/v1/documents/a/b", "/v1/documents/{document_id:path}"),
        ("PUT", "/v1/search", "/v1/search"),
        ("POST", "/v1/nothing", "unknown"),
    ],
)
def test_refusals_before_any_route_name_the_route_and_the_code(
    connect: Callable[..., TestClient],
    records: list[RequestRecord],
    method: str,
    path: str,
    route: str,
) -> None:
    client = connect("secret", max_body_bytes=2000)
    client.request(method, path)
    expected = [(route, 401, "missing_api_key")]
    if method != "GET":
        client.request(method, path, content=b"x" * 2001, headers={"x-api-key": "secret"})
        expected.append((route, 413, "body_too_large"))
    assert [(it.route, it.status, it.facts.code) for it in records] == expected


async def test_a_caller_without_a_key_is_answered_before_anything_is_read() -> None:
    async def never(*_: Any) -> Any:
        raise AssertionError("read, or passed on")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    keys = KeyRing([ApiKey(name="me", sha256="0" * 64)])
    scope = {"type": "http", "method": "POST", "path": "/v1/search", "headers": []}
    await KeyCheck(never, keys)(scope, never, send)
    assert sent[0]["status"] == 401
    below = scope | {"root_path": "/api", "path": "/api/v1/search"}
    await KeyCheck(never, keys)(below, never, send)
    assert sent[2]["status"] == 401
    assert is_open(below | {"path": "/api/healthz"})
    for path in ("/apis/healthz", "/api//", "//healthz", "/assets"):
        assert not is_open(below | {"path": path})


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/", "/docs", "/assets/search.js"])
@pytest.mark.parametrize("keys", [(), ("secret",)])
async def test_no_body_is_read_where_no_key_is_asked_for(
    connect: Callable[..., TestClient], path: str, keys: tuple[str, ...]
) -> None:
    async def never() -> Any:
        raise AssertionError("read")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    for method in ("POST", "PUT", "DELETE"):
        scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
        await connect(*keys).app(scope, never, send)
    assert [message["status"] for message in sent[::2]] == [405] * 3


def test_health_and_the_pages_need_no_key(connect: Callable[..., TestClient]) -> None:
    client = connect("secret")
    pages = ("/", "/docs", "/openapi.json", "/assets/search.js", "/favicon.ico")
    for path in ("/healthz", "/livez", "/readyz", *pages):
        assert client.get(path).status_code == 200


def test_ready_only_when_encoder_and_index_answer(
    client: TestClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "KEPT_S", 0.0)
    backend.is_ready = False
    answer = client.get("/readyz")
    assert error_of(answer, 503)["code"] == "not_ready"
    assert answer.headers["retry-after"] == "1"
    assert client.get("/healthz").status_code == 200
    backend.is_ready = True
    assert client.get("/readyz").json() == {"status": "ready"}


def test_the_parts_are_not_asked_for_every_one_who_asks_whether_they_are_ready(
    client: TestClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "KEPT_S", 3600.0)
    assert client.get("/readyz").status_code == 200
    backend.is_ready = False
    assert client.get("/readyz").status_code == 200


def test_what_the_index_refuses_is_400_and_what_breaks_is_500_without_details(
    client: TestClient, backend: Backend
) -> None:
    backend.failure = UserError("no field 'colour' in this index; fields: name, media")
    assert "colour" in error_of(client.post("/v1/search", json={"query": "x"}), 400)["message"]
    backend.failure = OverloadedError("every queue is full")
    assert error_of(client.post("/v1/search", json={"query": "x"}), 503)["code"] == "overloaded"
    backend.failure = RuntimeError("secret path /etc/shadow")
    answer = client.post("/v1/search", json={"query": "x"})
    assert "secret" not in error_of(answer, 500)["message"]


def test_what_breaks_is_found_by_its_request_id_in_answer_record_and_log(
    client: TestClient,
    backend: Backend,
    records: list[RequestRecord],
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend.failure = RuntimeError("secret path /etc/shadow")
    answer = client.post("/v1/search", json={"query": "x"}, headers={"x-request-id": "mine-1"})
    assert error_of(answer, 500)["code"] == "internal_error"
    assert answer.headers["x-request-id"] == "mine-1"
    [record] = records
    assert (record.route, record.status, record.request_id) == ("/v1/search", 500, "mine-1")
    assert record.facts.code == "internal_error"
    [logged] = [line for line in caplog.records if "mine-1" in line.getMessage()]
    assert logged.exc_info is not None
    assert logged.exc_info[1] is backend.failure


async def test_a_search_without_room_is_refused_before_its_body_is_read(backend: Backend) -> None:
    sent: list[Any] = []

    async def never(*read: Any) -> Any:
        raise AssertionError("something was read")

    async def send(message: Any) -> None:
        sent.append(message)

    backend.is_full = True
    scope = {"type": "http", "method": "POST", "path": "/v1/search", "headers": []}
    for search in (scope, scope | {"root_path": "/api", "path": "/api/v1/search"}):
        await SearchGate(never, backend)(search, never, send)
    assert [message["status"] for message in sent[::2]] == [503, 503]
    with pytest.raises(AssertionError, match="something was read"):
        await SearchGate(never, backend)(scope | {"path": "/v1/info"}, never, send)


def test_a_search_without_room_gets_the_one_shape_and_others_go_on(
    connect: Callable[..., TestClient], backend: Backend, records: list[RequestRecord]
) -> None:
    client = connect("secret")
    backend.is_full = True
    assert error_of(client.post("/v1/search", json={"query": "x"}), 401)
    client.headers["authorization"] = "Bearer secret"
    answer = client.post("/v1/search", json={"query": "x"})
    assert error_of(answer, 503)["code"] == "overloaded"
    assert answer.headers["retry-after"] == "2"
    assert "x-request-id" in answer.headers
    refused = records[-1]
    assert (refused.route, refused.status, refused.facts.code) == ("/v1/search", 503, "overloaded")
    assert client.get("/v1/info").status_code == 200
    assert client.get("/v1/documents/doc/3").status_code == 200


def test_documents_by_id_also_with_a_slash(client: TestClient) -> None:
    body = client.get("/v1/documents/doc/3").json()
    assert (body["id"], body["payload"]["name"]) == ("doc/3", "shape 3")
    assert client.get("/v1/documents/doc%2F3").json() == body
    assert error_of(client.get("/v1/documents/none"), 404)["code"] == "unknown_document"


def test_an_id_that_ends_like_the_path_of_an_image_is_read_with_its_slash_encoded(
    client: TestClient, backend: Backend, records: list[RequestRecord], png: Callable[..., bytes]
) -> None:
    backend.documents |= {"a": {"media": "1.png"}, "b/image": {"name": "b", "media": "2.png"}}
    for path in ("b%2Fimage", "b%2fimage"):
        found = client.get(f"/v1/documents/{path}")
        assert found.json()["id"] == "b/image"
        assert records[-1].route == "/v1/documents/{document_id:path}"
    missing = error_of(client.get("/v1/documents/a%2Fimage"), 404)
    assert (missing["code"], "'a/image'" in missing["message"]) == ("unknown_document", True)
    # as ever: the image, of an id encoded or not
    for path in ("a/image", "b/image/image", "b%2Fimage/image", "doc%2F0/image"):
        assert client.get(f"/v1/documents/{path}").content == png()
    assert error_of(client.get("/v1/documents/b/image"), 404)["code"] == "unknown_document"


def test_images_are_returned_from_inside_the_media_roots_only(
    client: TestClient, backend: Backend, tmp_path: Path, png: Callable[..., bytes]
) -> None:
    answer = client.get("/v1/documents/doc/0/image")
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == png()
    outside = tmp_path / "outside.png"
    outside.write_bytes(png())
    (tmp_path / "media" / "link.png").symlink_to(outside)
    (tmp_path / "media" / "notes.txt").write_text("private")
    for media in (
        str(outside),
        "../outside.png",
        str(tmp_path / "media" / ".." / "outside.png"),
        "link.png",
        "notes.txt",
        "missing.png",
        "file:///etc/passwd",
        "a\0b.png",
        7,
        None,
    ):
        backend.documents["bad"] = {"media": media}
        assert error_of(client.get("/v1/documents/bad/image"), 404)["code"] == "no_image"
    backend.documents["relative"] = {"media": "1.png"}
    assert client.get("/v1/documents/relative/image").status_code == 200


def test_info_lists_budgets_limits_and_identity(connect: Callable[..., TestClient]) -> None:
    body = connect(max_top_k=7).get("/v1/info").json()
    assert body["budgets"]["full"] == "4x8"
    assert body["limits"]["max_top_k"] == 7
    assert body["model"]["name"] == "fake"
    assert body["index"]["documents"] == 5


def test_info_does_not_say_where_things_lie_on_the_server(
    client: TestClient, backend: Backend
) -> None:
    answer = client.get("/v1/info")
    assert answer.json()["index"]["generation"] == "g1"
    assert "/srv/" not in answer.text


@pytest.mark.parametrize(
    ("scopes", "status"),
    [({"metrics"}, 200), ({"admin"}, 200), ({"read"}, 403), ({"read", "write"}, 403)],
)
def test_metrics_are_for_operators_and_their_scrapers(
    connect: Callable[..., TestClient],
    monkeypatch: pytest.MonkeyPatch,
    scopes: set[str],
    status: int,
) -> None:
    caller = Caller("someone", frozenset(scopes))
    monkeypatch.setattr(KeyRing, "admit", lambda self, headers: caller)
    answer = connect("secret").get("/metrics")
    assert answer.status_code == status
    if status == 403:
        assert "'metrics' or 'admin'" in error_of(answer, 403)["message"]


def test_unknown_paths_and_methods_have_the_same_error_shape(client: TestClient) -> None:
    assert error_of(client.get("/v1/nothing"), 404)["code"] == "unknown_path"
    assert error_of(client.get("/v1/search"), 405)["code"] == "method_not_allowed"


def test_every_answer_has_a_request_id_and_leaves_one_record(
    client: TestClient, records: list[Any]
) -> None:
    mine = client.get("/v1/documents/doc/1", headers={"x-request-id": "abc-1"})
    made = client.post("/v1/search", json={"query": "", "budget": "x"})
    assert mine.headers["x-request-id"] == "abc-1"
    assert len(made.headers["x-request-id"]) == 32
    evil = client.get("/healthz", headers={"x-request-id": "a b<script>"})
    assert evil.headers["x-request-id"] != "a b<script>"
    seen = [(record.route, record.status) for record in records]
    assert seen[:2] == [("/v1/documents/{document_id:path}", 200), ("/v1/search", 400)]


def test_the_pages_load_nothing_from_elsewhere(client: TestClient) -> None:
    for path in ("/", "/docs"):
        answer = client.get(path)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "http://" not in answer.text
        assert "https://" not in answer.text
    for name in ("style.css", "search.js", "docs.js"):
        assert client.get(f"/assets/{name}").status_code == 200
    assert client.get("/favicon.ico").headers["content-type"] == "image/svg+xml"


def test_openapi_documents_the_error_shape(client: TestClient) -> None:
    api = client.get("/openapi.json").json()
    answers = api["paths"]["/v1/search"]["post"]["responses"]
    for status in ("400", "401", "413", "422", "503"):
        assert answers[status]["content"]["application/json"]["schema"]["$ref"].endswith(
            "ErrorBody"
        )


def test_a_long_base64_image_stays_within_the_default_body_limit(
    client: TestClient, png: Callable[..., bytes]
) -> None:
    bare = base64.b64encode(png(90, 90)).decode()
    assert client.post("/v1/search", json={"query": {"image": bare}}).status_code == 200


def test_what_a_request_did_is_noted_for_metrics_and_the_log(
    client: TestClient, records: list[Any]
) -> None:
    client.post("/v1/search", json={"query": "an otter", "budget": "fast"})
    client.post("/v1/search", json={"query": "an otter", "budget": "9x9"})
    client.request("DELETE", "/v1/documents", json={"ids": ["doc/1"]})
    found, refused, deleted = (record.facts for record in records)
    assert (found.caller, found.code, found.query) == ("anonymous", "", "an otter")
    assert found.encode_s is not None
    assert [search.reason for search in found.searches] == ["explicit"]
    assert (refused.code, refused.searches) == ("unknown_budget", [])
    assert deleted.documents == ["doc/1"]


def test_what_is_no_search_is_charged_once_and_the_answer_tells_what_is_left(
    client: TestClient, backend: Backend
) -> None:
    told = [
        client.post("/v1/embeddings", json={"model": "rematch", "input": ["a", "b"]}),
        client.request("DELETE", "/v1/documents", json={"ids": ["doc/1"]}),
        client.post("/v1/search", json={"query": "an otter"}),
        client.get("/v1/documents/doc/0"),
    ]
    assert [answer.status_code for answer in told] == [200] * 4
    assert backend.charged == ["anonymous"] * 3
    assert [answer.headers["ratelimit-remaining"] for answer in told] == ["9", "8", "8", "7"]


def test_what_is_read_is_charged_and_what_operators_ask_is_not(
    client: TestClient, backend: Backend
) -> None:
    for path in ("/v1/info", "/v1/documents/doc/1", "/v1/documents/doc/1/image"):
        client.get(path)
    assert len(backend.charged) == 3
    for path in ("/healthz", "/readyz", "/metrics"):
        assert client.get(path).status_code == 200
    assert len(backend.charged) == 3
