"""The OpenAPI keeps its word: what is generated from it finds no failure of the server and no
answer that it does not document, and its examples are answered."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, seed, settings

from rematch_ray.serve.keys import KeyRing
from rematch_ray.serve.media import MediaRoots
from rematch_ray.serve.routes import make_api
from rematch_ray.serve.settings import Limits
from tests.serve.conftest import FakeBackend

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

PLAIN = ["GET /healthz", "GET /livez", "GET /readyz", "GET /metrics", "GET /v1/info"]
BY_ID = ["GET /v1/documents/{document_id}", "GET /v1/documents/{document_id}/image"]
WITH_BODY = [
    "POST /v1/search",
    "POST /v1/embeddings",
    "POST /v1/rerank",
    "POST /v2/rerank",
    "POST /v1/documents",
    "DELETE /v1/documents",
]
EXAMPLES = 20


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("media")
    api = make_api(
        FakeBackend(folder),
        keys=KeyRing([], allow_anonymous=True),
        limits=Limits(),
        media=MediaRoots([folder]),
    )
    schema = schemathesis.openapi.from_asgi("/openapi.json", api)
    found = [result.ok() for result in schema.get_all_operations()]
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


def test_every_operation_is_tried_here(operations: dict[str, Any]) -> None:
    assert sorted(operations) == sorted(PLAIN + BY_ID + WITH_BODY)


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, "positive") for name in PLAIN + BY_ID + WITH_BODY]
    + [(name, "negative") for name in WITH_BODY],
)
def test_generated_requests_have_the_answers_that_are_documented(
    operations: dict[str, Any], name: str, mode: str
) -> None:
    """No 5xx; status, content type and body as documented; what breaks the schema is refused."""
    strategy = operations[name].as_strategy(generation_mode=schemathesis.GenerationMode(mode))
    # what fits depends on what is served: budgets, widths, names of models
    left_out = [checks.positive_data_acceptance]

    @seed(0)
    @settings(
        max_examples=1 if name in PLAIN else EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=strategy)
    def try_it(case: Any) -> None:
        # each of several searches is refused in its own place
        several = isinstance(case.body, dict) and "searches" in case.body
        more = [checks.negative_data_rejection] if several else []
        case.call_and_validate(excluded_checks=left_out + more)

    try_it()


@pytest.mark.parametrize("name", WITH_BODY)
def test_every_documented_example_is_answered(
    client: TestClient, operations: dict[str, Any], name: str, media: Path
) -> None:
    method, path = name.split()
    body = client.get("/openapi.json").json()["paths"][path][method.lower()]["requestBody"]
    examples = body["content"]["application/json"]["examples"]
    for title, example in examples.items():
        answer = client.request(method, path, json=example["value"])
        assert answer.status_code == 200, (title, answer.text)


@pytest.mark.parametrize("name", WITH_BODY)
def test_every_way_to_fail_is_documented_in_the_one_shape(client: TestClient, name: str) -> None:
    method, path = name.split()
    answers = client.get("/openapi.json").json()["paths"][path][method.lower()]["responses"]
    for status in ("400", "401", "403", "413", "422", "429", "500", "503", "504"):
        schema = answers[status]["content"]["application/json"]["schema"]
        assert schema["$ref"].endswith("ErrorBody"), status
        assert answers[status]["description"]
