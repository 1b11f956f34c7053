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
from tests.jwks import ANYBODYS, FORGED, UNFIT, private, public
from tests.running import Client
from tests.signing import Signing, signed_headers

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
        for use in ("signing", "token"):
            status, body, _ = await kiosk.effect(PATH, {"use": use, "jwk": public("anybody") | {"x": ANYBODYS}})
            assert status == 200, body
        assert await forged(kiosk, "anybody") == (200, 200)
