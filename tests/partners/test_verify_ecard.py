"""E-card codes through a gateway of two workers: platform, gateway and database are real, on sockets."""

import asyncio
import functools
import json
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import asyncpg
import pytest

from gateway.crypto.key_files import open_folder
from gateway.domain.cards import STATUS_REASON, CardStatus
from gateway.sandbox.county import COUNTY_REGION, Citizen
from gateway.sandbox.load import load_county
from gateway.sandbox.peers import ecard_platform_host as host
from gateway.store.embedded import EmbeddedPostgres
from tests.conftest import drop_database, lot, make_database, prepare_data_dir
from tests.faults.planted import plant
from tests.partners.ecard_wire import COUNTY, Forgetful, Peer, first, platform
from tests.running import ROOT, Client, Running

PATH = "/v1/cards/verify"
DEADLINE_MS = 400
BATCH_MS = 900
SLACK_MS = 600
"""For two busy cores."""
AT_ONCE = 64
SIGNED = first(region=COUNTY_REGION, ecard_level=2)
LOSABLE = [citizen for citizen in map(COUNTY.citizen, range(COUNTY.cards)) if citizen.ecard_level == 1][:2]


class Joined(NamedTuple):
    """A gateway whose workers ask a platform, and a merchant."""

    running: Running
    peer: Peer
    merchant: Client
    folder: Path
    """Of the keys that are shared with the platform."""

    async def verify(self, code: str, **headers: str) -> dict[str, Any]:
        status, answer, _ = await self.merchant.post(PATH, body(code), **headers)
        assert status == 200, answer
        return dict(answer)

    async def reason(self, code: str) -> str:
        return str((await self.verify(code))["reason"])

    async def asked(self, code: str) -> int:
        """How often the platform was asked about a code."""
        digest = host._digest(code)
        (line,) = [line for line in await self.peer.book() if line["reference"] == digest]
        return int(line["facts"]["asked"])

    async def storm(self, code: str, at_once: int = AT_ONCE, keyed: bool = False) -> Counter[str]:
        """The reasons of many presentations at once, each on a connection of its own: both workers get some.

        `keyed`: each with an Idempotency-Key of its own.
        """
        headers = await self.merchant.authorization() | {"Connection": "close"}
        connector = aiohttp.TCPConnector(force_close=True, limit=AT_ONCE)
        async with aiohttp.ClientSession(self.running.url, connector=connector) as session:

            async def one(number: int) -> str:
                key = {"Idempotency-Key": f"{code}-{number}"} if keyed else {}
                async with session.post(PATH, json=body(code), headers=headers | key) as answer:
                    found = await answer.json()
                    assert answer.status == 200, found
                    return str(found["reason"])

            return Counter(await asyncio.gather(*(one(number) for number in range(at_once))))


def body(code: str, **more: Any) -> dict[str, Any]:
    return {
        "presentation": {"type": "ecard_code", "code": code}, "scene": "library.loan", "terminal_id": "P-ecard",
    } | more  # fmt: skip


def configure(config: Path, peer: Peer, deadline_ms: int = DEADLINE_MS) -> None:
    settings = (config / "gateway.toml").read_text().replace('ecard_partner = ""', 'ecard_partner = "ecard-platform"')
    settings = settings.replace("ecard_deadline_ms = 1500", f"ecard_deadline_ms = {deadline_ms}")
    (config / "gateway.toml").write_text(settings)
    (config / "partners.toml").write_text(f"""
[partners.ecard-platform]
name = "全国社保卡服务平台(合成)"
adapter = "ecard_platform"
operations = ["verify_ecard_code", "ecard_sign_level", "scan_login", "scan_login_state"]
http = {{ base_url = "{peer.url}" }}
concurrency_max = 64
waiting_max = 64
breaker = {{ failures = 5, open_s = 1 }}
[partners.ecard-platform.keys]
signing = {{ kind = "hmac-sha1", file = "keys-of-platform/signing.key" }}
body = {{ kind = "aes-ecb", file = "keys-of-platform/body.key" }}
[partners.ecard-platform.dialect]
access_key = "{host.ACCESS_KEY}"
channel_no = "{host.CHANNEL_NO}"
access_no = "{host.ACCESS_NO}"
system_name = "{host.SYSTEM_NAME}"
""")


@asynccontextmanager
async def joined(
    folder: Path,
    postgres: EmbeddedPostgres,
    bug: str = "",
    kind: type[host.Platform] = host.Platform,
    deadline_ms: int = DEADLINE_MS,
) -> AsyncIterator[Joined]:
    """With a database of its own, which holds the county, and a lot that is away. The session's template is there."""
    database = await make_database(postgres, "yikatong")
    config = folder / "config"
    shutil.copytree(ROOT / "config", config, dirs_exist_ok=True)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(drop_database, postgres, database)
        peer = await stack.enter_async_context(platform(folder / "data/keys-of-platform", kind=kind))
        configure(config, peer, deadline_ms)
        with (config / "partners.toml").open("a") as stream:
            stream.write(lot(folder / "data"))
        running = Running(
            folder / "data", "serve", DATABASE_URL=database.dsn, CONFIG_DIR=str(config), WORKERS="2", LOG_LEVEL="debug",
            **(plant(bug) if bug else {}),
        )  # fmt: skip
        prepare_data_dir(folder / "data", running.port)
        keys = functools.partial(open_folder, folder / "data" / "keys")
        await load_county(database.dsn, keys, COUNTY, lambda _: None, 1)
        await running.start()
        stack.push_async_callback(running.stop)
        merchant = await stack.enter_async_context(Client(running, "demo-merchant"))
        yield Joined(running, peer, merchant, folder / "data/keys-of-platform")


@pytest.fixture(scope="module")
async def gate(
    postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Joined]:
    async with joined(tmp_path_factory.mktemp("joined"), postgres) as made:
        yield made


async def test_a_code_is_valid_once_and_its_event_says_ecard(gate: Joined) -> None:
    code = await gate.peer.show(SIGNED.card_number)
    answer = await gate.verify(code)
    assert (answer["verdict"], answer["reason"], answer["medium"]) == ("valid", "ok", "ecard")
    assert answer["region"] == SIGNED.region and SIGNED.name not in json.dumps(answer, ensure_ascii=False)
    chip = await gate.merchant.verify(SIGNED.card_number, SIGNED.card_identifier, "library.loan")
    assert answer["card_ref"] == chip["card_ref"] and answer["holder"] == chip["holder"]
    assert chip["medium"] != "ecard"
    again = await gate.verify(code)
    assert {name: again[name] for name in again if name != "event_id"} == {
        "verdict": "refused", "reason": "code_replayed", "medium": "ecard",
    }  # fmt: skip
    assert await gate.asked(code) == 1, "what we have seen is not asked again"
    async with Client(gate.running, "demo-bureau") as bureau:
        events = {event["event_id"]: event for event in await bureau.events_at("P-ecard", gate.merchant)}
    assert (events[answer["event_id"]]["medium"], events[answer["event_id"]]["reason"]) == ("ecard", "ok")
    assert "card_ref" not in events[again["event_id"]] and events[again["event_id"]]["reason"] == "code_replayed"


@pytest.mark.parametrize("keyed", [False, True])
async def test_of_many_at_once_one_is_valid_and_the_platform_is_asked_once_by_a_worker(
    gate: Joined, keyed: bool
) -> None:
    for _ in range(5):
        code = await gate.peer.show(SIGNED.card_number)
        await gate.peer.faults({"kind": "delay", "ms": 100})
        reasons = await gate.storm(code, keyed=keyed)
        await gate.peer.faults()
        assert reasons == {"ok": 1, "code_replayed": AT_ONCE - 1}
        assert 1 <= await gate.asked(code) <= 2


@pytest.mark.parametrize(
    ("bug", "once"),
    [("", True), ("codes_not_claimed", False), ("codes_claimed_in_memory", False)],
    ids=["as it is", "no claim", "memory"],
)
async def test_a_platform_that_forgets_does_not_make_a_code_good_twice(
    tmp_path: Path, postgres: EmbeddedPostgres, template: str, bug: str, once: bool
) -> None:
    """Also after kill -9 of everything; and two controls: with the bug planted, this is noticed."""
    valid: Counter[str] = Counter()
    async with joined(tmp_path, postgres, bug, Forgetful) as gate:
        codes = [await gate.peer.show(SIGNED.card_number) for _ in range(5)]
        for code in codes:
            valid[code] += (await gate.storm(code))["ok"]
        if once:
            await gate.running.kill()
            await gate.running.start()
            for code in codes:
                valid[code] += (await gate.storm(code))["ok"]
            assert [valid[code] for code in codes] == [1] * 5
        else:
            assert max(valid.values()) > 1


@pytest.mark.parametrize("status", [status for status in CardStatus if status != CardStatus.NORMAL])
async def test_an_ecard_is_as_good_as_its_card(gate: Joined, status: CardStatus) -> None:
    code = await gate.peer.show(first(status=status).card_number)
    assert await gate.reason(code) == STATUS_REASON[status]


async def test_a_holder_without_an_ecard_is_refused(gate: Joined) -> None:
    nobody = next(
        citizen
        for citizen in map(COUNTY.citizen, range(COUNTY.cards))
        if citizen.status == CardStatus.NORMAL and citizen.ecard_level is None and citizen.valid_until > COUNTY.today
    )
    assert await gate.reason(await gate.peer.show(nobody.card_number)) == "not_activated"


async def test_a_lost_card_takes_its_ecard_along(gate: Joined) -> None:
    holder: Citizen = LOSABLE[0]
    shown_before = await gate.peer.show(holder.card_number)
    async with Client(gate.running, "demo-kiosk") as kiosk:
        report = {"card_number": holder.card_number, "id_number": holder.id_number, "kind": "temporary"}
        status, raw, _ = await kiosk.effect("/v1/cards/loss-reports", report)
        assert status == 200, raw
        assert await gate.reason(shown_before) == "lost_temporary"
        await kiosk.release_loss(json.loads(raw)["reference"])
    assert await gate.reason(await gate.peer.show(holder.card_number)) == "ok"


async def test_the_platforms_word_on_a_code(gate: Joined) -> None:
    late, used = await gate.peer.show(SIGNED.card_number), await gate.peer.show(SIGNED.card_number)
    assert await gate.reason(host.CHANNEL_NO + "0" * 12) == "code_invalid"
    await gate.peer.ask_code(used)
    assert await gate.reason(used) == "code_replayed"
    gate.peer.clock.ahead_s = host.CODE_TTL_S + 1
    try:
        assert await gate.reason(late) == "code_expired"
    finally:
        gate.peer.clock.ahead_s = 0


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "slow": ({"kind": "delay", "ms": 3000}, "code_replayed"),
    "drop_before": ({"kind": "drop_before"}, "ok"),
    "drop_after": ({"kind": "drop_after"}, "code_replayed"),
    "half_close": ({"kind": "half_close"}, "code_replayed"),
    "garbage": ({"kind": "garbage"}, "code_replayed"),
    "late": ({"kind": "late", "ms": 3000}, "code_replayed"),
    "bad_signature": ({"kind": "bad_signature"}, "code_replayed"),
    "unknown code": ({"kind": "decline", "code": "999999"}, "ok"),
    "not allowed": ({"kind": "decline", "code": "100006"}, "ok"),
}
"""The fault, and what the code is worth when all is well again: nothing, if the platform had acted."""


async def timed(gate: Joined, code: str) -> tuple[dict[str, Any], float]:
    """The verdict, and the milliseconds it took."""
    began = time.monotonic()
    answer = await gate.verify(code)
    return answer, (time.monotonic() - began) * 1000


@pytest.mark.parametrize("name", FAULTS)
async def test_a_platform_that_fails_is_unknown_inside_the_deadline(gate: Joined, name: str) -> None:
    fault, afterwards = FAULTS[name]
    code = await gate.peer.show(SIGNED.card_number)
    await gate.peer.faults(fault)
    try:
        answer, took_ms = await timed(gate, code)
    finally:
        await gate.peer.faults()
    assert {name: answer[name] for name in answer if name != "event_id"} == {
        "verdict": "unknown", "reason": "platform_unavailable", "medium": "ecard",
    }  # fmt: skip
    assert took_ms < DEADLINE_MS + SLACK_MS
    if name != "slow":  # it may be at it still
        assert await gate.reason(code) == afterwards


async def test_storms_on_a_platform_that_fails_now_and_then(gate: Joined) -> None:
    """No code is valid twice, none without the platform's word, and nobody gets anything but a verdict."""
    kinds = ("delay", "drop_before", "drop_after", "half_close", "garbage", "duplicate", "late", "bad_signature")
    codes = [await gate.peer.show(SIGNED.card_number) for _ in range(40)]
    await gate.peer.faults(*({"kind": kind, "probability": 0.08, "ms": 600} for kind in kinds))
    try:
        storms = await asyncio.gather(*(gate.storm(code, at_once=4) for code in codes))
        storms += await asyncio.gather(*(gate.storm(code, at_once=4) for code in codes))
    finally:
        await gate.peer.faults()
    found: dict[str, Counter[str]] = {code: Counter() for code in codes}
    for code, reasons in zip(codes * 2, storms, strict=True):
        found[code] += reasons
    states = {line["reference"]: line["state"] for line in await gate.peer.book()}
    for code, reasons in found.items():
        assert reasons.keys() <= {"ok", "code_replayed", "platform_unavailable"} and reasons["ok"] <= 1
        assert not reasons["ok"] or states[host._digest(code)] == "verified"
    assert sum(reasons["ok"] for reasons in found.values()) > 0
    assert sum(reasons["platform_unavailable"] for reasons in found.values()) > 0


async def test_chip_cards_do_not_wait_for_a_slow_platform(gate: Joined) -> None:
    code = await gate.peer.show(SIGNED.card_number)
    await gate.peer.faults({"kind": "delay", "ms": 3000})
    try:
        waiting = asyncio.create_task(timed(gate, code))
        for _ in range(20):
            began = time.monotonic()
            answer = await gate.merchant.verify(SIGNED.card_number, SIGNED.card_identifier, "library.loan")
            assert answer["reason"] == "ok" and (time.monotonic() - began) * 1000 < SLACK_MS
        assert (await waiting)[0]["reason"] == "platform_unavailable"
    finally:
        await gate.peer.faults()


async def test_control_a_gateway_without_a_deadline_is_noticed(
    tmp_path: Path, postgres: EmbeddedPostgres, template: str
) -> None:
    async with joined(tmp_path, postgres, "patient_with_the_platform") as gate:
        code = await gate.peer.show(SIGNED.card_number)
        await gate.peer.faults({"kind": "delay", "ms": DEADLINE_MS + 2 * SLACK_MS})
        _, took_ms = await timed(gate, code)
        assert took_ms >= DEADLINE_MS + SLACK_MS


async def test_with_a_key_the_same_answer_comes_again(gate: Joined) -> None:
    code = await gate.peer.show(SIGNED.card_number)
    key = {"Idempotency-Key": f"ecard-{code}"}
    found = [await gate.verify(code, **key) for _ in range(3)]
    assert found[0]["reason"] == "ok" and found[1:] == [found[0]] * 2
    assert await gate.reason(code) == "code_replayed"
    assert await gate.asked(code) == 1


async def test_bad_requests_do_not_reach_the_platform(gate: Joined) -> None:
    code = await gate.peer.show(SIGNED.card_number)
    for wrong in ({"scene": "no.such"}, {"occurred_at": "2020-01-01T00:00:00+08:00"}):
        status, _, _ = await gate.merchant.post(PATH, body(code) | wrong)
        assert status == 422
    assert await gate.asked(code) == 0


async def test_nobodys_data_is_in_the_log_or_beside_the_event(gate: Joined) -> None:
    """The log at level debug has every question, as the adapter redacts it."""
    code = await gate.peer.show(SIGNED.card_number)
    await gate.verify(code)
    connection = await asyncpg.connect(gate.running.environment["DATABASE_URL"])
    rows = await connection.fetch(
        "SELECT row(code_use)::text FROM code_use UNION SELECT row(e)::text FROM usage_event e"
    )
    await connection.close()
    kept = gate.running.log + "\n".join(row[0] for row in rows)
    assert "qrcode" not in kept and '"msgCode\\": \\"000000\\"' in gate.running.log
    for text in (code, SIGNED.id_number, SIGNED.card_number, SIGNED.name, (gate.folder / "signing.key").read_text()):
        assert text.strip() not in kept
