"""A partner's day with each client against a running gateway, and with a signer that is not ours."""

import json
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.clients import oracle
from tests.clients.partner import LANGUAGES, command, methods
from tests.conftest import add_card
from tests.ledger import add_holder
from tests.registry import TestCard
from tests.running import Client, Running

LOSERS = {"ed25519": "demo-kiosk", "ecdsa-p256-sha256": "demo-bureau", "sm2-sm3": "demo-bank"}
REPORT = "/v1/cards/loss-reports"


@pytest.fixture
async def card(gateway: Running) -> TestCard:
    """A good card of this test's own."""
    return await add_card(gateway)


def file_of(gateway: Running, name: str) -> Path:
    return gateway.data_dir / "sandbox" / "callers" / f"{name}.json"


async def test_both_clients_can_do_the_same() -> None:
    python, node = await methods("python"), await methods("node")
    assert python == node and {"token", "verify", "report_loss", "visit", "open", "rotate"} <= python


@pytest.mark.parametrize("algorithm", LOSERS)
@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_loss_is_reported_once_and_released(
    gateway: Running, card: TestCard, language: str, algorithm: str
) -> None:
    loser = file_of(gateway, LOSERS[algorithm])
    # the bureau may not verify
    verifier, scene = ("demo-bank", "bank.counter") if algorithm == "sm2-sm3" else ("demo-kiosk", "kiosk.service")

    async def run(file: Path, *arguments: str) -> tuple[str, dict[str, Any], str]:
        ended = await command(language, file, *arguments)
        assert ended.code == 0, (ended.out, ended.err)
        return ended.out, json.loads(ended.out), ended.err.splitlines()[-1]

    async def reason() -> str:
        verdict = (await run(file_of(gateway, verifier), "verify", card.number, card.identifier, scene))[1]
        return str(verdict["reason"])

    token = await command(language, loser, "token")
    assert token.code == 0, token.err
    assert token.out.count(".") == 2
    assert await reason() == "ok"

    report = ("lose", card.number, card.identifier, f"key-{uuid.uuid4()}")
    first, answer, status = await run(loser, *report)
    assert status == "200"
    assert answer["social_security"]["status"] == "accepted"
    assert answer["bank"] == {"status": "not_connected"}
    assert await reason() == "lost_temporary"

    again, _, status = await run(loser, *report)
    assert (again, status) == (first, "200 (replayed)")

    _, answer, status = await run(loser, "release", answer["reference"])
    assert (answer["social_security"]["status"], status) == ("released", "200")
    assert await reason() == "ok"


@pytest.mark.parametrize("name", ["demo-kiosk", "demo-bureau", "demo-bank"])
async def test_a_signer_of_somebody_else_is_believed(
    gateway: Running, card: TestCard, kiosk: Client, name: str
) -> None:
    presentation = {"type": "chip_card", "card_number": card.number, "card_identifier": card.identifier}
    key = f"key-{uuid.uuid4()}"
    async with Client(gateway, name) as loser:

        async def post(path: str, body: Any, key: str, tampered: bool = False) -> aiohttp.ClientResponse:
            headers = await loser.authorization() | {"Content-Type": "application/json", "Idempotency-Key": key}
            message = oracle.Message("POST", gateway.url + path, headers, json.dumps(body).encode())
            oracle.sign(message, loser.file["signing"])
            if tampered:
                headers["Idempotency-Key"] += "x"
            answer = await loser.session.post(path, data=message.body, headers=headers)
            await answer.read()
            return answer

        report = {"presentation": presentation, "kind": "temporary"}
        assert (await post(REPORT, report, key, tampered=True)).status == 401
        first, again = [await post(REPORT, report, key) for _ in range(2)]
        assert first.status == again.status == 200, await first.text()
        assert await first.read() == await again.read()
        assert "Idempotency-Replayed" not in first.headers
        assert again.headers["Idempotency-Replayed"] == "true"
        assert (await kiosk.verify(card.number, card.identifier, "kiosk.service"))["reason"] == "lost_temporary"

        reference = (await first.json())["reference"]
        released = await post(f"{REPORT}/{reference}/release", {}, key + "-release")
        assert (await released.json())["social_security"]["status"] == "released"
        assert (await kiosk.verify(card.number, card.identifier, "kiosk.service"))["reason"] == "ok"


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_payment_is_asked_for_once(gateway: Running, card: TestCard, language: str) -> None:
    """This gateway reaches no bank, and the card has no account: a decline is an answer too."""
    till = file_of(gateway, "demo-merchant")
    pay = ("pay", card.number, card.identifier, "1250", f"order-{uuid.uuid4()}", f"key-{uuid.uuid4()}")
    first, again = await command(language, till, *pay), await command(language, till, *pay)
    answer = json.loads(first.out)
    assert (first.code, answer["status"], answer["decline_code"]) == (0, "declined", "no_account"), first.err
    assert again.out == first.out and again.err.splitlines()[-1] == "200 (replayed)"
    body = ("pay", card.number, card.identifier, "1250", f"order-{uuid.uuid4()}", f"key-{uuid.uuid4()}")
    cheaper = json.loads((await command(language, till, *body, "dining.till")).out)
    assert (cheaper["decline_code"], cheaper["discount_fen"], cheaper["benefits"]) == ("no_account", 0, [])
    refused = await command(language, till, "reverse", answer["reference"])
    assert refused.code == 1 and json.loads(refused.out)["code"] == "payment_state"


@pytest.mark.parametrize("language", LANGUAGES)
async def test_points_are_redeemed(gateway: Running, language: str) -> None:
    card, kiosk = await add_holder(gateway, 200), file_of(gateway, "demo-kiosk")
    presented = (card.number, card.identifier)

    async def run(*arguments: str) -> tuple[str, dict[str, Any]]:
        ended = await command(language, kiosk, *arguments)
        assert ended.code == 0, (ended.out, ended.err)
        return ended.out, json.loads(ended.out)

    assert (await run("points", *presented))[1]["available"] == 200
    redeem = ("redeem", *presented, "towel-set", "80", "wuyuan-01", f"key-{uuid.uuid4()}")
    first, reserved = await run(*redeem)
    assert (reserved["status"], reserved["balance"], reserved["available"]) == ("reserved", 200, 120)
    assert (await run(*redeem))[0] == first
    _, committed = await run("commit", reserved["reference"])
    assert (committed["status"], committed["balance"]) == ("committed", 120)
    _, again = await run(*redeem[:-1])
    assert (await run("cancel", again["reference"]))[1]["status"] == "cancelled"
    late = await command(language, kiosk, "commit", again["reference"])
    assert late.code == 1 and json.loads(late.out)["code"] == "redemption_state"
    assert (await run("points", *presented))[1]["balance"] == 120
