"""Without keys a service answers this machine, and no page of another site."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.serve.test_routes import error_of

Backend = Any
SEARCH = {"query": "x"}
EVIL = ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example",
        "0.0.0.0", "192.168.0.7:8000", "localhost:80@evil.example", "localhost, evil.example",
        "[::1].evil.example", "[fe80::1]", ""]  # fmt: skip
OURS = ["localhost", "localhost:8000", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8000", "127.8.0.1",
        "[::1]", "[::1]:8000"]  # fmt: skip


@pytest.mark.parametrize("host", EVIL)
def test_another_name_than_this_machine_s_is_refused(
    client: TestClient, backend: Backend, host: str
) -> None:
    sent = {"host": host}
    for method, path in (
        ("GET", "/v1/info"),
        ("GET", "/v1/documents/doc/0"),
        ("GET", "/metrics"),
        ("POST", "/v1/search"),
        ("DELETE", "/v1/documents"),
        ("GET", "/v1/nothing"),
    ):
        answer = client.request(method, path, headers=sent)
        error = error_of(answer, 403)
        assert (error["code"], error["type"]) == ("foreign_host", "permission_error")
        assert "--api-keys-file" in error["message"]
    assert backend.plans == backend.charged == backend.callers == []


@pytest.mark.parametrize("host", OURS)
def test_every_name_of_this_machine_is_answered(client: TestClient, host: str) -> None:
    assert client.get("/v1/info", headers={"host": host}).status_code == 200
    sent = {"host": host, "origin": f"http://{host}"}
    assert client.post("/v1/search", json=SEARCH, headers=sent).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://localhost.evil.example:8000", "null", "file://", ""]
)
def test_a_page_of_another_site_may_not_write(
    client: TestClient, backend: Backend, origin: str
) -> None:
    sent = {"origin": origin}
    for method, path in (("POST", "/v1/search"), ("POST", "/v1/documents")):
        answer = client.request(method, path, json=SEARCH, headers=sent)
        assert error_of(answer, 403)["code"] == "foreign_origin"
    answer = client.request("DELETE", "/v1/documents", json={"ids": ["doc/1"]}, headers=sent)
    assert error_of(answer, 403)["code"] == "foreign_origin"
    assert backend.plans == backend.callers == []
    # browsers keep the answer from that page
    assert client.get("/v1/info", headers=sent).status_code == 200


def test_a_page_of_this_machine_at_another_port_may(client: TestClient) -> None:
    sent = {"origin": "http://localhost:3000"}
    assert client.post("/v1/search", json=SEARCH, headers=sent).status_code == 200


def test_health_and_pages_are_answered_under_any_name(client: TestClient) -> None:
    for path in ("/healthz", "/readyz", "/", "/docs", "/assets/search.js"):
        assert client.get(path, headers={"host": "10.0.0.7"}).status_code == 200


def test_where_keys_are_asked_for_every_name_is_answered(
    connect: Callable[..., TestClient],
) -> None:
    client = connect("secret")
    sent = {"host": "search.example", "origin": "https://shop.example", "x-api-key": "secret"}
    assert client.post("/v1/search", json=SEARCH, headers=sent).status_code == 200
    assert client.get("/v1/info", headers=sent).status_code == 200
