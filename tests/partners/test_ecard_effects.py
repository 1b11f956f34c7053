"""E-card codes for effects, through a gateway of two workers: platform, gateway and database are real, on sockets.

No bank is connected: with the code of a lost card everything but a loss report is refused, and that answer is kept.
"""

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gateway.domain.cards import CardStatus
from gateway.sandbox.county import Citizen
from gateway.sandbox.peers import ecard_platform_host as host
from gateway.store.embedded import EmbeddedPostgres
from tests.partners.ecard_wire import COUNTY, Forgetful, first
from tests.partners.test_verify_ecard import Joined, joined
from tests.running import Client

REPORT, REDEEM = "/v1/cards/loss-reports", "/v1/points/redemptions"
DEADLINE_MS = 1500
"""Of a question: nothing here is about time."""
AT_ONCE = 16
LOST = first(status=CardStatus.LOST_TEMPORARY)
TOWELS = {"points": 80, "item": "towel-set", "outlet_id": "wuyuan-01"}


def good_cards() -> Iterator[Citizen]:
    """With an e-card; each for one test."""
    for citizen in map(COUNTY.citizen, range(COUNTY.cards)):
        if citizen.status is CardStatus.NORMAL and citizen.ecard_level and citizen.valid_until > COUNTY.today:
            yield citizen


HOLDERS = good_cards()


class Answer(NamedTuple):
    status: int
    body: dict[str, Any]
    headers: Any

    @property
    def side(self) -> dict[str, Any]:
        """Of a loss report or release, which is never a problem."""
        assert self.status == 200, self.body
        return dict(self.body["social_security"])


class Desk(NamedTuple):
    """A gateway that asks a platform, its merchant, and a kiosk."""

    gate: Joined
    kiosk: Client

    async def show(self, citizen: Citizen) -> str:
        return await self.gate.peer.show(citizen.card_number)

    async def do(self, name: str, code: str, key: str = "") -> Answer:
        """One of EFFECTS, with a code and a key."""
        caller, path, body = EFFECTS[name]
        client = self.kiosk if caller == "kiosk" else self.gate.merchant
        return await self._post(client, path, shown(code) | body, key)

    async def report(self, code: str, key: str = "") -> Answer:
        return await self.do("loss report", code, key)

    async def release(self, reference: str, code: str, key: str = "") -> Answer:
        return await self._post(self.kiosk, f"{REPORT}/{reference}/release", shown(code), key)

    async def reason(self, citizen: Citizen) -> str:
        """Of the chip card."""
        verdict = await self.gate.merchant.verify(citizen.card_number, citizen.card_identifier, "library.loan")
        return str(verdict["reason"])

    @asynccontextmanager
    async def platform_away(self) -> AsyncIterator[None]:
        await self.gate.peer.faults({"kind": "drop_before"})
        try:
            yield
        finally:
            await self.gate.peer.faults()

    async def _post(self, client: Client, path: str, body: dict[str, Any], key: str) -> Answer:
        status, raw, headers = await client.effect(path, body, key=key or secrets.token_hex(8))
        return Answer(status, json.loads(raw), headers)


def shown(code: str) -> dict[str, Any]:
    return {"presentation": {"type": "ecard_code", "code": code}}


EFFECTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "verify": ("merchant", "/v1/cards/verify", {"scene": "library.loan", "terminal_id": "P-ecard"}),
    "payment": (
        "merchant", "/v1/payments",
        {"scene": "market.till", "terminal_id": "T-1", "amount_fen": 300, "merchant_order_id": "o-1"},
    ),
    "visit": ("merchant", "/v1/visits", {"scene": "parking.entry", "terminal_id": "P-1"}),
    "redemption": ("kiosk", REDEEM, TOWELS),
    "loss report": ("kiosk", REPORT, {"kind": "temporary"}),
}  # fmt: skip
"""Who asks for it, where, and with what beside the presentation."""


@asynccontextmanager
async def desk_of(
    folder: Path, postgres: EmbeddedPostgres, bug: str = "", kind: type[host.Platform] = host.Platform
) -> AsyncIterator[Desk]:
    async with (
        joined(folder, postgres, bug, kind, DEADLINE_MS) as gate,
        Client(gate.running, "demo-kiosk") as kiosk,
    ):
        yield Desk(gate, kiosk)


@pytest.fixture(scope="module")
async def desk(
    postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Desk]:
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(desk_of(tmp_path_factory.mktemp("desk"), postgres))


# --- lost, and found again ---------------------------------------------------------------------------------------


async def test_a_code_reports_its_card_and_releases_it(desk: Desk) -> None:
    holder, somebody = next(HOLDERS), next(HOLDERS)
    code = await desk.show(holder)
    reported = await desk.report(code)
    assert reported.side == {"status": "accepted", "card_status": "lost_temporary"}
    assert await desk.reason(holder) == "lost_temporary"
    assert (await desk.report(code)).side == {"status": "refused", "reason": "code_replayed"}
    assert await desk.gate.reason(code) == "code_replayed", "the claim is that of every use"
    reference = reported.body["reference"]
    of_another = await desk.release(reference, await desk.show(somebody))
    assert of_another.side == {"status": "refused", "reason": "unrecognised"}
    released = await desk.release(reference, await desk.show(holder))
    assert released.side == {"status": "released", "card_status": "normal"}
    assert (await desk.reason(holder), await desk.reason(somebody)) == ("ok", "ok")


async def bad_codes(desk: Desk, holder: Citizen) -> dict[str, str]:
    """Codes of a card by the platform's word on them, while its clock is ahead."""
    used = await desk.show(holder)
    await desk.gate.peer.ask_code(used)
    return {
        "code_expired": await desk.show(holder), "code_replayed": used, "code_invalid": host.CHANNEL_NO + "0" * 12,
    }  # fmt: skip


async def test_the_platforms_refusals_are_the_operations(desk: Desk) -> None:
    holder = next(HOLDERS)
    reference = (await desk.report(await desk.show(holder))).body["reference"]
    for_reports, for_releases = await bad_codes(desk, holder), await bad_codes(desk, holder)
    desk.gate.peer.clock.ahead_s = host.CODE_TTL_S + 1
    try:
        for reason, code in for_reports.items():
            assert (await desk.report(code)).side == {"status": "refused", "reason": reason}
        for reason, code in for_releases.items():
            assert (await desk.release(reference, code)).side == {"status": "refused", "reason": reason}
    finally:
        desk.gate.peer.clock.ahead_s = 0
    assert await desk.reason(holder) == "lost_temporary"


async def test_a_report_while_the_platform_is_away_keeps_nothing(desk: Desk) -> None:
    holder, key = next(HOLDERS), secrets.token_hex(8)
    code = await desk.show(holder)
    async with desk.platform_away():
        answer = await desk.report(code, key)
    assert (answer.status, answer.body["code"]) == (503, "unavailable") and answer.headers["Retry-After"]
    reported = await desk.report(code, key)
    assert reported.side["status"] == "accepted"
    fresh, key = await desk.show(holder), secrets.token_hex(8)
    async with desk.platform_away():
        assert (await desk.release(reported.body["reference"], fresh, key)).status == 503
    assert (await desk.release(reported.body["reference"], fresh, key)).side["status"] == "released"


async def storm(desk: Desk) -> Counter[str]:
    """What many reports at once with one code come to."""
    code = await desk.show(next(HOLDERS))
    answers = await asyncio.gather(*(desk.report(code) for _ in range(AT_ONCE)))
    return Counter(answer.side.get("reason", answer.side["status"]) for answer in answers)


async def test_of_many_reports_with_one_code_one_is_accepted(desk: Desk) -> None:
    assert await storm(desk) == {"accepted": 1, "code_replayed": AT_ONCE - 1}


async def test_control_a_report_that_claims_no_code_is_noticed(
    tmp_path: Path, postgres: EmbeddedPostgres, template: str
) -> None:
    async with desk_of(tmp_path, postgres, "codes_not_claimed", Forgetful) as desk:
        assert (await storm(desk))["accepted"] > 1


# --- a key that has its answer --------------------------------------------------------------------------------------


async def repeated(desk: Desk, name: str) -> tuple[str, int]:
    """(what a code is worth that was sent under a key used before with another, how often it had been asked by then).

    The first body under that key has its answer, the other one is told 422 either way.
    """
    code, fresh, key = await desk.show(LOST), await desk.show(LOST), secrets.token_hex(8)
    done = await desk.do(name, code, key)
    assert done.status == 200 and "lost_temporary" in json.dumps(done.body), done.body
    again = await desk.do(name, code, key)
    assert again.body == done.body and again.headers["Idempotency-Replayed"] == "true"
    other = await desk.do(name, fresh, key)
    assert (other.status, other.body["code"]) == (422, "idempotency_key_reused")
    asked = await desk.gate.asked(fresh)
    return await desk.gate.reason(fresh), asked


@pytest.mark.parametrize("name", EFFECTS)
async def test_a_known_key_uses_up_no_code(desk: Desk, name: str) -> None:
    assert await repeated(desk, name) == ("lost_temporary", 0)


async def test_a_release_with_a_known_key_uses_up_no_code(desk: Desk) -> None:
    holder, key = next(HOLDERS), secrets.token_hex(8)
    reference = (await desk.report(await desk.show(holder))).body["reference"]
    code, fresh = await desk.show(holder), await desk.show(holder)
    done = await desk.release(reference, code, key)
    assert done.side["status"] == "released" and (await desk.release(reference, code, key)).body == done.body
    assert (await desk.release(reference, fresh, key)).status == 422
    assert (await desk.gate.asked(fresh), await desk.gate.reason(fresh)) == (0, "ok")


async def unknown_and_again(desk: Desk) -> str:
    """What a code is worth after a verify of it that was kept as `unknown` was repeated."""
    code, key = await desk.show(next(HOLDERS)), secrets.token_hex(8)
    async with desk.platform_away():
        done = await desk.do("verify", code, key)
    assert done.body["reason"] == "platform_unavailable"
    assert (await desk.do("verify", code, key)).body == done.body
    return await desk.gate.reason(code)


async def test_a_repeated_verify_that_was_unknown_uses_up_no_code(desk: Desk) -> None:
    assert await unknown_and_again(desk) == "ok"


async def test_control_a_gateway_that_always_asks_is_noticed(
    tmp_path: Path, postgres: EmbeddedPostgres, template: str
) -> None:
    async with desk_of(tmp_path, postgres, "asks_for_known_keys") as desk:
        assert [await repeated(desk, name) for name in EFFECTS] == [("code_replayed", 1)] * len(EFFECTS)
        assert await unknown_and_again(desk) == "code_replayed"


# --- an unknown card is no refusal ------------------------------------------------------------------------------


async def redeemed_while_away(desk: Desk) -> list[tuple[int, str]]:
    """(status, reason or problem) of a redemption while the platform is away, and of the same when it is back."""
    code, key = await desk.show(next(HOLDERS)), secrets.token_hex(8)
    async with desk.platform_away():
        answers = [await desk.do("redemption", code, key)]
    answers.append(await desk.do("redemption", code, key))
    return [(answer.status, answer.body.get("code") or answer.body["reason"]) for answer in answers]


async def test_a_redemption_while_the_platform_is_away_leaves_its_key_free(desk: Desk) -> None:
    assert await redeemed_while_away(desk) == [(503, "unavailable"), (200, "insufficient_points")]


async def test_control_a_redemption_that_is_refused_for_good_is_noticed(
    tmp_path: Path, postgres: EmbeddedPostgres, template: str
) -> None:
    async with desk_of(tmp_path, postgres, "unknown_is_a_refusal") as desk:
        assert await redeemed_while_away(desk) == [(200, "platform_unavailable")] * 2
