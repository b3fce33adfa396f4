"""The key ring: scopes, rotation without a restart, and what a broken file does."""

import hashlib
import hmac
import os
from pathlib import Path
from typing import Any

import pytest

from rematch_ray.errors import UserError
from rematch_ray.serve.api_key import ApiKey, read_key_file
from rematch_ray.serve.failures import RequestError
from rematch_ray.serve.keys import KeyRing, require
from rematch_ray.serve.quotas import Limit, Quota
from rematch_ray.serve.settings import QuotaSettings, ServeArgs
from tests.serve.simulation import Clock


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def key(name: str, secret: str, **fields: Any) -> ApiKey:
    return ApiKey(name=name, sha256=digest(secret), **fields)


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def refused(ring: KeyRing, headers: dict[str, str]) -> str:
    with pytest.raises(RequestError) as failure:
        ring.admit(headers)
    assert failure.value.status == 401
    return failure.value.code


def test_a_key_gives_its_name_and_scopes() -> None:
    ring = KeyRing([key("shop", "s3cret"), key("loader", "w", scopes={"read", "write"})])
    assert ring.admit(bearer("s3cret")).scopes == {"read"}
    assert ring.admit({"x-api-key": "w"}).name == "loader"
    assert ring.admit({"api-key": "w"}).scopes == {"read", "write"}
    assert refused(ring, bearer("S3cret")) == "invalid_api_key"
    assert refused(ring, {"authorization": "Basic s3cret"}) == "missing_api_key"


def test_two_keys_of_one_name_are_both_good() -> None:
    ring = KeyRing([key("shop", "old"), key("shop", "new")])
    assert {ring.admit(bearer(secret)).name for secret in ("old", "new")} == {"shop"}


def test_every_digest_is_compared_whatever_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(mine: bytes, sent: bytes) -> bool:
        compared.append(mine)
        return mine == sent

    monkeypatch.setattr(hmac, "compare_digest", compare)
    ring = KeyRing([key(f"k{n}", f"secret{n}") for n in range(5)])
    for secret in ("secret0", "secret4", "wrong"):
        compared.clear()
        try:
            ring.admit(bearer(secret))
        except RequestError:
            assert secret == "wrong"
        assert len(compared) == 5


def test_a_missing_scope_is_named() -> None:
    ring = KeyRing([key("shop", "s")])
    caller = ring.admit(bearer("s"))
    require(caller, "read")
    with pytest.raises(RequestError, match=r"'write'; the key of 'shop' has: read") as failure:
        require(caller, "write")
    assert (failure.value.status, failure.value.code) == (403, "missing_scope")


def test_without_keys_everyone_may_do_everything_where_that_is_allowed() -> None:
    ring = KeyRing([], allow_anonymous=True)
    assert ring.is_open
    require(ring.admit({}), "admin")
    with pytest.raises(UserError, match="without API keys"):
        KeyRing([])


def test_keys_are_asked_for_where_there_are_some_whatever_is_allowed() -> None:
    ring = KeyRing([key("shop", "s")], allow_anonymous=True)
    assert not ring.is_open
    assert refused(ring, {}) == "missing_api_key"


@pytest.mark.parametrize("text", ["", "\n", "# nobody yet\n"])
@pytest.mark.parametrize("allow_anonymous", [False, True])
def test_a_replica_that_finds_an_emptied_file_does_not_start(
    file: Path, text: str, allow_anonymous: bool
) -> None:
    args = ServeArgs(index=Path("i"), api_keys_file=file, allow_anonymous=allow_anonymous)
    assert args.read_keys()
    replaced(file, text)
    for start in (args.read_keys, lambda: KeyRing.of(args)):
        with pytest.raises(UserError, match=r"keys holds no key.*add a line 'NAME SHA256"):
            start()
    with_one = args.model_copy(update={"api_keys": (key("me", "mine"),)})
    assert refused(KeyRing.of(with_one), {}) == "missing_api_key"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# holders\n\nshop {digest('old')}\n")
    return path


def replaced(file: Path, text: str) -> None:
    """As secrets are replaced in a cluster: another file, by rename."""
    other = file.with_suffix(".new")
    other.write_text(text)
    os.replace(other, file)


def test_a_key_is_rotated_without_a_restart(file: Path) -> None:
    clock = Clock()
    ring = KeyRing([], file=file, clock=clock)
    replaced(file, f"shop {digest('old')}\nshop {digest('new')}\n")
    assert refused(ring, bearer("new")) == "invalid_api_key"  # looked at once a second
    clock.now = 1.5
    assert ring.admit(bearer("new")).name == "shop"
    assert ring.admit(bearer("old")).name == "shop"
    replaced(file, f"shop {digest('new')}\n")
    clock.now = 3.0
    assert refused(ring, bearer("old")) == "invalid_api_key"


@pytest.mark.parametrize("broken", ["shop notahash\n", "", "# nobody\n", None])
def test_a_broken_file_keeps_the_keys_and_is_logged(
    file: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    ring = KeyRing([], file=file, clock=clock)
    if broken is None:
        file.unlink()
    else:
        replaced(file, broken)
    clock.now = 2.0
    assert ring.admit(bearer("old")).name == "shop"
    assert not ring.is_open
    assert "stay as they were" in caplog.text
    replaced(file, f"shop {digest('new')}\n")
    clock.now = 4.0
    assert ring.admit(bearer("new")).name == "shop"


def test_the_quotas_of_names_follow_the_file(file: Path) -> None:
    clock = Clock()
    ring = KeyRing([], file=file, clock=clock, quotas=QuotaSettings(burst_s=3))
    quotas = ring.quotas
    assert dict(quotas) == {}
    replaced(file, f"shop {digest('a')} read requests_per_s=10 dot_products_per_s=1e9\n")
    clock.now = 2.0
    ring.refresh()
    assert quotas["shop"] == Quota(Limit(10, 30), Limit(1e9, 3e9))


def test_a_line_holds_scopes_and_quotas_in_any_order(file: Path) -> None:
    file.write_text(f"a {digest('a').upper()} requests_per_s=2.5 read,write\n")
    [found] = read_key_file(file)
    assert found == key("a", "a", scopes={"read", "write"}, requests_per_s=2.5)


def test_a_comment_ends_with_its_line(file: Path) -> None:
    text = f"# until June\u2028old {digest('a')}\r\nb {digest('b')}\r\n"
    file.write_bytes(text.encode())
    assert [found.name for found in read_key_file(file)] == ["b"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a", "only one word"),
        ("a 12", "64 hex digits"),
        (f"a {digest('a')} reed", "scopes"),
        (f"a {digest('a')} requests_per_s=0", "greater than 0"),
        (f"a {digest('a')} requests_per_s=inf", "finite"),
        (f"a {digest('a')} requests=1", "unknown or there twice"),
        (f"a {digest('a')} read write", "unknown or there twice"),
        (f"a {digest('a')}\nb {digest('a')}", "have the same key"),
        (f"a {digest('a')}\na {digest('b')} requests_per_s=1", "different quotas"),
    ],
)
def test_a_wrong_line_is_named_without_its_secret(file: Path, line: str, says: str) -> None:
    file.write_text(line + "\n")
    with pytest.raises(UserError, match=says) as failure:
        KeyRing([], file=file)
    assert digest("a") not in str(failure.value)


def test_an_application_takes_keys_from_settings_and_from_the_file(file: Path) -> None:
    args = ServeArgs(index=Path("i"), api_keys=(key("me", "mine"),), api_keys_file=file)
    ring = KeyRing.of(args)
    assert {ring.admit(bearer(secret)).name for secret in ("mine", "old")} == {"me", "shop"}
    assert len(args.read_keys()) == 2
