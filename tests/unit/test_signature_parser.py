"""The parser of signatures alone (RFC 9421): whatever comes, it reads or refuses, and at once."""

import base64
import hmac
import time

import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key
from hypothesis import example, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.api import signatures
from gateway.crypto.signatures import ED25519, VerifyKey, read_signing_jwk, verify
from gateway.domain.errors import Problem
from tests.api.mutations import digest_of
from tests.jwks import UNFIT_KIDS, public

PATH = "/v1/cards/loss-reports"
HUGE = 16 * 1024


def some_headers(created: int | None = None, kid: str = "k", **changes: str) -> "CIMultiDictProxy[str]":
    """Headers of the right form; nobody checks their signature here."""
    now = int(time.time()) if created is None else created
    given = {
        "Host": "gateway", "Authorization": "Bearer x", "Idempotency-Key": "k", "Content-Digest": digest_of(b""),
        "Signature-Input": f'sig1={signatures.COMPONENTS};created={now};keyid="{kid}";alg="ed25519";tag="yikatong-v1"',
        "Signature": "sig1=:AAAA:",
    }  # fmt: skip
    return CIMultiDictProxy(CIMultiDict(given | {name.replace("_", "-"): value for name, value in changes.items()}))


RFC_9421 = {
    "date": "Tue, 20 Apr 2021 02:07:55 GMT", "@method": "POST", "@path": "/foo", "@authority": "example.com",
    "content-type": "application/json", "content-length": "18",
}  # fmt: skip
"""Appendix B.2, test-request."""


def base_of_rfc_9421(covered: str, kid: str) -> tuple[bytes, str]:
    """(our signature base, its parameters)"""
    names = covered.split()
    quoted = " ".join(f'"{name}"' for name in names)
    params = f'({quoted});created=1618884473;keyid="{kid}"'
    values = {name: RFC_9421[name] for name in names} | {"@signature-params": params}
    return signatures.base_of(values), params


def test_the_keys_and_figures_of_rfc_9421_b_2_5() -> None:
    """An HMAC, which no key of a caller's has: the base is what its signature is under."""
    key = "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ=="
    base, _ = base_of_rfc_9421("date @authority content-type", "test-shared-secret")
    made = hmac.digest(base64.b64decode(key), base, "sha256")
    assert base64.b64encode(made) == b"pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8="


def test_the_keys_and_figures_of_rfc_9421_b_2_6() -> None:
    der = base64.b64decode("MCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=")
    base, _ = base_of_rfc_9421("date @method @path @authority content-type content-length", "test-key-ed25519")
    signature = base64.b64decode(
        "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw=="
    )
    key = VerifyKey("test-key-ed25519", ED25519, load_der_public_key(der), "{}")
    assert verify(key, base, signature)
    assert not verify(key, base + b"\n", signature) and not verify(key, base, signature[:-1] + b"\0")
    assert not verify(key._replace(algorithm="sm2-sm3"), base, signature)


@pytest.mark.parametrize("covered", ["date @authority content-type", "date @method @path @authority"])
def test_what_others_sign_by_the_same_rfc_is_not_our_form(monkeypatch: pytest.MonkeyPatch, covered: str) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_618_884_473)
    _, params = base_of_rfc_9421(covered, "k")
    with pytest.raises(Problem, match="invalid_signature"):
        signatures.read("POST", PATH, some_headers(Signature_Input=f"sig1={params}"), b"", ":80")


@pytest.mark.parametrize(
    ("host", "signed"),
    [
        ("Gateway.Example", "gateway.example"), ("gateway:80", "gateway"), ("gateway:8080", "gateway:8080"),
        ("[2001:DB8::1]:80", "[2001:db8::1]"), ("[::1]:8080", "[::1]:8080"), ("gateway:080", "gateway:080"),
        ("gateway:8080:80", None), ("gateway:80:80", None), ("", None), ("a b", None), ("a@b", None), ("a,b", None),
        ("a/b", None), (":80", None), ("gateway:", None), ("[::1", None), ("gateway:1234567", None), ("网关", None),
        ("\u212a", None),
    ],
)  # fmt: skip
def test_the_authority_is_the_host_in_small_letters_without_the_default_port(host: str, signed: str | None) -> None:
    if signed is None:
        with pytest.raises(Problem, match="invalid_signature"):
            signatures.read("POST", PATH, some_headers(Host=host), b"", ":80")
    else:
        base = signatures.read("POST", PATH, some_headers(Host=host), b"", ":80").base
        assert f'\n"@authority": {signed}\n'.encode() in base


@pytest.mark.parametrize(
    ("offset", "good"), [(-300, True), (300, True), (-301, False), (301, False), (-300.001, False), (300.001, False)]
)
def test_exactly_300_seconds_are_within(monkeypatch: pytest.MonkeyPatch, offset: float, good: bool) -> None:
    created = 1_800_000_000
    monkeypatch.setattr(time, "time", lambda: created - offset)
    if good:
        assert signatures.read("POST", PATH, some_headers(created=created), b"", ":80").created == created
    else:
        with pytest.raises(Problem, match="invalid_signature"):
            signatures.read("POST", PATH, some_headers(created=created), b"", ":80")


_GOOD = {name: value for name, value in some_headers().items() if name.startswith(("Sig", "Content"))}
_PIECES = st.lists(
    st.sampled_from(
        [*_GOOD.values(), "sig1=", ":", "(", ")", '"', ";", "created=1", "sha-256", "=", "A", ",", " ", "\\"]
    )
    | st.text(max_size=20),
    max_size=12,
).map("".join)


@settings(max_examples=500)
@given(st.sampled_from(sorted(_GOOD)), _PIECES | st.text(max_size=200))
@example("Signature-Input", "")
@example("Signature", "sig1=:\ud800:")
def test_the_parser_only_ever_refuses(name: str, value: str) -> None:
    try:
        claimed = signatures.read("POST", PATH, some_headers(None, **{name: value}), b"", ":80")
    except Problem as problem:
        assert (problem.status, problem.code, problem.detail) == (401, "invalid_signature", "")
    else:
        assert value == _GOOD[name] or name == "Signature", value
        assert claimed.base.isascii()


KEY = public("k")
_VISIBLE = st.characters(min_codepoint=0x20, max_codepoint=0x7F)


@settings(max_examples=500)
@given(st.text(_VISIBLE, max_size=101) | st.text(max_size=101))
@example("".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"\\'))
@example('k";alg="ed25519')
def test_a_kid_is_one_that_we_take_exactly_if_a_signature_can_name_it(kid: str) -> None:
    """All ways of a key to us end in this reader."""
    try:
        taken = read_signing_jwk(KEY | {"kid": kid}, ED25519).kid
    except ValueError:
        with pytest.raises(Problem, match="invalid_signature"):
            signatures.read("POST", PATH, some_headers(kid=kid), b"", ":80")
    else:
        assert signatures.read("POST", PATH, some_headers(kid=taken), b"", ":80").key_id == kid


@pytest.mark.parametrize("kid", [*UNFIT_KIDS, "\ud800", None, 7])
def test_a_key_that_no_signature_can_name_is_not_taken(kid: object) -> None:
    with pytest.raises(ValueError, match="its kid has to be 1 to 100 visible ASCII characters"):
        read_signing_jwk(KEY | {"kid": kid}, ED25519)


_HOSTS = st.lists(
    st.sampled_from(
        ["gateway", "Gateway", ".", ":80", ":", "8080", "[", "]", "::1", "-", "@", ",", "/", " ", "%", "\u212a"]
    )
    | st.text(max_size=3),
    max_size=6,
).map("".join)


@settings(max_examples=300)
@given(_HOSTS)
@example("GATEWAY:80")
@example("gateway\n")
@example("g" * 254)
def test_any_host_is_an_authority_or_refused_and_the_authority_is_its_own(host: str) -> None:
    """What is signed for a host is signed for nothing else: no line more, no letter that only becomes one of ours."""
    try:
        base = signatures.read("POST", PATH, some_headers(Host=host), b"", ":80").base.decode()
    except Problem as problem:
        assert (problem.status, problem.code, problem.detail) == (401, "invalid_signature", "")
        return
    lines = base.split("\n")
    authority = lines[1].removeprefix('"@authority": ')
    assert len(lines) == 8 and host.isascii() and authority == host.lower().removesuffix(":80")
    again = signatures.read("POST", PATH, some_headers(Host=authority), b"", ":80").base.decode()
    assert again.split("\n")[1] == lines[1]


@settings(max_examples=200)
@given(st.sampled_from(["Authorization", "Idempotency-Key"]), st.text(max_size=40) | st.just("k" * HUGE))
def test_what_is_signed_as_it_came_is_in_the_base_or_refused(name: str, value: str) -> None:
    try:
        base = signatures.read("POST", PATH, some_headers(None, **{name: value}), b"", ":80").base
    except Problem as problem:
        assert problem.status == 401 and not value.isascii()
    else:
        assert f'"{name.lower()}": {value}'.encode() in base


BOMBS = {
    "A": "A" * HUGE, "=": "=" * HUGE, ":": ":" * HUGE, "quotes": '"' * HUGE, "blanks": " " * HUGE, "(": "(" * HUGE,
    "digits": "9" * HUGE, "labels": "sig1=" * (HUGE // 5), "parameters": ";created=1" * (HUGE // 10),
    "A and =": "A=" * (HUGE // 2), "components": signatures.COMPONENTS * (HUGE // len(signatures.COMPONENTS)),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", sorted(_GOOD))
def test_16_kib_of_anything_are_refused_at_once(name: str, bomb: str) -> None:
    """At every place of the good value; the regular expressions must not go back and forth."""
    value, slowest = _GOOD[name], 0.0
    for place in range(0, len(value) + 1, 3):
        headers = some_headers(None, **{name: value[:place] + BOMBS[bomb] + value[place:]})
        began = time.process_time()
        with pytest.raises(Problem):
            signatures.read("POST", PATH, headers, b"", ":80")
        slowest = max(slowest, time.process_time() - began)
    assert slowest < 0.02, f"{slowest * 1000:.1f} ms"
