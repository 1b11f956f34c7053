"""What the gateway's own tokens open, and what looks like one and does not."""

import asyncio
import base64
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.api import forging
from tests.running import Client, Raw, read_answer, request, send_raw, verify_body

SIGN_KID = "sign-1"
VERDICT = b'{"presentation":{"type":"ecard_code","code":"12345678"},"scene":"parking.exit","terminal_id":"P-door"}'
EFFECT = "/v1/cards/loss-reports"
Forge = Callable[["Door"], str]


class Door:
    """What a forger might have at hand, and the gateway's own signing key for what only it could make."""

    def __init__(self, client: Client, good: str) -> None:
        self.client = client
        self.good = good
        file = json.loads((client.gateway.data_dir / "keys" / f"{SIGN_KID}.json").read_text())
        self.own_key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(file["key"]))

    def claims(self, **changes: Any) -> dict[str, Any]:
        now, issuer = int(time.time()), self.client.file["issuer"]
        claims = {
            "iss": issuer, "aud": issuer, "sub": "demo-merchant", "client_id": "demo-merchant",
            "iat": now, "exp": now + 600, "jti": "j", "scope": "cards:verify",
            "client_kid": "demo-merchant-1",
        } | changes  # fmt: skip
        return {name: value for name, value in claims.items() if value is not None}

    def signed(self, header: dict[str, Any] | None = None, **changes: Any) -> str:
        """By the gateway's own key."""
        full = {"alg": "EdDSA", "typ": "at+jwt", "kid": SIGN_KID} | (header or {})
        full = {name: value for name, value in full.items() if value is not None}
        return forging.token(full, self.claims(**changes), self.own_key.sign)

    def by(self, algorithm: str, sign: forging.Sign, **header: Any) -> str:
        return forging.token({"alg": algorithm, "typ": "at+jwt", "kid": SIGN_KID} | header, self.claims(), sign)

    def hmac_with(self, secret: bytes) -> str:
        return self.by("HS256", forging.by_hmac(secret))


def now() -> int:
    return int(time.time())


FORGED: dict[str, Forge] = {
    "empty": lambda d: "",
    "no JWT at all": lambda d: "x",
    "two parts": lambda d: d.good.rpartition(".")[0],
    "four parts": lambda d: d.good + ".e30",
    "another's Ed25519 key": lambda d: d.by("EdDSA", Ed25519PrivateKey.generate().sign),
    "the caller's own key": lambda d: d.by("EdDSA", forging.by_client(d.client)),
    "a key in its header": lambda d: d.by("EdDSA", forging.by_client(d.client), jwk=forging.public_jwk(d.client)),
    "algorithm none": lambda d: d.by("none", forging.unsigned),
    "no signature": lambda d: d.by("EdDSA", forging.unsigned),
    "HS256 with the public key": lambda d: d.hmac_with(d.own_key.public_key().public_bytes_raw()),
    "HS256 with the public key in base64": lambda d: d.hmac_with(
        base64.urlsafe_b64encode(d.own_key.public_key().public_bytes_raw()).rstrip(b"=")
    ),
    "RS256": lambda d: d.by("RS256", forging.by_rsa()),
    "a client assertion": lambda d: d.client.assertion(),
    "a client assertion that says at+jwt": lambda d: d.client.assertion(headers={"typ": "at+jwt", "kid": SIGN_KID}),
    "claims changed": lambda d: forging.changed(d.good, 1, lambda claims: claims.update(scope="usage:read")),
    "header changed": lambda d: forging.changed(d.good, 0, lambda header: header.update(x=1)),
    "one bit of the signature": lambda d: forging.with_flipped_signature_bit(d.good),
    "typ JWT": lambda d: d.signed({"typ": "JWT"}),
    "no typ": lambda d: d.signed({"typ": None}),
    "no kid": lambda d: d.signed({"kid": None}),
    "another kid": lambda d: d.signed({"kid": "sign-2"}),
    "kid that is a list": lambda d: d.signed({"kid": [SIGN_KID]}),
    "a critical header": lambda d: d.signed({"crit": ["exp"], "exp": 1}),
    "expired": lambda d: d.signed(iat=now() - 600, exp=now() - 1),
    "expires in thirty years": lambda d: d.signed(exp=now() + 30 * 365 * 86400),
    "no exp": lambda d: d.signed(exp=None),
    "exp is text": lambda d: d.signed(exp=str(now() + 60)),
    "exp is infinite": lambda d: d.signed(exp=float("inf")),
    "no iat": lambda d: d.signed(iat=None),
    "iat is text": lambda d: d.signed(iat="0"),
    "issued tomorrow": lambda d: d.signed(iat=now() + 86400, exp=now() + 86400 + 600),
    "another issuer": lambda d: d.signed(iss="https://elsewhere.example"),
    "no issuer": lambda d: d.signed(iss=None),
    "another audience": lambda d: d.signed(aud="https://elsewhere.example"),
    "a list of audiences": lambda d: d.signed(aud=[d.client.file["issuer"]]),
    "no audience": lambda d: d.signed(aud=None),
    "no subject": lambda d: d.signed(sub=None),
    "subject that is a list": lambda d: d.signed(sub=["demo-merchant"]),
    "subject unknown": lambda d: d.signed(sub="nobody"),
    "no scope": lambda d: d.signed(scope=None),
    "scope that is a list": lambda d: d.signed(scope=["cards:verify"]),
    "no key of the caller": lambda d: d.signed(client_kid=None),
    "another key of the caller": lambda d: d.signed(client_kid="demo-merchant-2", iat=now() - 60, exp=now() + 60),
    "another caller's key": lambda d: d.signed(client_kid="demo-kiosk-1", iat=now() - 60, exp=now() + 60),
    "key of the caller that is a list": lambda d: d.signed(client_kid=["demo-merchant-1"]),
    "extra long": lambda d: d.signed(more="x" * 5000),
    "not ASCII": lambda d: "令牌",
}  # fmt: skip


async def ask(client: Client, authorization: bytes | None, path: str, used: bool = True) -> Raw:
    """Send exactly this Authorization header. The request id is fixed, so that bodies can be compared."""
    if path == "/v1/cards/verify":
        sent = request("POST", path, VERDICT, authorization=authorization, x_request_id="x")
    elif path == EFFECT:
        sent = request("POST", path, b"{}", authorization=authorization, x_request_id="x", idempotency_key="forged")
    else:
        sent = request("GET", path, authorization=authorization, x_request_id="x")
    return await send_raw(client.gateway.port, sent, used=used)


@pytest.fixture(scope="session")
async def refusal(merchant: Client) -> bytes:
    """The answer to a request without any token."""
    answer = await ask(merchant, None, "/v1/cards/verify")
    assert answer.status == 401 and b'"code":"unauthorised"' in answer.body
    return answer.body


@pytest.mark.parametrize("path", ["/v1/cards/verify", "/v1/usage-events", EFFECT])
@pytest.mark.parametrize("how", FORGED)
async def test_a_forged_token_opens_nothing(merchant: Client, refusal: bytes, how: str, path: str) -> None:
    token = FORGED[how](Door(merchant, await merchant.token()))
    answer = await ask(merchant, f"Bearer {token}".encode(), path)
    assert (answer.status, answer.body) == (401, refusal), how
    assert answer.header("WWW-Authenticate") == 'Bearer error="invalid_token"'


@pytest.mark.parametrize("used", [False, True], ids=["new connection", "used connection"])
@pytest.mark.parametrize(
    "authorization",
    [b"", b"Bearer", b"Basic ZGVtbzpkZW1v", b"bearer", b"Bearer \xff\xfe", b"\xff", b"DPoP x", b"Bearer a b"],
)
async def test_a_header_that_is_no_bearer_token_opens_nothing(
    merchant: Client, refusal: bytes, authorization: bytes, used: bool
) -> None:
    answer = await ask(merchant, authorization, "/v1/cards/verify", used)
    assert (answer.status, answer.body) == (401, refusal)


async def test_the_gateways_own_claims_in_the_same_hands_do_open(merchant: Client) -> None:
    """The control of the table above: what it changes is what is refused."""
    token = Door(merchant, "").signed()
    assert (await ask(merchant, f"Bearer {token}".encode(), "/v1/cards/verify")).status == 200


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "bEaReR"])
async def test_the_scheme_may_be_written_in_any_case(merchant: Client, scheme: str) -> None:
    """RFC 9110 §11.1."""
    assert (await ask(merchant, f"{scheme} {await merchant.token()}".encode(), "/v1/cards/verify")).status == 200


async def test_a_token_that_was_accepted_is_refused_once_it_has_expired(merchant: Client, refusal: bytes) -> None:
    """It is remembered when it is first seen, but not beyond its time."""
    token = Door(merchant, "").signed(iat=now() - 598, exp=now() + 2).encode()
    statuses = [(await ask(merchant, b"Bearer " + token, "/v1/cards/verify")).status]
    while statuses[-1] == 200:
        assert len(statuses) < 10_000
        statuses.append((await ask(merchant, b"Bearer " + token, "/v1/cards/verify")).status)
    assert statuses[0] == 200 and statuses[-1] == 401
    assert time.time() < jwt.decode(token, options={"verify_signature": False})["exp"] + 2


@pytest.mark.parametrize(
    ("who", "path", "code"),
    [("merchant", "/v1/usage-events", 403), ("bureau", "/v1/cards/verify", 403), ("bureau", "/v1/usage-events", 200)],
)
async def test_a_scope_is_needed(merchant: Client, bureau: Client, who: str, path: str, code: int) -> None:
    client = {"merchant": merchant, "bureau": bureau}[who]
    answer = await ask(client, f"Bearer {await client.token()}".encode(), path)
    assert answer.status == code
    assert (b'"code":"insufficient_scope"' in answer.body) == (code == 403)


async def test_a_connection_that_changes_its_headers_is_read_anew(
    merchant: Client, kiosk: Client, bureau: Client
) -> None:
    """A connection remembers the header block it has read last; another block is another caller."""
    reader, writer = await asyncio.open_connection("127.0.0.1", merchant.gateway.port)
    tokens = {"merchant": await merchant.token(), "kiosk": await kiosk.token(), "nobody": "forged"}
    tokens["bureau"] = await bureau.token()  # has no cards:verify
    events = {}
    try:
        async with asyncio.timeout(20):
            for who in ("merchant", "kiosk", "merchant", "merchant", "nobody", "merchant", "bureau", "kiosk"):
                body = json.dumps(verify_body("AB1234567", "F" * 32, terminal_id=f"head-{who}"))
                writer.write(request("POST", "/v1/cards/verify", body.encode(), authorization=f"Bearer {tokens[who]}"))
                answer = await read_answer(reader)
                assert answer.status == {"nobody": 401, "bureau": 403}.get(who, 200), answer
                if answer.status == 200:
                    events[json.loads(answer.body)["event_id"]] = who
    finally:
        writer.close()
    assert len(events) == 6
    for who in ("merchant", "kiosk"):
        seen = await bureau.events_at(f"head-{who}", merchant)
        assert {event["event_id"] for event in seen} == {event for event, caller in events.items() if caller == who}
        assert {event["caller"] for event in seen} == {f"demo-{who}"}
