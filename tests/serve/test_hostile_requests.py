"""Bodies that no client of good will sends: each has its 4xx in the one shape, and nothing else
happens."""

import gc
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from rematch_ray.serve import failures
from tests.serve.test_routes import error_of

Backend = Any
JSON = {"content-type": "application/json"}


def bomb(width: int, height: int) -> bytes:
    """A PNG of some bytes that says it is huge."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/search", b'{"vectors": [[NaN, 1.0]]}', 422, "vectors.0.0"),
        ("/v1/search", b'{"vectors": [[Infinity, 1.0]]}', 422, "vectors.0.0"),
        ("/v1/search", b'{"vectors": [[1e999, 1.0]]}', 422, "vectors.0.0"),
        ("/v1/search", b'{"vectors": [[0, 0],[1, 0],[1, 0],[1, 0]]}', 400, "vectors"),
        ("/v1/search", b'{"vectors": [[1e300, 1e300],[1, 0],[1, 0],[1, 0]]}', 400, "vectors"),
        ("/v1/search", b'{"query": "x", "min_score": NaN}', 422, "min_score"),
        ("/v1/search", b'{"query": "x", "deadline_ms": NaN}', 422, "deadline_ms"),
        ("/v1/search", b'{"query": "x", "deadline_ms": 1e308}', 422, "deadline_ms"),
        ("/v1/search", b'{"query": "x", "filter": {"a": NaN}}', 422, "filter"),
        ("/v1/search", b'{"query": "x", "filter": {"a": [[{"b": -Infinity}]]}}', 422, "filter"),
        ("/v1/search", b'{"query": "x", "filter": {"a": "\\ud800"}}', 400, None),
        ("/v1/search", b'{"query": "x", "filter": {"\\udfff": 1}}', 400, None),
        ("/v1/search", b'{"query": "\\ud83d"}', 400, None),
        ("/v1/search", b'{"query": "x", "\\ud83d": 1}', 400, None),
        ("/v1/search", b'{"query": "x", "budget": "\\ud83d"}', 400, None),
        ("/v1/search", b'{"query": "x", "like\\u0000": "a"}', 422, "like\0"),
        ("/v1/search", b'{"query": ', 400, None),
        ("/v1/search", b"", 422, None),
        ("/v1/search", b"null", 422, None),
        ("/v1/search", b"[]", 422, None),
        ("/v1/search", b'"query"', 422, None),
        ("/v1/search", b"\xff\xfe{}", 400, None),
        ("/v1/search", b'{"query": "\xff"}', 400, None),
        ("/v1/search", b"[" * 100_000, 400, None),
        ("/v1/search", b'{"query": "x", "top_k": ' + b"9" * 5000 + b"}", 400, None),
        ("/v1/search", b'{"query": "x", "top_k": ' + b"9" * 4000 + b"}", 400, "top_k"),
        ("/v1/search", b'{"query": "x", "offset": ' + b"9" * 4000 + b"}", 400, "offset"),
        ("/v1/search", b'{"query": "x", "filter": ' + b'{"a":' * 40 + b"1" + b"}" * 41, 422, None),
        ("/v1/documents", b'{"documents": [{"id": "a", "payload": {"c": NaN}}]}', 422, None),
        ("/v1/documents", b'{"documents": [{"id": "\\ud800", "text": "b"}]}', 400, None),
        ("/v1/documents", b'{"documents": [{"id": "a", "source": "\\ud800"}]}', 400, None),
        ("/v1/embeddings", b'{"model": "rematch", "input": "\\ud800"}', 400, None),
        ("/v1/embeddings", b'{"model": "\\ud800", "input": "a"}', 400, None),
        ("/v1/rerank", b'{"model": "fake", "query": "a", "documents": ["\\ud800"]}', 400, None),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_is_refused_in_the_one_shape(
    client: TestClient, backend: Backend, path: str, body: bytes, status: int, param: str | None
) -> None:
    error = error_of(client.post(path, content=body, headers=JSON), status)
    if param is not None:
        assert error["param"] == param
    assert len(error["message"]) <= 1000
    assert backend.plans == backend.items == backend.written == []
    assert client.post("/v1/search", json={"query": "x"}).status_code == 200


UNIT = [[1.0, 0.0]] * 4


def names(count: int) -> dict[str, int]:
    return {f"u{number}": number for number in range(count)}


@pytest.mark.parametrize(
    ("path", "body_of", "param", "status"),
    [
        ("/v1/search", lambda n: {"searches": [0] * n}, "searches", 400),
        ("/v1/search", lambda n: {"searches": [{"query": "x"}] * n}, "searches", 400),
        ("/v1/search", lambda n: {"query": [0] * n}, "query", 400),
        ("/v1/search", lambda n: {"query": names(n)}, "query.u0", 422),
        ("/v1/search", lambda n: {"vectors": [["a"]] * n}, "vectors", 400),
        ("/v1/search", lambda n: {"vectors": [["a"] * n] * 9}, "vectors.0.0", 422),
        ("/v1/search", lambda n: {"vectors": UNIT, "fused": ["a"] * n}, "fused.0", 422),
        ("/v1/search", lambda n: {"query": "x", "filter": {"a": ["b"] * n}}, "filter", 400),
        ("/v1/search", lambda n: {"query": "x", "filter": {"a": names(n)}}, "filter", 400),
        ("/v1/search", names, "u0", 422),
        ("/v1/embeddings", lambda n: {"model": "rematch", "input": [0] * n}, "input", 400),
        ("/v1/embeddings", lambda n: {"model": "rematch", "input": ["x"] * n}, "input", 400),
        ("/v1/embeddings", lambda n: {"model": "rematch", "input": [[0] * n]}, "input.0", 400),
        ("/v1/rerank", lambda n: {"model": "fake", "query": "x", "documents": [0] * n},
         "documents", 400),
        ("/v1/documents", lambda n: {"documents": [0] * n}, "documents", 400),
        ("/v1/documents", lambda n: {"documents": [{"id": "a", "content": [0] * n}] * 9},
         "documents.0.content", 400),
    ],
)  # fmt: skip
async def test_a_list_that_is_far_too_long_costs_no_more_than_one_that_is_too_long(
    client: TestClient,
    backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body_of: Callable[[int], dict[str, Any]],
    param: str,
    status: int,
) -> None:
    mistakes: list[int] = []
    told = failures.from_validation

    def counted(error: Any) -> Any:
        mistakes.append(len(error.errors()))
        return told(error)

    monkeypatch.setattr(failures, "from_validation", counted)
    calls = []
    for count in (12_000, 48_000):
        answer, called = await counting_calls(client.app, path, body_of(count))
        error = error_of(answer, status)
        assert error["param"] == param
        if status == 400:
            assert error["code"] == "invalid_value"
            assert "at most" in error["message"]
        calls.append(called)
    assert calls[1] < calls[0] + 100
    assert len(mistakes) == 2
    assert max(mistakes) <= 2
    assert backend.plans == backend.items == backend.written == []


async def counting_calls(app: Any, path: str, body: dict[str, Any]) -> tuple[httpx.Response, int]:
    """An answer, and how many functions were called for it."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        request, before = client.build_request("POST", path, json=body), sys.getprofile()
        sys.setprofile(count)
        try:
            answer = await client.send(request)
        finally:
            sys.setprofile(before)
    return answer, calls


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"ids": [0] * 1001}, "ids"),
        ({"ids": ["a"] * 1001}, "ids"),
        ({"filter": {"a": [1] * 10_000}}, "filter"),
    ],
)
def test_of_what_is_to_be_deleted_not_too_much_may_be_named(
    client: TestClient, backend: Backend, body: dict[str, Any], param: str
) -> None:
    error = error_of(client.request("DELETE", "/v1/documents", json=body), 400)
    assert (error["code"], error["param"]) == ("invalid_value", param)
    assert backend.callers == []


def test_while_a_body_of_many_lists_is_read_no_garbage_is_looked_for(client: TestClient) -> None:
    rounds: list[str] = []

    def count(phase: str, told: dict[str, int]) -> None:
        rounds.append(phase)

    body = b'{"vectors": [' + b"[]," * 400_000 + b"[]]}"
    client.post("/v1/search", json={"query": "x"})
    gc.collect()
    gc.callbacks.append(count)
    try:
        answer = client.post("/v1/search", content=body, headers=JSON)
    finally:
        gc.callbacks.remove(count)
    error_of(answer, 400)
    assert gc.isenabled()
    assert rounds.count("start") < 50


def test_a_list_of_a_search_in_a_batch_fails_that_search_alone(client: TestClient) -> None:
    long = [{"query": [0] * 1000}, {"query": "x", "filter": {"a": [1] * 10_000}}]
    answer = client.post("/v1/search", json={"searches": [{"query": "x"}, *long]})
    first, *others = answer.json()["answers"]
    assert first["results"]
    told = [(one["error"]["code"], one["error"]["param"]) for one in others]
    assert told == [("invalid_value", "query"), ("invalid_value", "filter")]


def test_how_long_a_list_may_be_is_a_setting_of_each_service(
    connect: Callable[..., TestClient],
) -> None:
    narrow, wide = connect(max_parts=1, max_filter_values=1), connect(max_parts=100)
    parts = {"query": [{"type": "text", "text": "a"}] * 9}
    filtered = {"query": "x", "filter": {"a": [1]}}
    for _ in range(2):
        for body, param in ((parts, "query"), (filtered, "filter")):
            assert error_of(narrow.post("/v1/search", json=body), 400)["param"] == param
            assert wide.post("/v1/search", json=body).status_code == 200


def test_an_image_of_200_megapixels_is_refused_before_it_is_decoded(
    client: TestClient, data_uri: Callable[..., str]
) -> None:
    content = bomb(20_000, 10_000)
    assert len(content) < 1000
    for path, body, param in (
        ("/v1/search", {"query": {"image": data_uri(content)}}, "query"),
        (
            "/v1/embeddings",
            {"model": "rematch", "input": [{"image": data_uri(content)}]},
            "input.0",
        ),
        (
            "/v1/rerank",
            {"model": "fake", "query": "x", "documents": [{"image": data_uri(content)}]},
            "documents.0",
        ),
    ):
        error = error_of(client.post(path, json=body), 400)
        assert error["param"] == param
        assert "too many pixels" in error["message"]


@pytest.mark.parametrize("path", ["/v1/search", "/v1/embeddings", "/v1/rerank", "/v1/documents"])
def test_a_body_of_50_megabytes_is_413_whether_or_not_it_says_so(
    client: TestClient, backend: Backend, path: str
) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield bytes(1_000_000)

    for content in (bytes(50_000_000), chunks()):
        assert error_of(client.post(path, content=content), 413)["code"] == "body_too_large"
    assert backend.items == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/search", {"query": "x"}),
        ("/v1/embeddings", {"model": "rematch", "input": ["x"] * 256}),
        ("/v1/rerank", {"model": "fake", "query": "x", "documents": ["y"]}),
    ],
)
def test_an_instruction_of_megabytes_reaches_no_encoder(
    client: TestClient, backend: Backend, path: str, body: dict[str, Any]
) -> None:
    longest, longer = "a b " * 250, "a b " * 250 + "c"
    for instruction in (longer, "a b " * 1_000_000):
        answer = client.post(path, json=body | {"instruction": instruction})
        error = error_of(answer, 400)
        assert (error["code"], error["param"]) == ("invalid_value", "instruction")
        assert f"{len(instruction)} characters, at most 1000" in error["message"]
    assert backend.items == []
    assert client.post(path, json=body | {"instruction": longest}).status_code == 200
    assert longest in backend.instructions


def test_a_long_instruction_fails_its_own_search_of_a_batch(client: TestClient) -> None:
    searches = [{"query": "x"}, {"query": "x", "instruction": "a" * 1001}]
    answers = client.post("/v1/search", json={"searches": searches}).json()["answers"]
    assert answers[0]["results"]
    assert answers[1]["error"]["param"] == "instruction"


def test_how_long_an_instruction_may_be_is_a_setting(connect: Callable[..., TestClient]) -> None:
    client = connect(max_instruction_chars=3)
    assert client.get("/v1/info").json()["limits"]["max_instruction_chars"] == 3
    for instruction, status in (("abc", 200), ("abcd", 400)):
        answer = client.post("/v1/search", json={"query": "x", "instruction": instruction})
        assert answer.status_code == status


def test_paths_that_are_no_text_are_404_or_400(client: TestClient) -> None:
    for path in ("/v1/documents/%FF%FE", "/v1/documents/%00", "/v1/documents/%ED%A0%80/image"):
        answer = client.get(path)
        error_of(answer, 404)
    error_of(client.get("/v1/documents/" + "a" * 5000), 404)


def test_a_method_that_a_path_does_not_have_says_which_it_has(client: TestClient) -> None:
    answer = client.put("/v1/documents")
    assert error_of(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"]
