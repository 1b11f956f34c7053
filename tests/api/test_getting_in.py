"""POST /oauth2/token: who is let in, and that everybody else hears one and the same thing."""

import json
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import jwt
import pytest

from tests.api import forging
from tests.running import ASSERTION_TYPE, Client, Running

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
EDDSA, ES256 = "demo-merchant", "demo-bank"


def now() -> int:
    return int(time.time())


async def send(client: Client, form: Any, headers: dict[str, str] | None = None) -> tuple[int, bytes, dict[str, str]]:
    async with client.session.post("/oauth2/token", data=form, headers=headers) as answer:
        return answer.status, await answer.read(), dict(answer.headers)


def form_of(assertion: str, **more: str) -> dict[str, str]:
    form = {"grant_type": "client_credentials", "client_assertion_type": ASSERTION_TYPE, "client_assertion": assertion}
    return form | more


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [("demo-merchant", "EdDSA"), ("demo-bank", "ES256"), ("demo-talent", "ES256"), ("demo-kiosk", "EdDSA")],
)
async def test_a_caller_gets_a_token_with_its_own_key(gateway: Running, name: str, algorithm: str) -> None:
    async with Client(gateway, name) as client:
        assert client.file["alg"] == algorithm
        status, body, headers = await send(client, form_of(client.assertion()))
    answer = json.loads(body)
    assert status == 200 and headers["Cache-Control"] == "no-store"
    assert answer.keys() == {"access_token", "token_type", "expires_in", "scope"}
    assert (answer["token_type"], answer["expires_in"]) == ("Bearer", 600)
    assert answer["scope"].split() == client.file["scope"].split()


async def test_a_client_id_beside_the_assertion_is_its_own(merchant: Client) -> None:
    for own in ("demo-merchant", ""):
        assert (await send(merchant, form_of(merchant.assertion(), client_id=own)))[0] == 200
    status, body, _ = await send(merchant, form_of(merchant.assertion(), client_id="demo-bank"))
    assert (status, json.loads(body)["error"]) == (401, "invalid_client")


async def test_the_token_is_what_rfc_9068_says_and_the_jwks_verifies_it(merchant: Client) -> None:
    token = await merchant.token()
    async with merchant.session.get("/.well-known/jwks.json") as answer:
        keys = jwt.PyJWKSet.from_dict(await answer.json()).keys
    header = jwt.get_unverified_header(token)
    assert header["typ"] == "at+jwt" and header["alg"] == "EdDSA"
    (key,) = [key for key in keys if key.key_id == header["kid"]]
    issuer = merchant.file["issuer"]
    claims = jwt.decode(token, key, algorithms=["EdDSA"], audience=issuer, issuer=issuer)
    assert claims.keys() == {"iss", "aud", "sub", "client_id", "iat", "exp", "jti", "scope", "client_kid"}
    assert claims["sub"] == claims["client_id"] == "demo-merchant"
    assert claims["exp"] - claims["iat"] == 600
    assert all("d" not in key for key in (await fetch_jwks(merchant))["keys"])


async def fetch_jwks(client: Client) -> dict[str, Any]:
    async with client.session.get("/.well-known/jwks.json") as answer:
        return dict(await answer.json())


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        ("cards:verify", "cards:verify"), ("points:read cards:verify", "points:read cards:verify"),
        ("cards:verify cards:verify", "cards:verify"), ("", "cards:verify payments:write points:read"),
    ],
)  # fmt: skip
async def test_a_part_of_the_scopes_may_be_asked_for(merchant: Client, asked: str, granted: str) -> None:
    status, answer = await merchant.ask_token(scope=asked)
    assert (status, answer.get("scope")) == (200, granted)


@pytest.mark.parametrize(
    "scope",
    ["usage:read", "cards:verify usage:read", "cards", "CARDS:VERIFY", "*", "a" * 300, "cards:verify,points:read"],
)
async def test_a_scope_beyond_the_callers_is_invalid(merchant: Client, scope: str) -> None:
    status, answer = await merchant.ask_token(scope=scope)
    assert (status, answer["error"]) == (400, "invalid_scope")
    assert scope not in answer["error_description"]


async def test_a_token_with_fewer_scopes_opens_less(merchant: Client) -> None:
    _, answer = await merchant.ask_token(scope="points:read")
    headers = {"Authorization": f"Bearer {answer['access_token']}"}
    async with merchant.session.post("/v1/cards/verify", json={}, headers=headers) as refused:
        assert refused.status == 403 and (await refused.json())["code"] == "insufficient_scope"
        assert refused.headers["WWW-Authenticate"] == 'Bearer error="insufficient_scope", scope="cards:verify"'


GRANT, KIND = "grant_type=client_credentials", f"client_assertion_type={ASSERTION_TYPE}"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("", "invalid_request"),
        (f"{KIND}&client_assertion=x", "invalid_request"),
        (f"grant_type=password&{KIND}&client_assertion=x", "unsupported_grant_type"),
        (f"grant_type=authorization_code&{KIND}&client_assertion=x", "unsupported_grant_type"),
        (f"{GRANT}&{KIND}", "invalid_request"),
        (f"{GRANT}&client_assertion=x", "invalid_request"),
        (f"{GRANT}&client_assertion_type=saml2-bearer&client_assertion=x", "invalid_request"),
        (f"{GRANT}&{KIND}&client_assertion=x&client_assertion=x", "invalid_request"),
        (f"{GRANT}&{GRANT}&{KIND}&client_assertion=x", "invalid_request"),
        (f"{GRANT}&{KIND}&client_assertion=x&scope=a&scope=b", "invalid_request"),
        (f"{GRANT}&{KIND}&client_assertion=%FF", "invalid_request"),
        ("&".join(f"a{number}=1" for number in range(50)), "invalid_request"),
        ('{"grant_type":"client_credentials"}', "invalid_request"),
        ("钥匙", "invalid_request"),
        ("a\x00b", "invalid_request"),
    ],
)
async def test_a_wrong_form_is_an_rfc_6749_error(merchant: Client, body: str, error: str) -> None:
    status, answer, headers = await send(merchant, body.encode(), FORM)
    assert status == 400 and headers["Content-Type"] == "application/json" and headers["Cache-Control"] == "no-store"
    document = json.loads(answer)
    assert document.keys() == {"error", "error_description"} and document["error"] == error


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"{}", "application/json"), (b"grant_type=x", "text/plain"), (b"", "multipart/form-data")],
)
async def test_what_is_not_a_form_is_refused(merchant: Client, body: bytes, content_type: str) -> None:
    status, answer, _ = await send(merchant, body, {"Content-Type": content_type})
    assert status == 415 and json.loads(answer)["code"] == "unsupported_media_type"


async def test_a_form_is_ascii_whatever_charset_it_names(merchant: Client) -> None:
    """HTTP clients of old name ISO-8859-1 by themselves."""
    body = urlencode(form_of(merchant.assertion())).encode()
    status, _, _ = await send(merchant, body, {"Content-Type": f"{FORM['Content-Type']}; charset=ISO-8859-1"})
    assert status == 200


def with_claims(**changes: Any) -> Callable[[Client, Client], str]:
    """The client's claims, some changed or (None) left out, well signed."""
    return lambda client, _: client.assertion(client.claims(**changes))


def with_header(**changes: Any) -> Callable[[Client, Client], str]:
    def forge(client: Client, _: Client) -> str:
        header = {"alg": client.file["alg"], "typ": "JWT", "kid": client.file["kid"]} | changes
        header = {name: value for name, value in header.items() if value is not None}
        return forging.token(header, client.claims(), forging.by_client(client))

    return forge


def signed(algorithm: str, sign: Callable[[Client], forging.Sign]) -> Callable[[Client, Client], str]:
    def forge(client: Client, _: Client) -> str:
        return forging.token({"alg": algorithm, "kid": client.file["kid"]}, client.claims(), sign(client))

    return forge


def raw_claims(claims: bytes) -> Callable[[Client, Client], str]:
    return lambda client, _: forging.token(
        {"alg": client.file["alg"], "kid": client.file["kid"]}, claims, forging.by_client(client)
    )


FORGED: dict[str, Callable[[Client, Client], str]] = {
    "empty": lambda *_: " ",
    "no JWT at all": lambda *_: "not.a.jwt",
    "not ASCII": lambda *_: "令牌.令牌.令牌",
    "NULs": lambda *_: "\0.\0.\0",
    "two parts": lambda c, _: c.assertion().rpartition(".")[0],
    "four parts": lambda c, _: c.assertion() + ".e30",
    "another's key": lambda c, other: forging.token(
        {"alg": c.file["alg"], "kid": c.file["kid"]}, c.claims(), forging.by_client(other)
    ),
    "another's key and algorithm": lambda c, other: forging.token(
        {"alg": other.file["alg"], "kid": c.file["kid"]}, c.claims(), forging.by_client(other)
    ),
    "another's key, algorithm and kid": lambda c, other: forging.token(
        {"alg": other.file["alg"], "kid": other.file["kid"]}, c.claims(), forging.by_client(other)
    ),
    "algorithm none": signed("none", lambda _: forging.unsigned),
    "algorithm None": signed("None", lambda _: forging.unsigned),
    "no signature": signed("EdDSA", lambda _: forging.unsigned),
    "HS256 with the public key in PEM": signed("HS256", lambda c: forging.by_hmac(forging.public_pem(c))),
    "HS256 with the public key as JWK": signed(
        "HS256", lambda c: forging.by_hmac(json.dumps(forging.public_jwk(c)).encode())
    ),
    "HS256 with an empty secret": signed("HS256", lambda _: forging.by_hmac(b"")),
    "RS256": signed("RS256", lambda _: forging.by_rsa()),
    "the right key under another algorithm's name": signed("RS256", forging.by_client),
    "no algorithm": with_header(alg=None),
    "a key of its own in the header": with_header(jwk={"kty": "oct", "k": "AAAA"}, kid="mine"),
    "typ of an access token": with_header(typ="at+jwt"),
    "another typ": with_header(typ="secevent+jwt"),
    "typ that is no text": with_header(typ=["JWT"]),
    "a critical header": with_header(crit=["exp"], exp=1),
    "no kid": with_header(kid=None),
    "another kid": with_header(kid="demo-merchant-2"),
    "kid that is a path": with_header(kid="../../keys/sign-1"),
    "kid that is a number": with_header(kid=1),
    "kid that is a list": with_header(kid=["a"]),
    "an unknown client": with_claims(iss="nobody", sub="nobody"),
    "another client": lambda c, other: c.assertion(c.claims(iss=other.name, sub=other.name)),
    "iss of another": with_claims(iss="demo-kiosk"),
    "sub of another": with_claims(sub="demo-kiosk"),
    "aud of another": with_claims(aud="https://elsewhere.example"),
    "aud is the token endpoint's path": with_claims(aud="/oauth2/token"),
    "aud is a list": lambda c, _: c.assertion(c.claims(aud=[c.file["issuer"]])),
    "aud is a list with others": lambda c, _: c.assertion(c.claims(aud=["https://x.example", c.file["issuer"]])),
    "aud has a tail": lambda c, _: c.assertion(c.claims(aud=c.file["issuer"] + "/")),
    "aud is empty": with_claims(aud=""),
    "expired": lambda c, _: c.assertion(c.claims(iat=now() - 120, exp=now() - 61)),
    "from the far future": lambda c, _: c.assertion(c.claims(iat=now() + 3600, exp=now() + 3660)),
    "valid for 61 seconds": lambda c, _: c.assertion(c.claims(iat=now(), exp=now() + 61)),
    "valid for thirty years": lambda c, _: c.assertion(c.claims(exp=now() + 30 * 365 * 86400)),
    "valid for no time": lambda c, _: c.assertion(c.claims(iat=now(), exp=now())),
    "expires before it was issued": lambda c, _: c.assertion(c.claims(iat=now() + 20, exp=now() + 10)),
    "not valid yet": lambda c, _: c.assertion(c.claims(nbf=now() + 3600)),
    "exp is text": lambda c, _: c.assertion(c.claims(exp=str(now() + 30))),
    "exp has a fraction": lambda c, _: c.assertion(c.claims(exp=now() + 30.5)),
    "exp is true": with_claims(exp=True),
    "exp is infinite": with_claims(exp=float("inf")),
    "iat is infinite": with_claims(iat=float("inf")),
    "nbf is infinite": with_claims(nbf=float("inf")),
    "exp is not a number": with_claims(exp=float("nan")),
    "exp is huge": with_claims(exp=10**400),
    "iat is text": lambda c, _: c.assertion(c.claims(iat=str(now()))),
    "jti is empty": with_claims(jti=""),
    "jti is a number": with_claims(jti=7),
    "jti is too long": with_claims(jti="j" * 201),
    "jti with a NUL": with_claims(jti="a\x00b"),
    "jti with half a character": with_claims(jti="\ud800"),
    "sub with half a character": with_claims(iss="\ud800", sub="\ud800"),
    "sub is a list": lambda c, _: forging.token(
        {"alg": "EdDSA", "kid": c.file["kid"]}, c.claims(sub=[c.name]), forging.by_client(c)
    ),
    "claims that are no object": raw_claims(b"[]"),
    "claims that are not JSON": raw_claims(b"{"),
    "claims that are not UTF-8": raw_claims(b'{"sub":"\xff"}'),
    "claims nested deep": raw_claims(b'{"sub":' + b"[" * 2500),
    "claims changed after signing": lambda c, _: forging.changed(c.assertion(), 1, lambda d: d.update(jti="other")),
    "header changed after signing": lambda c, _: forging.changed(c.assertion(), 0, lambda d: d.update(x="y")),
    "signature with one bit flipped": lambda c, _: forging.with_flipped_signature_bit(c.assertion()),
    "extra long": with_claims(more="x" * 5000),
} | {
    f"without {claim}": with_claims(**{claim: None}) for claim in ("iss", "sub", "aud", "exp", "iat", "jti")
}  # fmt: skip


@pytest.mark.parametrize("caller", [EDDSA, ES256])
@pytest.mark.parametrize("how", FORGED)
async def test_a_forged_assertion_is_refused(gateway: Running, caller: str, how: str) -> None:
    other = EDDSA if caller == ES256 else ES256
    async with Client(gateway, caller) as client, Client(gateway, other) as second:
        status, body, headers = await send(client, form_of(FORGED[how](client, second)))
        good, _ = await client.ask_token()
    assert (status, body) == (401, REFUSED), how
    assert headers["Content-Type"] == "application/json" and headers["Cache-Control"] == "no-store"
    assert good == 200, "an honest assertion of the same client is still accepted"


REFUSED = b'{"error":"invalid_client","error_description":"the client assertion is not accepted"}'
"""One body for every reason, so that nobody learns which of them it was."""


async def test_an_assertion_is_good_once(merchant: Client) -> None:
    assertion = merchant.assertion()
    assert (await send(merchant, form_of(assertion)))[0] == 200
    for _ in range(3):
        status, body, _ = await send(merchant, form_of(assertion))
        assert (status, body) == (401, REFUSED)


async def test_two_callers_may_use_the_same_jti(merchant: Client, kiosk: Client) -> None:
    jti = secrets.token_hex(8)
    for client in (merchant, kiosk):
        assert (await client.ask_token(client.assertion(client.claims(jti=jti))))[0] == 200
    assert (await merchant.ask_token(merchant.assertion(merchant.claims(jti=jti))))[0] == 401


async def test_an_assertion_may_be_a_little_early_or_say_its_type(merchant: Client) -> None:
    early = merchant.assertion(merchant.claims(iat=now() + 10, exp=now() + 70))
    typed = merchant.assertion(headers={"typ": "client-authentication+jwt"})
    assert [(await merchant.ask_token(assertion))[0] for assertion in (early, typed)] == [200, 200]
