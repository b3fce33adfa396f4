"""Images that rows refer to: what may be read, from where, and what never is."""

import base64
import datetime
import http.server
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rematch_ray.data.readers.references import load_image, path_inside
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.web import fetch
from rematch_ray.errors import UserError
from tests.data.readers.corpora import errors, good, read_items, texts, write_lines

PNG = b"\x89PNG picture"


class Answers(http.server.BaseHTTPRequestHandler):
    """Pictures, redirects, errors, and answers without end."""

    asked: list[str]

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        if self.path == "/gone.png":
            self.send_error(404)
            return
        if self.path == "/slow-headers.png":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not self.stop.wait(0.1):
                try:
                    self.wfile.write(b"X-More: a\r\n")
                except OSError:
                    return
        self.send_response(200)
        self.end_headers()
        if self.path == "/a.png":
            self.wfile.write(PNG)
        while self.path == "/endless.png" or (self.path == "/slow.png" and not self.stop.wait(0.1)):
            try:
                self.wfile.write(b"x" * (1 if self.path == "/slow.png" else 1000))
            except OSError:
                return

    def log_message(self, *_: object) -> None:
        pass

    stop = threading.Event()


def certificate(folder: Path) -> tuple[str, str]:
    """A self-signed certificate for the loopback address, and its key."""
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return str(folder / "cert.pem"), str(folder / "key.pem")


@pytest.fixture
def server(tmp_path_factory, monkeypatch) -> Iterator[str]:
    """`host:port` of an https server on the loopback address, whose certificate is trusted."""
    cert, key = certificate(tmp_path_factory.mktemp("certificate"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    Answers.asked = []
    Answers.stop.clear()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("SSL_CERT_FILE", cert)
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield f"127.0.0.1:{httpd.server_address[1]}"
    Answers.stop.set()
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def get(url: str, host: str, **limits: float) -> bytes:
    return fetch(url, hosts=[host], **{"limit_bytes": 10_000, "seconds": 5.0, **limits})


def test_an_image_comes_from_an_allowed_host_and_no_other(server: str, tmp_path: Path) -> None:
    url = f"https://{server}/a.png"
    path = write_lines(tmp_path / "rows.jsonl", [{"image": url}, {"image": f"{url}?b"}])
    rows = read_items(path, url_hosts=[server])
    assert [texts(r) for r in good(rows)] == [[PNG]]
    assert rows[0]["parts"][0]["uri"] == url
    assert "is empty" in errors(rows)[0]
    asked = len(Answers.asked)
    assert (
        "allowed: images.example.org"
        in errors(read_items(path, url_hosts=["images.example.org"]))[0]
    )
    assert len(errors(read_items(path))) == 2
    assert len(Answers.asked) == asked


def test_a_redirect_leads_to_an_allowed_host_only(server: str) -> None:
    assert get(f"https://{server}/to//a.png", server) == PNG
    assert get(f"https://{server}/to/https://{server}/a.png", server) == PNG
    for target in ("https://127.0.0.2/a.png", "http://127.0.0.1/a.png", "file:///etc/hostname"):
        with pytest.raises(UserError, match=r"is not allowed|over https only"):
            get(f"https://{server}/to/{target}", server)
    with pytest.raises(UserError, match="cannot be fetched"):
        get(f"https://{server}/to//to//to//to//to//to//to//to//to//to//to//to//a.png", server)


def test_size_and_time_are_bounded(server: str) -> None:
    with pytest.raises(UserError, match="more than 10000 bytes"):
        get(f"https://{server}/endless.png", server)
    with pytest.raises(UserError, match="not here within url_seconds"):
        get(f"https://{server}/slow.png", server, seconds=0.5)
    with pytest.raises(UserError, match="not here within url_seconds"):
        get(f"https://{server}/slow-headers.png", server, seconds=0.5)


def test_what_cannot_be_fetched_is_said(server: str, monkeypatch) -> None:
    with pytest.raises(UserError, match=r"gone\.png: cannot be fetched: .*404"):
        get(f"https://{server}/gone.png", server)
    with pytest.raises(UserError, match="cannot be fetched"):
        get("https://127.0.0.1:1/a.png", "127.0.0.1:1")
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(UserError, match=r"cannot be fetched: .*certificate"):
        get(f"https://{server}/a.png", server)


@pytest.mark.parametrize(
    "url",
    [
        "http://good.example/a.png",
        "https://good.example.evil.example/a.png",
        "https://evil.example/good.example",
        "https://good.example@evil.example/a.png",
        "https://good.example:444/a.png",
        "https://[::1/a.png",
        "https:///a.png",
    ],
)
def test_an_address_that_only_looks_allowed_is_refused(url: str) -> None:
    with pytest.raises(UserError):
        fetch(url, hosts=["good.example"], limit_bytes=1, seconds=1)


@pytest.mark.parametrize("host", ["https://a.example", "*.example", "user@a.example", "", 7])
def test_a_host_is_a_name(host: object) -> None:
    with pytest.raises(ValueError, match="is not the name of a host"):
        ReaderSettings(url_hosts=[host])


def test_data_uris_are_read_in_both_spellings() -> None:
    settings = ReaderSettings()
    encoded = base64.b64encode(PNG).decode()
    spaced = f"DATA:image/png;BASE64,{encoded[:4]} \n{encoded[4:]}"
    assert load_image(f"data:image/png;base64,{encoded}", settings, "/") == PNG
    assert load_image(spaced, settings, "/") == PNG
    assert load_image("data:,%89PNG%20picture", settings, "/") == PNG
    with pytest.raises(UserError, match="no data URI"):
        load_image("data:image/png;base64", settings, "/")


def test_a_root_is_never_left(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "a.png").write_bytes(PNG)
    (tmp_path / "root-2").mkdir()
    (root / "up").symlink_to(tmp_path)
    (root / "fine").symlink_to(root / "deep")
    for name in ("deep/a.png", "./deep//a.png", "deep/../deep/a.png", "fine/a.png"):
        assert Path(path_inside(name, str(root))).read_bytes() == PNG
    assert path_inside(str(root / "deep" / "a.png"), str(root)) == str(root / "deep" / "a.png")
    for name in ("..", ".", "", "../root-2/a", "up/root-2", f"{root}-2/a", "s3://b/a"):
        with pytest.raises(UserError, match="lies outside"):
            path_inside(name, str(root))
    assert path_inside("~/a", str(root)) == f"{root}/~/a"
    for name in ("../b", "s3://other/a", "s3://bucket/images/../secret"):
        with pytest.raises(UserError, match="lies outside"):
            path_inside(name, "s3://bucket/images")
    with pytest.raises(UserError, match="no image_root"):
        path_inside("etc/hostname", "")
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(UserError, match=r"cannot be found|cannot be opened"):
        load_image("loop", ReaderSettings(), str(root))
    with pytest.raises(UserError, match=r"cannot be found|cannot be opened"):
        load_image("x" * 5000, ReaderSettings(), str(root))
