"""What of the e-card platform's dialect is a setting (domain.md §2.3): each variant, computed here once more."""

import base64
import hashlib
import hmac
import json
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from adapters.ecard_platform import Adapter, Dialect, Fields
from gateway.domain.masking import Secret
from gateway.domain.operations import Balance, VerifyEcardCode
from gateway.domain.outcome import Approved, DeclineCode, Declined, Outcome, Unknown
from gateway.partners.contract import CannotBuild, HttpReply, HttpRequest
from tests.contract.case import NONCE, NOW, SM2_OURS, Shared, context

SECRET, AES_KEY = b"sandbox-secret", bytes.fromhex("00112233445566778899aabbccddeeff")
KEYS = {
    "signing": Shared("hmac-sha1", SECRET.decode(), encoding="text"),
    "body": Shared("aes-cbc", AES_KEY.hex()),
}
OP = VerifyEcardCode(reference=UUID(int=1), at=NOW, code=Secret("3304240001123456789012"))
PERSON = {"aac002": "330499196001010014", "aac003": "张三", "aaz500": "AB1234567"}


def adapter(**changes: Any) -> Adapter:
    known = {"access_key": "a", "channel_no": "1" * 10, "access_no": "2" * 10, "system_name": "s"}
    return Adapter(Dialect(**(known | changes)))


def build(keys: dict[str, Shared] | None = None, **changes: Any) -> HttpRequest:
    return adapter(**changes).build(OP, context(keys or KEYS))


def parameters(request: HttpRequest) -> dict[str, str]:
    """The _api_ ones, wherever they are."""
    path, _, query = request.target.partition("?")
    assert path == "/CSB"
    return dict(parse_qsl(query)) or {name: text for name, text in request.headers.items() if name[0] == "_"}


def sealed(request: HttpRequest) -> str:
    return str(json.loads(request.body)["security"])


def cbc(plain: bytes, iv: bytes) -> bytes:
    pad = 16 - len(plain) % 16
    encryptor = Cipher(AES(AES_KEY), CBC(iv)).encryptor()
    return encryptor.update(plain + bytes([pad]) * pad) + encryptor.finalize()


def reply(code: str, encrypt: str) -> HttpReply:
    return HttpReply(200, {}, json.dumps({"msgCode": code, "result": {"encrypt": encrypt}}).encode())


def parse(answer: HttpReply, **changes: Any) -> Outcome:
    return adapter(**changes).parse(OP, context(KEYS), answer)


@pytest.mark.parametrize("kind", ["sha1", "sha256"])
@pytest.mark.parametrize("signs_body", [False, True])
@pytest.mark.parametrize("api_in", ["headers", "query"])
def test_the_signature_is_over_the_sorted_parameters(kind: Any, signs_body: bool, api_in: str) -> None:
    keys = KEYS | {"signing": Shared(f"hmac-{kind}", SECRET.decode(), encoding="text")}  # type: ignore[arg-type]
    request = build(keys, signs_body=signs_body, api_in=api_in)
    sent = parameters(request)
    signature = sent.pop("_api_signature")
    signed = sent | ({"security": sealed(request)} if signs_body else {})
    assert sorted(sent) == ["_api_access_key", "_api_name", "_api_timestamp", "_api_version"]
    message = "&".join(f"{name}={signed[name]}" for name in sorted(signed)).encode()
    assert base64.b64decode(signature) == hmac.new(SECRET, message, getattr(hashlib, kind)).digest()


def test_a_bus_that_wants_sm2_gets_it() -> None:
    keys = KEYS | {"signing": Shared("sm2", SM2_OURS)}
    sent = parameters(build(keys, signature="sm2"))
    signature = base64.b64decode(sent.pop("_api_signature"))
    message = "&".join(f"{name}={sent[name]}" for name in sorted(sent)).encode()
    assert context(keys).crypto.verify("signing", message, signature)


@pytest.mark.parametrize("encoding", ["base64", "hex"])
@pytest.mark.parametrize("iv", ["none", "prefix", "0f" * 16])
def test_the_iv_and_the_encoding_of_bodies(encoding: str, iv: str) -> None:
    before = {"none": bytes(16), "prefix": NONCE}.get(iv) or bytes.fromhex(iv)

    def encoded(plain: bytes) -> str:
        raw = (before if iv == "prefix" else b"") + cbc(plain, before)
        return base64.b64encode(raw).decode() if encoding == "base64" else raw.hex()

    request = build(iv=iv, encoding=encoding)
    plain = b'{"qrCode":"3304240001123456789012","busiType":"01","systemName":"s"}'
    assert sealed(request) == encoded(plain)
    outcome = parse(reply("000000", encoded(json.dumps(PERSON).encode())), iv=iv, encoding=encoding)
    assert isinstance(outcome, Approved) and set(outcome.facts) == {"id_number", "card_number", "name"}


def test_codes_and_names_of_fields_are_configured() -> None:
    person = base64.b64encode(cbc(b'{"AAC147":"330499196001010014","xm":"x","kh":"AB1234567"}', bytes(16))).decode()
    changes = {
        "fields": Fields(id_number="AAC147", name="xm", card_number="kh"),
        "ok_codes": frozenset({"200"}), "declines": {"700": DeclineCode.CODE_EXPIRED},
    }  # fmt: skip
    assert isinstance(parse(reply("200", person), **changes), Approved)
    assert parse(reply("700", ""), **changes) == Declined(DeclineCode.CODE_EXPIRED)
    assert isinstance(parse(reply("000000", person), **changes), Unknown)
    assert isinstance(parse(reply("100001", person), **changes), Unknown)


def test_a_result_under_another_key_is_unknown() -> None:
    person = base64.b64encode(cbc(json.dumps(PERSON).encode(), b"\x01" * 16)).decode()
    assert isinstance(parse(reply("000000", person)), Unknown)


@pytest.mark.parametrize("keys", [{"signing": KEYS["body"]}, {"body": KEYS["signing"]}, {"signature": "sm2"}])
def test_a_key_of_another_kind_sends_nothing(keys: dict[str, Any]) -> None:
    changes = {name: value for name, value in keys.items() if name == "signature"}
    with pytest.raises(CannotBuild):
        build(KEYS | {name: value for name, value in keys.items() if name != "signature"}, **changes)


def test_what_the_platform_cannot_do_is_not_built() -> None:
    with pytest.raises(CannotBuild):
        adapter().build(Balance(reference=UUID(int=1), at=NOW, account=Secret("1"), trace=1), context(KEYS))
    assert adapter().query_for(OP) is None


@pytest.mark.parametrize(
    ("wire", "shown"),
    [
        (b'{"msgCode":"000000","msg":"\xe5\xbc\xa0\xe4\xb8\x89","result":{"encrypt":"abcd","aac003":"x"}}',
         '{"msgCode": "000000", "result": {"encrypt": <4>}, "msg": <2>}'),
        (b'{"code":503,"csbCode":503,"message":"x","330499196001010014":1}',
         '{"code": "503", "csbCode": "503", "message": <1>, <1 more>}'),
        (b'{"msgCode":"3304240001123456789012"}', '{"msgCode": <22>}'),
        (b'{"security":"c2VjcmV0"}', '{"security": <8>}'),
        (b"<html>", "<6 bytes>"), (b"", "<0 bytes>"), (b"[1]", "<3 bytes>"),
    ],
)  # fmt: skip
def test_only_the_outer_form_is_shown(wire: bytes, shown: str) -> None:
    assert adapter().redact(wire) == shown
