"""Bodies that no client of good will sends: each has its 4xx in the one shape, and nothing else
happens."""

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

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
