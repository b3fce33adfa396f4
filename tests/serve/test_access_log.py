"""The access log: a line of JSON per request, and nothing of what was searched for."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from rematch_ray.errors import UserError
from rematch_ray.index.search import SearchResult
from rematch_ray.serve.access_log import AccessLog
from rematch_ray.serve.backend import Answer, SearchPlan
from rematch_ray.serve.observation import (
    Facts,
    FailedSearch,
    Observed,
    RequestRecord,
    Searched,
    facts_of,
)
from rematch_ray.serve.settings import AccessLogSettings

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def answering(log: AccessLog) -> TestClient:
    """An application whose one route notes what a search route would."""
    api = FastAPI()
    records: list[RequestRecord] = []
    api.add_middleware(Observed, record=(records.append, log))

    @api.get("/v1/things/{thing}")
    async def thing(request: Request) -> dict[str, str]:
        facts = facts_of(request.scope)
        facts.caller, facts.query, facts.encode_s = "shop", "my secret wish", 0.002
        result = SearchResult([], "2x4", 50, [], 50, 900, "float", False, "generation-000003")
        found = Answer(result, degraded=("load",), dot_products=640, queue_ms=1, search_ms=9)
        facts.searches.append(Searched.of(SearchPlan(), found))
        return {"id": request.state.request_id}

    return TestClient(api)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def lines(folder: Path) -> list[dict[str, Any]]:
    [file] = folder.iterdir()
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_request_is_one_line_without_its_query(folder: Path) -> None:
    log = AccessLog(AccessLogSettings(directory=folder), lambda: NOON)
    answer = answering(log).get("/v1/things/ruby?q=wish", headers={"x-request-id": "abc"})
    assert answer.json() == {"id": "abc"}
    [line] = lines(folder)
    assert line.pop("ms") > 0
    assert line == {
        "time": "2026-01-02T12:00:00.000+00:00",
        "request_id": "abc",
        "caller": "shop",
        "method": "GET",
        "route": "/v1/things/{thing}",
        "status": 200,
        "encode_ms": 2.0,
        "budget": "2x4",
        "reason": "load",
        "candidates": 50,
        "dot_products": 640,
        "queue_ms": 1.0,
        "search_ms": 9.0,
        "degraded": ["load"],
        "generation": "generation-000003",
    }


def test_searches_of_a_batch_that_failed_are_told_by_code(folder: Path) -> None:
    codes = ["overloaded", "deadline_exceeded", "overloaded"]
    facts = Facts(failed=[FailedSearch(503, code) for code in codes])
    AccessLog(AccessLogSettings(directory=folder))(
        RequestRecord("/v1/search", 200, 1.0, "a", "POST", facts)
    )
    [line] = lines(folder)
    assert line["failed"] == {"overloaded": 2, "deadline_exceeded": 1}
    assert "code" not in line


def test_queries_are_written_only_where_that_is_asked_for(folder: Path) -> None:
    log = AccessLog(AccessLogSettings(directory=folder, queries=True))
    answering(log).get("/v1/things/ruby")
    assert lines(folder)[0]["query"] == "my secret wish"


def test_standard_output_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    answering(AccessLog(AccessLogSettings())).get("/no/such/path")
    line = json.loads(capsys.readouterr().out)
    assert (line["status"], line["route"]) == (404, "unknown")


def test_switched_off_it_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    answering(AccessLog(AccessLogSettings(enabled=False))).get("/v1/things/1")
    assert capsys.readouterr().out == ""


def test_files_stay_within_their_size_and_number(folder: Path) -> None:
    log = AccessLog(AccessLogSettings(directory=folder, max_bytes=1024, num_files=2))
    client = answering(log)
    for _ in range(20):
        client.get("/v1/things/1")
    log.close()
    sizes = [file.stat().st_size for file in folder.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= 1024


def test_a_directory_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"access_log\.directory .* cannot be written to"):
        AccessLog(AccessLogSettings(directory=tmp_path / "file" / "logs"))


def test_requests_do_not_share_their_facts(folder: Path) -> None:
    client = answering(AccessLog(AccessLogSettings(directory=folder)))
    with client:  # with a lifespan, whose state every request is given
        client.app_state["facts"] = facts_of({})
        client.get("/v1/things/1")
        client.get("/nothing")
    assert "caller" not in lines(folder)[1]
