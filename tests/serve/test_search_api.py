"""Everything a search may ask beside a text and a budget, and what its answer tells."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rematch_ray.errors import UserError
from rematch_ray.serve.api.answers import SearchBatchResponse, SearchResponse
from rematch_ray.serve.backend import DeadlineError, OverloadedError, Rerank
from rematch_ray.serve.observation import RequestRecord
from tests.serve.test_routes import error_of

Backend = Any
UNIT = [[1.0, 0.0]] * 4


def search(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/search", json={"query": "x"} | body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_an_answer_says_what_it_used_and_what_it_cost(client: TestClient, backend: Backend) -> None:
    backend.degraded = ("load",)
    body = search(client, rerank=True)
    SearchResponse.model_validate(body)
    assert body["degraded"] == {"is_degraded": True, "reasons": ["load"]}
    assert body["expected_recall"] == 1.0
    assert body["plan"] == {"chosen_by": "request"}
    assert body["usage"] == {"dot_products": 160, "tokens": 7}
    timing = body["timing"]
    assert (timing["queue_ms"], timing["search_ms"], timing["rerank_ms"]) == (0.25, 0.5, 1.5)
    assert timing["total_ms"] >= timing["encode_ms"] >= 0


def test_the_request_id_is_in_the_answer_as_in_its_header(client: TestClient) -> None:
    sent = {"x-request-id": "abc-1"}
    one = client.post("/v1/search", json={"query": "x"}, headers=sent)
    assert one.json()["request_id"] == one.headers["x-request-id"] == "abc-1"
    several = client.post("/v1/search", json={"searches": [{"query": "x"}]})
    assert several.json()["request_id"] == several.headers["x-request-id"]


def test_a_body_that_comes_slowly_counts_towards_the_total_and_the_deadline(
    client: TestClient, backend: Backend
) -> None:
    def slowly() -> Iterator[bytes]:
        yield b'{"query": "x", '
        time.sleep(0.3)
        yield b'"deadline_ms": 5000}'

    started = time.monotonic()
    answer = client.post(
        "/v1/search", content=slowly(), headers={"content-type": "application/json"}
    )
    assert answer.json()["timing"]["total_ms"] >= 300
    assert backend.plans[0].deadline < started + 5.2


def test_auto_stays_auto_so_that_the_service_may_lower_it(
    client: TestClient, backend: Backend
) -> None:
    for budget in (None, "auto"):
        search(client, budget=budget)
    assert [plan.budget for plan in backend.plans] == ["auto", "auto"]
    assert all(plan.is_auto for plan in backend.plans)


def test_the_whole_plan_reaches_the_index(client: TestClient, backend: Backend) -> None:
    search(client, offset=2, min_score=-0.5, coarse="first", candidates=50, with_explain=True)
    search(client, target_recall=0.95)
    first, second = backend.plans
    assert (first.offset, first.min_score, first.coarse) == (2, -0.5, "first")
    assert (first.candidates, first.with_explain) == (50, True)
    assert second.target_recall == 0.95
    assert not second.is_auto


def test_hits_come_with_what_was_asked_for(client: TestClient) -> None:
    [hit] = search(client, top_k=1)["results"]
    assert hit["payload"]["name"] == "shape 0"
    assert (hit["parts"], hit["explain"]) == (None, None)
    [hit] = search(client, top_k=1, with_payload=False, with_explain=True, hybrid=True)["results"]
    assert hit["payload"] is None
    assert hit["explain"] == [[0.1] * 8] * 4
    assert hit["parts"] == {"vector": 0.5, "lexical": 2.0}


def test_pages_follow_one_another(client: TestClient) -> None:
    pages = [search(client, top_k=2, offset=offset)["results"] for offset in (0, 2, 4)]
    assert [hit["id"] for page in pages for hit in page] == [f"doc/{n}" for n in range(5)]


@pytest.mark.parametrize(
    ("asked", "text", "fusion", "weight"),
    [
        ({"hybrid": True}, "x", None, 0.5),
        ({"hybrid": {"text": "words"}}, "words", None, 0.5),
        ({"hybrid": {"fusion": "weighted", "lexical_weight": 0.2}}, "x", "weighted", 0.2),
        ({"hybrid": {"text": "w"}, "query": None, "vectors": UNIT}, "w", None, 0.5),
        ({"hybrid": {"text": "w"}, "query": None, "like": "doc/1"}, "w", None, 0.5),
        ({"hybrid": False}, None, None, 0.5),
    ],
)
def test_hybrid_searches_the_words_of_the_query_unless_others_are_given(
    client: TestClient,
    backend: Backend,
    asked: dict[str, Any],
    text: str | None,
    fusion: str | None,
    weight: float,
) -> None:
    search(client, **asked)
    [plan] = backend.plans
    assert (plan.text, plan.fusion, plan.lexical_weight) == (text, fusion, weight)


@pytest.mark.parametrize(
    ("asked", "rerank", "allowed"),
    [
        ({}, None, True),
        ({"rerank": False}, None, False),
        ({"rerank": True}, Rerank(100), True),
        ({"rerank": {"top_n": 20}}, Rerank(20), True),
        ({"rerank": {"raw": True}}, Rerank(10, raw=True), True),
        ({"rerank": {"raw": True, "top_n": 3}}, Rerank(3, raw=True), True),
    ],
)
def test_the_matching_head_is_left_open_forced_or_switched_off(
    client: TestClient,
    backend: Backend,
    asked: dict[str, Any],
    rerank: Rerank | None,
    allowed: bool,
) -> None:
    search(client, **asked)
    [plan] = backend.plans
    assert (plan.rerank, plan.with_rerank) == (rerank, allowed)
    # the query travels only where the head reads it
    assert (plan.item is not None) == (rerank is not None and rerank.raw)


def test_a_search_like_a_document_leaves_that_document_out(
    client: TestClient, backend: Backend
) -> None:
    body = search(client, query=None, like="doc/1")
    assert "doc/1" not in [hit["id"] for hit in body["results"]]
    assert backend.plans[0].exclude == "doc/1"
    assert body["instruction"] is None
    assert backend.items == []
    error = error_of(client.post("/v1/search", json={"like": "none"}), 404)
    assert (error["code"], error["param"]) == ("unknown_document", "like")


def test_the_deadline_counts_from_the_arrival(client: TestClient, backend: Backend) -> None:
    before = time.monotonic()
    search(client, deadline_ms=5000)
    after = time.monotonic()
    assert before + 5 <= backend.plans[0].deadline <= after + 5
    search(client)
    assert backend.plans[1].deadline is None


def test_a_deadline_that_passes_while_encoding_is_504(client: TestClient, backend: Backend) -> None:
    backend.encode_s = 5.0
    started = time.monotonic()
    answer = client.post("/v1/search", json={"query": "x", "deadline_ms": 50})
    error = error_of(answer, 504)
    assert (error["code"], error["param"]) == ("deadline_exceeded", "deadline_ms")
    assert time.monotonic() - started < 4
    assert backend.plans == []


def test_what_is_refused_is_not_encoded_first(client: TestClient, backend: Backend) -> None:
    backend.refusal = OverloadedError("used", retry_after_s=9, code="quota_exceeded")
    one = {"query": "x"}
    assert error_of(client.post("/v1/search", json=one), 429)["code"] == "quota_exceeded"
    several = client.post("/v1/search", json={"searches": [one, one]})
    codes = [answer["error"]["code"] for answer in several.json()["answers"]]
    assert codes == ["quota_exceeded"] * 2
    assert (backend.items, backend.plans) == ([], [])


@pytest.mark.parametrize(
    ("failure", "status", "code", "retry_after"),
    [
        (OverloadedError("full", retry_after_s=2.2), 503, "overloaded", "3"),
        (OverloadedError("later", retry_after_s=0, code="budget_unavailable"), 429, None, "1"),
        (OverloadedError("used", retry_after_s=9, code="quota_exceeded"), 429, None, "9"),
        (DeadlineError("the deadline has passed"), 504, "deadline_exceeded", None),
    ],
)
def test_what_a_backend_refuses_has_its_status_and_says_when_to_come_back(
    client: TestClient,
    backend: Backend,
    failure: Exception,
    status: int,
    code: str | None,
    retry_after: str | None,
) -> None:
    backend.failure = failure
    answer = client.post("/v1/search", json={"vectors": UNIT})
    assert error_of(answer, status)["code"] == (code or getattr(failure, "code", None))
    assert answer.headers.get("retry-after") == retry_after


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"query": "x", "like": "doc/1"}, 422, None),
        ({"like": "doc/1", "instruction": "find"}, 422, None),
        ({"query": "x", "budget": "4x8", "target_recall": 0.9}, 422, None),
        ({"query": "x", "candidates": "all", "target_recall": 0.9}, 422, None),
        ({"query": "x", "target_recall": 1.5}, 422, "target_recall"),
        ({"query": "x", "deadline_ms": 0}, 422, "deadline_ms"),
        ({"query": "x", "offset": -1}, 422, "offset"),
        ({"query": "x", "offset": 1001}, 400, "offset"),
        ({"query": "x", "offset": 10, "top_k": 10, "candidates": 15}, 400, "candidates"),
        ({"query": "x", "top_k": "10"}, 422, "top_k"),
        ({"query": "x", "with_explain": 1}, 422, "with_explain"),
        ({"query": "x", "candidates": "some"}, 422, "candidates"),
        ({"query": "x", "hybrid": {"fusion": "sum"}}, 422, "hybrid.fusion"),
        ({"query": "x", "hybrid": {"weight": 1}}, 422, "hybrid.weight"),
        ({"query": "x", "hybrid": "yes"}, 422, "hybrid"),
        ({"query": "x", "rerank": {"top_n": 0}}, 422, "rerank.top_n"),
        ({"query": "x", "rerank": {"top_n": 101}}, 400, "rerank.top_n"),
        ({"vectors": UNIT, "rerank": {"raw": True}}, 400, "rerank.raw"),
        ({"like": "doc/1", "rerank": {"raw": True}}, 400, "rerank.raw"),
        ({"query": 7}, 422, "query"),
        ({"query": {"txt": "a"}}, 422, "query.txt"),
        ({"query": [{"type": "video", "url": "x"}]}, 422, "query.0"),
        ({"query": [{"type": "text", "text": 1}]}, 422, "query.0.text"),
        ({"query": "x", "filter": {"a": 2**70}}, 422, "filter"),
        ({"vectors": UNIT, "hybrid": True}, 400, "hybrid"),
        ({"vectors": UNIT, "budget": "fused"}, 400, "fused"),
    ],
)
def test_what_cannot_be_is_refused_and_the_field_named(
    client: TestClient, backend: Backend, body: dict[str, Any], status: int, param: str | None
) -> None:
    assert error_of(client.post("/v1/search", json=body), status)["param"] == param
    assert backend.plans == []


def test_several_searches_each_have_their_answer_or_their_error_in_place(
    client: TestClient, backend: Backend
) -> None:
    searches = [
        {"query": "a", "top_k": 1},
        {"query": "b", "budget": "9x9"},
        {"query": "c", "topk": 1},
        {"like": "none"},
        "not a search",
        {"vectors": UNIT, "top_k": 2},
    ]
    answer = client.post("/v1/search", json={"searches": searches})
    assert answer.status_code == 200, answer.text
    SearchBatchResponse.model_validate(answer.json())
    answers = answer.json()["answers"]
    codes = [one["error"]["code"] if "error" in one else len(one["results"]) for one in answers]
    assert codes == [
        1,
        "unknown_budget",
        "unknown_field",
        "unknown_document",
        "invalid_field",
        2,
    ]
    assert answers[2]["error"]["param"] == "topk"
    assert len(backend.plans) == 2


def test_one_search_that_breaks_leaves_the_others_their_answers(
    client: TestClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = backend.search

    async def breaks(query: Any, plan: Any, caller: Any) -> Any:
        if plan.top_k == 2:
            raise RuntimeError("secret path /etc/shadow")
        if plan.top_k == 3:
            raise UserError("no field 'colour' in this index")
        return await answered(query, plan, caller)

    monkeypatch.setattr(backend, "search", breaks)
    searches = [{"query": "x", "top_k": top_k} for top_k in (1, 2, 3)]
    answers = client.post("/v1/search", json={"searches": searches}).json()["answers"]
    assert len(answers[0]["results"]) == 1
    assert answers[1]["error"]["code"] == "internal_error"
    assert "secret" not in str(answers)
    assert answers[2]["error"]["code"] == "invalid_value"


def test_what_fails_in_a_batch_is_noted_once_and_what_fails_alone_is_not(
    client: TestClient,
    backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
    records: list[RequestRecord],
) -> None:
    failures = {
        1: OverloadedError("full"),
        2: OverloadedError("used", code="quota_exceeded"),
        3: DeadlineError("late"),
        4: RuntimeError("broken"),
    }
    answered = backend.search

    async def fails(query: Any, plan: Any, caller: Any) -> Any:
        if plan.top_k in failures:
            raise failures[plan.top_k]
        return await answered(query, plan, caller)

    monkeypatch.setattr(backend, "search", fails)
    searches = [{"query": "x", "top_k": top_k} for top_k in (*failures, 5)]
    assert client.post("/v1/search", json={"searches": [*searches, {}]}).status_code == 200
    [batch] = records
    assert [(one.status, one.code) for one in batch.facts.failed] == [
        (503, "overloaded"),
        (429, "quota_exceeded"),
        (504, "deadline_exceeded"),
        (500, "internal_error"),
        (422, "invalid_field"),
    ]
    assert (batch.facts.code, len(batch.facts.searches)) == ("", 1)
    error_of(client.post("/v1/search", json=searches[0]), 503)
    assert (records[1].facts.code, records[1].facts.failed) == ("overloaded", [])


def test_too_many_searches_and_other_fields_beside_them_are_refused(
    connect: Callable[..., TestClient],
) -> None:
    client = connect(max_searches=2)
    one = {"query": "x"}
    assert error_of(client.post("/v1/search", json={"searches": [one] * 3}), 400)["param"] == (
        "searches"
    )
    assert error_of(client.post("/v1/search", json={"searches": []}), 422)["param"] == "searches"
    mixed = client.post("/v1/search", json={"searches": [one], "query": "x"})
    assert error_of(mixed, 422)["code"] == "unknown_field"


def test_the_caller_of_a_key_reaches_the_backend(
    connect: Callable[..., TestClient], backend: Backend
) -> None:
    client = connect("secret")
    client.post("/v1/search", json={"query": "x"}, headers={"x-api-key": "secret"})
    assert [caller.name for caller in backend.callers] == ["key0"]
