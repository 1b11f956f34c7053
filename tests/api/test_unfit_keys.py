"""Keys that nobody or everybody could sign for, or that are for something else, given to us over the wire."""

import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from gateway.store.embedded import EmbeddedPostgres
from tests.api.forging import token
from tests.api.test_effects import own_gateway
from tests.conftest import add_card
from tests.faults.planted import plant
from tests.jwks import ANYBODYS, FORGED, UNFIT, private, public, public_of
from tests.registry import CARDS
from tests.running import Client, Running
from tests.signing import Signing, signed_headers

OK = CARDS[0]
PATH = "/v1/callers/self/keys"
LOSS = "/v1/cards/loss-reports"
CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    **{how: (change, said) for how, (change, said) in UNFIT.items()},
    "use": ({"use": "enc"}, "see its use"),
    "alg": ({"alg": "ES256"}, "see its alg"),
    "key_ops": ({"key_ops": ["verify"]}, "does not know"),
    "a private part": ({"d": private("p")["d"]}, "does not know"),
}


@pytest.mark.parametrize("use", ["token", "signing"])
@pytest.mark.parametrize("how", CHANGES)
async def test_an_unfit_key_is_refused_by_its_field(kiosk: Client, use: str, how: str) -> None:
    change, said = CHANGES[how]
    status, body, _ = await kiosk.effect(PATH, {"use": use, "jwk": public("unfit") | change})
    answer = json.loads(body)
    assert (status, answer["code"]) == (422, "validation_failed"), answer
    (error,) = answer["errors"]
    assert error["field"] == "$.jwk" and said in error["message"]
    assert not any(len(str(value)) > 8 and str(value) in body.decode() for value in change.values())


async def test_a_kid_that_no_signature_can_name_leaves_the_old_key(gateway: Running, kiosk: Client) -> None:
    """In the place of the only one it would lock its caller out."""
    old = kiosk.file["signing"]["kid"]
    for kid in ('bureau_"2026"', "a\\b", "bureau key 1", "人社局-1"):
        status, body, _ = await kiosk.effect(PATH, {"use": "signing", "jwk": public(kid), "retire": old})
        answer = json.loads(body)
        assert (status, answer["code"]) == (422, "validation_failed"), answer
        (error,) = answer["errors"]
        assert error["field"] == "$.jwk.kid" and "visible ASCII" in error["message"] and kid not in body.decode()
    await kiosk.report_loss(await add_card(gateway))


async def test_a_token_key_has_any_printable_kid(gateway: Running, kiosk: Client) -> None:
    """A JWT's header may hold any text; and it can be taken out again by its name."""
    key = private(f'终端 "{secrets.token_hex(4)}"')
    status, body, _ = await kiosk.effect(PATH, {"use": "token", "jwk": public_of(key)})
    assert status == 200, body
    async with Client(gateway, "demo-kiosk") as other:
        other.file |= {"private_jwk": key, "kid": key["kid"]}
        await other.verify(OK.number, OK.identifier, "kiosk.service")
    status, body, _ = await kiosk.effect(PATH, {"use": "token", "retire": key["kid"]})
    assert status == 200, body


@pytest.mark.parametrize("use", ["token", "signing"])
async def test_a_key_for_the_other_use_is_refused(kiosk: Client, use: str) -> None:
    others = kiosk.file["private_jwk"] if use == "signing" else kiosk.file["signing"]["private_jwk"]
    jwk = {name: others[name] for name in ("kty", "crv", "x")} | {"kid": f"shared-{secrets.token_hex(4)}"}
    status, body, _ = await kiosk.effect(PATH, {"use": use, "jwk": jwk})
    answer = json.loads(body)
    assert (status, answer["code"]) == (409, "key_exists") and "each use needs keys of its own" in answer["detail"]


class Anybody:
    """Who holds no private key."""

    def sign(self, message: bytes) -> bytes:
        return FORGED


async def forged(client: Client, kid: str) -> tuple[int, int]:
    """The statuses of a loss report and of a request for a token that anybody could have sent."""
    card = await add_card(client.gateway)
    body = json.dumps({"card_number": card.number, "id_number": card.id_number, "kind": "temporary"}).encode()
    authorization = (await client.authorization())["Authorization"]
    host = f"127.0.0.1:{client.gateway.port}"
    headers = signed_headers(Signing("ed25519", kid, Anybody()), "POST", host, LOSS, body, authorization)
    async with client.session.post(LOSS, data=body, headers=headers) as answer:
        reported = answer.status
    assertion = token({"alg": "EdDSA", "kid": kid}, client.claims(), Anybody().sign)
    return reported, (await client.ask_token(assertion))[0]


async def test_who_holds_no_private_key_gets_nothing(kiosk: Client) -> None:
    kid = f"anybody-{secrets.token_hex(4)}"
    for use in ("signing", "token"):
        assert (await kiosk.effect(PATH, {"use": use, "jwk": public(kid) | {"x": ANYBODYS}}))[0] == 422
    assert await forged(kiosk, kid) == (401, 401)


async def test_control_a_gateway_that_takes_such_keys_is_anybodys(
    postgres: EmbeddedPostgres, template: str, tmp_path: Path
) -> None:
    async with (
        own_gateway(postgres, template, tmp_path / "data", "1", **plant("anybodys_keys")) as running,
        Client(running, "demo-kiosk") as kiosk,
    ):
        for use, how in (("signing", "the neutral point"), ("token", "the neutral point with a sign")):
            status, body, _ = await kiosk.effect(PATH, {"use": use, "jwk": public("anybody") | UNFIT[how][0]})
            assert status == 200, body  # each use needs keys of its own
        assert await forged(kiosk, "anybody") == (200, 200)
