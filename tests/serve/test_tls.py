"""TLS as docs/operations.md tells to switch it on: Serve's own, before the real application."""

import json
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rematch_ray.serve.settings import ServeArgs

OPENSSL = (
    "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost "
    "-addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout tls.key -out tls.crt"
)


def documented_options(repository: Path) -> dict[str, Any]:
    """`http_options` of docs/operations.md."""
    text = (repository / "docs" / "operations.md").read_text()
    example = text.split("## TLS")[1].split("```yaml\n")[1].split("```")[0]
    return dict(yaml.safe_load(example)["http_options"])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(OPENSSL.split(), cwd=folder, check=True, capture_output=True)
    return folder / "tls.crt"


@pytest.fixture(scope="module")
def url(ray_cluster: None, pair: Any, repository: Path, certificate: Path) -> Iterator[str]:
    from ray import serve
    from ray.serve.config import HTTPOptions

    from rematch_ray.serve.app import build

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = {
        "host": "127.0.0.1",
        "port": port,
        "ssl_certfile": str(certificate),
        "ssl_keyfile": str(certificate.with_suffix(".key")),
    }
    options = documented_options(repository)
    assert options.keys() == here.keys()
    args = ServeArgs(
        index=pair.index,
        model=str(pair.export),
        api_keys_file=pair.keys,
        encoder={"num_cpus": 0.5},
        shard={"num_cpus": 0.5},
    )
    serve.start(http_options=HTTPOptions(**(options | here)))
    serve.run(build(args), name="tls", route_prefix="/")
    yield f"https://127.0.0.1:{port}"
    serve.shutdown()


def test_a_search_is_answered_over_tls_and_nothing_without(url: str, certificate: Path) -> None:
    trusting = ssl.create_default_context(cafile=str(certificate))
    headers = {"content-type": "application/json", "authorization": "Bearer secret"}
    body = json.dumps({"query": "a red square", "top_k": 1}).encode()
    request = urllib.request.Request(f"{url}/v1/search", body, headers)
    with urllib.request.urlopen(request, timeout=60, context=trusting) as answer:
        assert len(json.load(answer)["results"]) == 1
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(request, timeout=60)
    plain = urllib.request.Request(url.replace("https", "http") + "/healthz")
    with pytest.raises(OSError):
        urllib.request.urlopen(plain, timeout=60)
