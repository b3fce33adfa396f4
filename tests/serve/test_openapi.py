"""The OpenAPI keeps its word: what is generated from it finds no failure of the server and no
answer that it does not document, and its examples are answered."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, seed, settings

from rematch_ray.serve.api_key import SCOPES, ApiKey
from rematch_ray.serve.keys import KeyRing
from rematch_ray.serve.media import MediaRoots
from rematch_ray.serve.routes import make_api
from rematch_ray.serve.sets import check_pair
from rematch_ray.serve.settings import Limits
from rematch_ray.serve.swap import SwapBusyError
from tests.serve.conftest import FakeBackend

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

PLAIN = [
    "GET /healthz",
    "GET /livez",
    "GET /readyz",
    "GET /metrics",
    "GET /v1/info",
    "GET /v1/admin/swap",
]
BY_ID = ["GET /v1/documents/{document_id}", "GET /v1/documents/{document_id}/image"]
WITH_BODY = [
    "POST /v1/search",
    "POST /v1/embeddings",
    "POST /v1/rerank",
    "POST /v2/rerank",
    "POST /v1/documents",
    "DELETE /v1/documents",
]
SWAP = "POST /v1/admin/swap"
INDEX = "/srv/next"
EXAMPLES = 20
WITH_KEY = {"authorization": "Bearer secret"}


class FakeSets:
    """Looks for index and model as the manager of the sets does; then a change is under way."""

    async def swap(self, index: str, model: str | None) -> dict[str, Any]:
        if index != INDEX:
            check_pair(Path(index), model, "next")
        if model is not None:
            raise SwapBusyError("a change is under way")
        return {"phase": "warming"}

    async def status(self) -> dict[str, Any]:
        return {"phase": "serving", "last": None}


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("media")
    key = ApiKey(name="me", sha256=sha256(b"secret").hexdigest(), scopes=frozenset(SCOPES))
    api = make_api(
        FakeBackend(folder),
        keys=KeyRing([key]),
        limits=Limits(),
        media=MediaRoots([folder]),
        sets=FakeSets(),
    )
    schema = schemathesis.openapi.from_asgi("/openapi.json", api)
    found = [result.ok() for result in schema.get_all_operations()]
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


def test_every_operation_is_tried_here(operations: dict[str, Any]) -> None:
    assert sorted(operations) == sorted([*PLAIN, *BY_ID, *WITH_BODY, SWAP])


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, "positive") for name in [*PLAIN, *BY_ID, *WITH_BODY, SWAP]]
    + [(name, "negative") for name in [*WITH_BODY, SWAP]],
)
def test_generated_requests_have_the_answers_that_are_documented(
    operations: dict[str, Any], name: str, mode: str
) -> None:
    """No 5xx; status, content type and body as documented; what breaks the schema is refused."""
    strategy = operations[name].as_strategy(generation_mode=schemathesis.GenerationMode(mode))
    # what fits depends on what is served: budgets, widths, names of models
    # the check of keys tries one scheme at a time, and takes the other for none: see test_routes
    left_out = [checks.positive_data_acceptance, checks.ignored_auth]

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
        case.call_and_validate(excluded_checks=left_out + more, headers=WITH_KEY)

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


def test_a_swap_documents_every_way_to_fail(operations: dict[str, Any]) -> None:
    answers = operations[SWAP].definition.raw["responses"]
    assert set(answers) == {"202", "400", "401", "403", "409", "413", "422", "500", "503"}


@pytest.mark.parametrize("path", ["\0", "/srv/\0", "\ud800", "x" * 5000, "/nowhere"])
def test_a_swap_to_what_no_path_can_be_is_refused(operations: dict[str, Any], path: str) -> None:
    client = TestClient(operations[SWAP].schema.app, headers=WITH_KEY)
    for body in ({"index": path}, {"index": str(INDEX), "model": path}):
        answer = client.post(
            "/v1/admin/swap",
            content=json.dumps(body),
            headers={"content-type": "application/json"},
        )
        assert answer.status_code in (400, 409, 422), answer.text


def test_all_that_takes_a_key_says_so_and_nothing_else_does(operations: dict[str, Any]) -> None:
    described = TestClient(operations[SWAP].schema.app).get("/openapi.json").json()
    schemes = described["components"]["securitySchemes"]
    assert (schemes["bearer"]["type"], schemes["bearer"]["scheme"]) == ("http", "bearer")
    assert (schemes["header"]["type"], schemes["header"]["name"]) == ("apiKey", "x-api-key")
    for path, verbs in described["paths"].items():
        for verb, operation in verbs.items():
            takes_key = "401" in operation["responses"]
            assert ("security" in operation) == takes_key, (verb, path)
            assert takes_key == (path not in {"/healthz", "/livez", "/readyz"})
            if takes_key:
                assert operation["security"] == [{"bearer": []}, {"header": []}]


def test_a_service_that_takes_no_key_does_not_ask_for_one(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert "securitySchemes" not in described["components"]
    assert "security" not in described["paths"]["/v1/search"]["post"]


def test_there_is_one_shape_of_failures(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in described["components"]["schemas"]
    for path, verbs in described["paths"].items():
        for verb, operation in verbs.items():
            for status, answer in operation["responses"].items():
                if not status.startswith("2"):
                    [content] = answer["content"].values()
                    assert content["schema"]["$ref"].endswith("ErrorBody"), (verb, path, status)
