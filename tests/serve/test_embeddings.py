"""Vectors over HTTP, in OpenAI's shape."""

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from rematch_ray.serve.backend import EncodedQuery, OverloadedError
from tests.serve.test_routes import error_of

Backend = Any
ASKED = {"model": "rematch", "input": "an otter"}


def test_each_input_has_one_vector_in_its_place(client: TestClient, backend: Backend) -> None:
    body = client.post("/v1/embeddings", json=ASKED | {"input": ["a", "b", "c"]}).json()
    assert body["object"] == "list"
    assert body["data"] == [
        {"object": "embedding", "index": place, "embedding": [1.0]} for place in range(3)
    ]
    assert body["usage"] == {"prompt_tokens": 21, "total_tokens": 21}
    assert [item.text for item in backend.items] == ["a", "b", "c"]
    assert backend.sides == ["query"] * 3


def test_base64_is_little_endian_float32(client: TestClient) -> None:
    asked = ASKED | {"encoding_format": "base64", "num_vectors": 1}
    [datum] = client.post("/v1/embeddings", json=asked).json()["data"]
    assert np.frombuffer(base64.b64decode(datum["embedding"]), "<f4").tolist() == [1.0]
    assert len(np.frombuffer(base64.b64decode(datum["vectors"][0]), "<f4")) == 2


def test_inputs_may_be_texts_parts_fields_or_several_parts_of_one(
    client: TestClient, backend: Backend, png: Callable[..., bytes], data_uri: Callable[..., str]
) -> None:
    image = {"type": "image_url", "image_url": {"url": data_uri(png())}}
    text = {"type": "text", "text": "b"}
    inputs = ["a", text, image, {"text": "c", "image": data_uri(png())}, [image, text]]
    answer = client.post("/v1/embeddings", json=ASKED | {"input": inputs})
    assert len(answer.json()["data"]) == 5
    # they are encoded beside each other, and images decoded in threads: in any order
    kinds = sorted([part.kind for part in item.parts] for item in backend.items)
    assert kinds == [["image"], ["image", "text"], ["image", "text"], ["text"], ["text"]]


def test_documents_and_more_vectors_when_asked_for(client: TestClient, backend: Backend) -> None:
    asked = ASKED | {"input_type": "document", "num_vectors": 3, "instruction": "keep"}
    [datum] = client.post("/v1/embeddings", json=asked).json()["data"]
    assert len(datum["vectors"]) == 3
    assert len(datum["vectors"][0]) == 2
    assert (backend.sides, backend.instructions) == (["document"], ["keep"])


def test_documents_take_the_instruction_that_the_index_was_built_with(
    client: TestClient, backend: Backend
) -> None:
    client.post("/v1/embeddings", json=ASKED | {"input_type": "document"})
    client.post("/v1/embeddings", json=ASKED)
    assert backend.instructions == ["index these", None]


def test_a_model_without_a_fused_vector_gives_vector_1(
    client: TestClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def encode(item: Any, instruction: Any, side: Any) -> EncodedQuery:
        return EncodedQuery(np.array([[[0.6, 0.8], [1.0, 0.0]]], np.float32), None)

    monkeypatch.setattr(backend, "encode", encode)
    [datum] = client.post("/v1/embeddings", json=ASKED).json()["data"]
    assert datum["embedding"] == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"input": ""}, 400, "input"),
        ({"input": []}, 422, "input"),
        ({"input": ["a", ""]}, 400, "input.1"),
        ({"input": ["a"] * 257}, 400, "input"),
        ({"input": [1, 2, 3]}, 422, "input.0"),
        ({"input": {"text": "a"}}, 422, "input"),
        ({"input": [{"type": "image_url", "image_url": {"url": "http://a/b"}}]}, 400, None),
        ({"dimensions": 2}, 400, "dimensions"),
        ({"num_vectors": 5}, 400, "num_vectors"),
        ({"num_vectors": 0}, 422, "num_vectors"),
        ({"encoding_format": "hex"}, 422, "encoding_format"),
        ({"input_type": "passage"}, 422, "input_type"),
        ({"truncate": True}, 422, "truncate"),
        ({"model": "text-embedding-3-small"}, 404, "model"),
    ],
)
def test_a_wrong_value_is_refused_and_named(
    client: TestClient, change: dict[str, Any], status: int, param: str | None
) -> None:
    error = error_of(client.post("/v1/embeddings", json=ASKED | change), status)
    assert error["param"] == (param or "input.0.0.image_url.url")


def test_the_width_itself_may_be_asked_for(client: TestClient) -> None:
    assert client.post("/v1/embeddings", json=ASKED | {"dimensions": 1}).status_code == 200


def test_one_input_that_cannot_be_encoded_is_named_and_load_is_503(
    client: TestClient, backend: Backend, png: Callable[..., bytes], data_uri: Callable[..., str]
) -> None:
    large = {"image": data_uri(png(200, 200))}
    error = error_of(client.post("/v1/embeddings", json=ASKED | {"input": ["a", large]}), 400)
    assert error["param"] == "input.1"
    backend.failure = OverloadedError("every queue is full")
    assert error_of(client.post("/v1/embeddings", json=ASKED), 503)["code"] == "overloaded"
