"""The clients that people already have, over a real connection on loopback."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient

cohere = pytest.importorskip("cohere")
openai = pytest.importorskip("openai")

Backend = Any


@pytest.fixture
def address(connect: Callable[..., TestClient]) -> Iterator[str]:
    """Where an application with the key "secret" listens."""
    config = uvicorn.Config(
        connect("secret").app, host="127.0.0.1", port=0, log_level="error", lifespan="off"
    )
    server = uvicorn.Server(config)
    socket = config.bind_socket()
    # from here on connections wait for the server, which begins when its thread has its turn
    socket.listen()
    thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[socket]),))
    thread.start()
    yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def test_openai_embeds_texts_in_base64_as_it_does_by_default_and_as_numbers(
    address: str, backend: Backend
) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)
    answer = client.embeddings.create(model="fake", input=["an otter", "a red bar"])
    assert [datum.embedding for datum in answer.data] == [[1.0], [1.0]]
    assert [datum.index for datum in answer.data] == [0, 1]
    assert answer.usage.total_tokens == 14
    numbers = client.embeddings.create(model="fake", input="x", encoding_format="float", user="me")
    assert numbers.data[0].embedding == [1.0]
    more = client.embeddings.create(
        model="fake",
        input="x",
        extra_body={"input_type": "document", "num_vectors": 2},
        encoding_format="float",
    )
    assert more.data[0].vectors is not None
    assert backend.sides[-1] == "document"


def test_openai_raises_its_own_errors(address: str) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)
    with pytest.raises(openai.NotFoundError) as unknown:
        client.embeddings.create(model="text-embedding-3-small", input="x")
    assert unknown.value.code == "model_not_found"
    assert unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="fake", input="x", dimensions=256)
    stranger = openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.embeddings.create(model="fake", input="x")


async def test_openai_async_client(address: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="secret") as client:
        answer = await client.embeddings.create(model="fake", input="x")
    assert answer.data[0].embedding == [1.0]


def test_cohere_reranks(address: str) -> None:
    client = cohere.ClientV2(api_key="secret", base_url=address)
    answer = client.rerank(
        model="rematch-maxsim", query="east", documents=["north", "east", "between"], top_n=2
    )
    assert [result.index for result in answer.results] == [1, 2]
    assert answer.results[0].relevance_score == pytest.approx(1.0)
    assert answer.id
    assert answer.meta.api_version.version == "2"
    head = client.rerank(model="rematch-match-head", query="east", documents=["a", "b"])
    assert [result.index for result in head.results] == [1, 0]


def test_cohere_v1_client_gets_its_documents_back(address: str) -> None:
    client = cohere.Client(api_key="secret", base_url=address)
    answer = client.rerank(
        model="fake", query="east", documents=["north", {"text": "east"}], return_documents=True
    )
    assert [result.document.text for result in answer.results] == ["east", "north"]


def test_cohere_raises_its_own_errors(address: str) -> None:
    client = cohere.ClientV2(api_key="secret", base_url=address)
    with pytest.raises(cohere.NotFoundError):
        client.rerank(model="rerank-v3.5", query="x", documents=["a"])
    stranger = cohere.ClientV2(api_key="wrong", base_url=address)
    with pytest.raises(cohere.UnauthorizedError):
        stranger.rerank(model="fake", query="x", documents=["a"])
