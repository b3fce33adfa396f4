"""Documents ordered by a query: scores of both models, limits, and what is not done."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from rematch_ray.index.search import SearchIndex
from rematch_ray.model.embedder import Embedder
from rematch_ray.serve.backend import EncodedQuery
from rematch_ray.serve.rerank import maxsim_scores
from tests.serve.test_routes import error_of

Backend = Any
ASKED = {"model": "rematch-maxsim", "query": "east", "documents": ["north", "east", "between"]}


def test_documents_come_most_similar_first_with_scores_from_0_to_1(
    client: TestClient, backend: Backend
) -> None:
    body = client.post("/v2/rerank", json=ASKED).json()
    assert [result["index"] for result in body["results"]] == [1, 2, 0]
    scores = [result["relevance_score"] for result in body["results"]]
    assert scores == pytest.approx([1.0, (1 + 2**-0.5) / 2, 0.5], abs=1e-3)
    assert backend.sides == ["query", "document", "document", "document"]
    assert body["usage"] == {"prompt_tokens": 28, "total_tokens": 28}
    assert "document" not in body["results"][0]


def test_the_matching_head_gives_the_probability_of_yes(
    client: TestClient, backend: Backend
) -> None:
    backend.log_odds = [-2.0, 800.0, 0.0]
    body = client.post("/v1/rerank", json=ASKED | {"model": "rematch-match-head"}).json()
    scores = {result["index"]: result["relevance_score"] for result in body["results"]}
    assert scores == pytest.approx({1: 1.0, 2: 0.5, 0: 1 / (1 + math.exp(2))})
    assert body["model"] == "rematch-match-head"


def test_the_served_models_name_stands_for_maxsim_and_others_are_unknown(
    client: TestClient,
) -> None:
    mine = client.post("/v1/rerank", json=ASKED | {"model": "fake"}).json()["results"]
    assert mine == client.post("/v1/rerank", json=ASKED).json()["results"]
    error = error_of(client.post("/v1/rerank", json=ASKED | {"model": "rerank-v3.5"}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "rematch-match-head" in error["message"]


def test_results_are_cut_and_repeat_their_documents_when_asked(
    client: TestClient, png: Callable[..., bytes], data_uri: Callable[..., str]
) -> None:
    image = data_uri(png())
    documents = ["north", {"text": "east"}, {"image": image}]
    asked = ASKED | {"documents": documents, "top_n": 3, "return_documents": True}
    results = client.post("/v1/rerank", json=asked).json()["results"]
    assert [result["document"] for result in results] == [
        {"text": "east"},
        {"image": image},
        {"text": "north"},
    ]
    assert len(client.post("/v1/rerank", json=asked | {"top_n": 1}).json()["results"]) == 1


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"documents": []}, 422, "documents"),
        ({"documents": ["x"] * 101}, 400, "documents"),
        ({"documents": ["x", " "]}, 400, "documents.1"),
        ({"documents": ["x", {"image": "data:image/png;base64,@@"}]}, 400, "documents.1.image"),
        ({"documents": ["x", {"text": "a", "title": "b"}]}, 422, "documents.1.title"),
        ({"documents": ["x", {"image": "aGVsbG8="}]}, 400, "documents.1"),
        ({"query": ""}, 400, "query"),
        ({"top_n": 0}, 422, "top_n"),
        ({"rank_fields": ["a"]}, 422, "rank_fields"),
    ],
)
def test_a_wrong_value_is_refused_and_named(
    client: TestClient, change: dict[str, Any], status: int, param: str
) -> None:
    assert error_of(client.post("/v1/rerank", json=ASKED | change), status)["param"] == param


def test_a_token_limit_is_taken_where_nothing_would_be_cut_and_else_refused(
    client: TestClient,
) -> None:
    assert client.post("/v1/rerank", json=ASKED | {"max_tokens_per_doc": 7}).status_code == 200
    error = error_of(client.post("/v1/rerank", json=ASKED | {"max_tokens_per_doc": 6}), 400)
    assert error["param"] == "max_tokens_per_doc"
    assert "cut" in error["message"]


def test_scores_are_those_that_a_search_of_the_same_documents_gives(pair: Any) -> None:
    model = Embedder.from_pretrained(pair.export, device="cpu")
    index = SearchIndex.open(pair.index)
    found = model.encode_query(["a red square"])
    query = EncodedQuery(found.vectors.numpy(), None)
    [result] = index.search(found, budget="full", candidates="all", top_k=6)
    images = [(pair.media / f"{hit.id}.png").read_bytes() for hit in result.hits]
    encoded = model.encode_document(images, batch_size=6).vectors.numpy()
    scores = maxsim_scores(query, [EncodedQuery(row[None], None) for row in encoded])
    expected = np.array([hit.score for hit in result.hits])
    # the model rounds differently in another batch; the scorer itself adds nothing to that
    assert np.abs(scores - expected).max() < 2e-3
