"""The sandbox's traffic over HTTP: its uses become events, and a gateway that is slow or away is left in peace."""

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway.sandbox import traffic
from gateway.sandbox.county import County
from gateway.sandbox.traffic import Caller, Sender
from gateway.sandbox.traffic_plan import PlannedUse
from tests.conftest import prepare_data_dir
from tests.running import Client, Running, eventually, free_port

COUNTY = County(1, 2_000, dt.date(2026, 11, 23))
NEVER_MIND_S = 3600.0


def use(person: int, terminal_id: str, caller: str = "demo-merchant", **more: Any) -> PlannedUse:
    return PlannedUse(0, person, caller, "market.till", terminal_id, "武原", **more)


def callers_of(session: aiohttp.ClientSession, data_dir: Path) -> dict[str, Caller]:
    files = [json.loads(file.read_text()) for file in (data_dir / "sandbox" / "callers").glob("*.json")]
    return {file["client_id"]: Caller(session, file) for file in files}


async def test_what_is_planned_becomes_events(gateway: Running, bureau: Client, merchant: Client) -> None:
    uses = [use(1500, "TRAFFIC-1"), use(1501, "TRAFFIC-1", spoilt=True),
            use(1500, "TRAFFIC-1", "demo-bank", amount_fen=250), use(1502, "TRAFFIC-1", "nobody")]  # fmt: skip
    async with aiohttp.ClientSession() as session:
        sender = Sender(COUNTY, callers_of(session, gateway.data_dir), 1)
        await sender.live(iter([(0.0, each) for each in uses]))
    events = await bureau.events_at("TRAFFIC-1", merchant)
    # nobody of this county is in the test's registry: both cards are unknown there, and the bank's line is rejected
    assert [(event["caller"], event["kind"], event["reason"]) for event in events] == [
        ("demo-merchant", "verify", "unrecognised")
    ] * 2


class SlowGateway:
    """Answers token requests at once, and others when it is told to, with one status."""

    def __init__(self) -> None:
        self.go, self.status = asyncio.Event(), 200
        self.now = self.peak = self.total = 0
        self.port = free_port()

    async def token(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"access_token": "t", "expires_in": 600})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        self.now, self.total = self.now + 1, self.total + 1
        self.peak = max(self.peak, self.now)
        await self.go.wait()
        self.now -= 1
        return web.Response(status=self.status)


@pytest.fixture
async def slow(tmp_path: Path) -> AsyncIterator[SlowGateway]:
    made = SlowGateway()
    prepare_data_dir(tmp_path, made.port)
    app = web.Application()
    app.router.add_post("/oauth2/token", made.token)
    app.router.add_post("/v1/cards/verify", made.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", made.port).start()
    yield made
    made.go.set()
    await runner.cleanup()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pace of people: what bounds it then is what is looked at here."""
    monkeypatch.setattr(traffic, "PER_SECOND", 500)
    monkeypatch.setattr(traffic, "_LATE_S", NEVER_MIND_S)
    monkeypatch.setattr(traffic, "_REQUEST_S", NEVER_MIND_S)


async def seen_at_once(slow: SlowGateway, data_dir: Path, uses: int, settled_at: int) -> int:
    """The requests that a gateway that does not answer gets at once, of so many that are due."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        sender = Sender(COUNTY, callers_of(session, data_dir), 1)
        living = asyncio.create_task(sender.live(iter([(0.0, use(1000 + n, "T")) for n in range(uses)])))

        async def settled() -> bool:
            return slow.now >= settled_at

        await eventually(settled, 30, "the requests that may be under way are")
        slow.go.set()
        await living
    assert slow.total == uses
    return slow.peak


async def test_a_slow_gateway_is_not_flooded(slow: SlowGateway, tmp_path: Path, quick: None) -> None:
    assert await seen_at_once(slow, tmp_path, 3 * traffic.AT_ONCE, traffic.AT_ONCE) == traffic.AT_ONCE


async def test_control_without_the_bound_it_is(
    slow: SlowGateway, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "AT_ONCE", 100)
    assert await seen_at_once(slow, tmp_path, 20, 20) == 20


@pytest.mark.parametrize("status", [429, 503])
async def test_a_gateway_at_its_limit_is_left_alone(
    slow: SlowGateway, tmp_path: Path, quick: None, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "_PAUSE_S", NEVER_MIND_S)
    slow.status = status
    slow.go.set()
    async with aiohttp.ClientSession() as session:
        sender = Sender(COUNTY, callers_of(session, tmp_path), 1)
        await sender.live(iter([(0.0, use(1000, "T"))]))
        await sender.live(iter([(0.0, use(1000 + n, "T")) for n in range(5)]))
    assert slow.total == 1, "what was due during the pause is not made up for"


async def test_a_gateway_that_is_away_is_no_error(tmp_path: Path, quick: None) -> None:
    prepare_data_dir(tmp_path, free_port())
    async with aiohttp.ClientSession() as session:
        await Sender(COUNTY, callers_of(session, tmp_path), 1).live(iter([(0.0, use(1000, "T"))]))


async def test_what_is_too_late_is_left_out(
    slow: SlowGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setattr(traffic, "_LATE_S", 5.0)
    slow.go.set()
    async with aiohttp.ClientSession() as session:
        sender = Sender(COUNTY, callers_of(session, tmp_path), 1)
        await sender.live(iter([(-10.0, use(1000, "T"))]))
    assert slow.total == 0


async def test_a_faster_day_puts_nobody_in_two_places(slow: SlowGateway, tmp_path: Path, quick: None) -> None:
    slow.go.set()
    here, there = use(1000, "T"), use(1000, "T")._replace(town="澉浦")
    async with aiohttp.ClientSession() as session:
        sender = Sender(COUNTY, callers_of(session, tmp_path), 60)
        await sender.live(iter([(0.0, here), (0.0, there), (0.0, here), (0.0, there._replace(odd=True))]))
    assert slow.total == 3, "all but the second"
