"""Documents written and deleted over HTTP, by those who may."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rematch_ray.errors import UserError
from rematch_ray.serve.backend import Caller
from rematch_ray.serve.keys import KeyRing
from tests.serve.test_routes import error_of

Backend = Any
VECTORS = {"vectors": [[1.0, 0.0]] * 8, "fused": [1.0]}


def test_documents_of_every_form_are_written(
    client: TestClient, backend: Backend, png: Callable[..., bytes], data_uri: Callable[..., str]
) -> None:
    image = data_uri(png())
    documents = [
        {"id": "new", "text": "a", "image": image, "payload": {"year": 1999}, "source": "mine"},
        {"id": "doc/1", "content": [{"type": "text", "text": "b"}]},
        {"id": "vectors", **VECTORS},
    ]
    answer = client.post("/v1/documents", json={"documents": documents})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "added": 2,
        "replaced": 1,
        "deleted": 0,
        "unknown": 0,
        "generation": "g2",
        "visible_within_s": 1.0,
    }
    first, second, third = backend.written
    assert [part.kind for part in first.item.parts] == ["image", "text"]
    assert (first.item.id, first.payload, first.source) == ("new", {"year": 1999}, "mine")
    assert (second.item.text, second.source) == ("b", "api")
    assert third.item is None
    assert third.vectors.vectors.shape == (1, 8, 2)
    assert client.get("/v1/documents/new").json()["payload"] == {"year": 1999}


def test_documents_are_deleted_by_id_or_by_filter(client: TestClient, backend: Backend) -> None:
    by_id = client.request("DELETE", "/v1/documents", json={"ids": ["doc/1", "none"]}).json()
    assert (by_id["deleted"], by_id["unknown"], by_id["generation"]) == (1, 1, "g3")
    filter = {"name": "shape 2"}
    assert client.request("DELETE", "/v1/documents", json={"filter": filter}).json()["deleted"] == 1
    assert sorted(backend.documents) == ["doc/0", "doc/3", "doc/4"]


@pytest.mark.parametrize(
    ("document", "status", "param"),
    [
        ({"id": "a"}, 422, "documents.0"),
        ({"id": "a", "text": "x", **VECTORS}, 422, "documents.0"),
        ({"id": "a", "text": "x", "fused": [1.0]}, 422, "documents.0"),
        ({"text": "x"}, 422, "documents.0.id"),
        ({"id": "", "text": "x"}, 422, "documents.0.id"),
        ({"id": "a\nb", "text": "x"}, 422, "documents.0.id"),
        ({"id": "a" * 513, "text": "x"}, 422, "documents.0.id"),
        ({"id": "a", "text": ""}, 400, "documents.0"),
        ({"id": "a", "image": "file:///etc/passwd"}, 400, "documents.0.image"),
        ({"id": "a", "text": "x", "payload": [1]}, 422, "documents.0.payload"),
        ({"id": "a", "text": "x", "payload": {"a": 2**64}}, 422, "documents.0.payload"),
        ({"id": "a", "vectors": [[1.0, 0.0]] * 4}, 400, "documents.0.vectors"),
        ({"id": "a", "vectors": [[1.0, 0.0, 0.0]] * 8}, 400, "documents.0.vectors"),
        ({"id": "a", "vectors": [[1.0, 0.0]] * 8}, 400, "documents.0.fused"),
        ({"id": "a", "vectors": [[9.0, 0.0]] * 8, "fused": [1.0]}, 400, "documents.0.vectors"),
    ],
)
def test_a_document_that_cannot_be_is_named_and_nothing_is_written(
    client: TestClient, backend: Backend, document: dict[str, Any], status: int, param: str
) -> None:
    answer = client.post("/v1/documents", json={"documents": [document, {"id": "b", "text": "b"}]})
    assert error_of(answer, status)["param"] == param
    assert backend.written == []


def test_an_id_twice_and_too_many_documents_are_refused(
    connect: Callable[..., TestClient], backend: Backend
) -> None:
    client = connect(max_write_documents=2)
    twice = [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}]
    error = error_of(client.post("/v1/documents", json={"documents": twice}), 400)
    assert error["param"] == "documents.1.id"
    many = [{"id": str(n), "text": "x"} for n in range(3)]
    assert error_of(client.post("/v1/documents", json={"documents": many}), 400)
    ids = {"ids": ["a", "b", "c"]}
    assert error_of(client.request("DELETE", "/v1/documents", json=ids), 400)["param"] == "ids"
    assert backend.written == []


@pytest.mark.parametrize(
    "body", [{}, {"ids": []}, {"filter": {}}, {"ids": ["a"], "filter": {"a": 1}}, {"id": "a"}]
)
def test_a_delete_that_names_nothing_or_everything_is_refused(
    client: TestClient, backend: Backend, body: dict[str, Any]
) -> None:
    error_of(client.request("DELETE", "/v1/documents", json=body), 422)
    assert len(backend.documents) == 5


def test_what_the_writer_refuses_is_400(client: TestClient, backend: Backend) -> None:
    backend.failure = UserError("this index takes no writes: it was opened read-only")
    answer = client.post("/v1/documents", json={"documents": [{"id": "a", "text": "x"}]})
    assert "read-only" in error_of(answer, 400)["message"]


def test_writing_needs_the_scope_write(
    connect: Callable[..., TestClient], backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:

    reader = Caller("reader", frozenset({"read"}))
    monkeypatch.setattr(KeyRing, "admit", lambda self, headers: reader)
    client = connect("secret")
    body = {"documents": [{"id": "a", "text": "x"}]}
    error = error_of(client.post("/v1/documents", json=body), 403)
    assert (error["code"], error["type"]) == ("missing_scope", "permission_error")
    assert "reader" in error["message"]
    error_of(client.request("DELETE", "/v1/documents", json={"ids": ["a"]}), 403)
    assert client.post("/v1/search", json={"query": "x"}).status_code == 200
    assert backend.written == []


def test_a_key_without_the_scope_read_may_not_look(
    connect: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:

    writer = Caller("writer", frozenset({"write"}))
    monkeypatch.setattr(KeyRing, "admit", lambda self, headers: writer)
    client = connect("secret")
    for path in ("/v1/info", "/v1/documents/doc/1"):
        error_of(client.get(path), 403)
    for path in ("/v1/search", "/v1/embeddings", "/v1/rerank"):
        error_of(client.post(path, json={}), 403)
