"""The sandbox's traffic: a process that lives the county's day over HTTP, as the sandbox's callers.

A few requests a second at most, at any speed: a day that passes faster has fewer people. What the gateway does not take
at once is left out, never saved up; while it is away or at its limit, nobody goes out.

Runs as a process of its own: `python -m gateway.sandbox.traffic --speed 1`.
"""

import argparse
import asyncio
import contextlib
import datetime as dt
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import structlog

from gateway.domain.errors import CannotStart
from gateway.domain.times import CHINA
from gateway.log import configure
from gateway.processes import end_with_parent
from gateway.sandbox.client import token_form
from gateway.sandbox.county import County, read_county
from gateway.sandbox.oddities import plan_oddities
from gateway.sandbox.townscape import journey_s
from gateway.sandbox.traffic_plan import PlannedUse, in_order, people_of, plan_day

log = structlog.get_logger()

OFF = "off"
SPEED_MIN, SPEED_MAX = 0.1, 60.0
PEOPLE = 30_000
"""Of a day that lasts a day: half a request a second in the afternoon, three in the busiest minute of noon."""
AT_ONCE = 8
PER_SECOND = 5
_REQUEST_S = 10.0
_LATE_S = 5.0
_PAUSE_S, _PAUSE_MAX_S = 1.0, 30.0
_RENEW_BEFORE_S = 60.0
_NICENESS = 10
_DAY_S = 86_400
_MORNING_S, _EVENING_S = 7 * 3600, 20 * 3600
_ODD_EVERY_S = 45 * 60


def read_speed(text: str) -> float | None:
    """Of TRAFFIC: `off` (None), or how many times faster than ours the county's day passes. Raises CannotStart."""
    if text.strip().lower() == OFF:
        return None
    with contextlib.suppress(ValueError):
        if SPEED_MIN <= float(text) <= SPEED_MAX:
            return float(text)
    raise CannotStart(f"TRAFFIC is {OFF}, or a speed from {SPEED_MIN} to {SPEED_MAX:.0f}: 1 is a day in a day")


async def start(data_dir: Path, speed: float, keep: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    """The process, which ends with this one; it waits by itself until the gateway answers."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.sandbox.traffic", "--data-dir", str(data_dir), "--speed", str(speed),
        env=os.environ | {"PARENT_PID": str(os.getpid())}, stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    keep(_end_with_us(process))


async def _end_with_us(process: asyncio.subprocess.Process) -> None:
    try:
        code = await process.wait()
        log.warning("the sandbox's traffic has ended", code=code)
    finally:
        if process.returncode is None:
            process.terminate()


def uses_from(county: County, speed: float, start: dt.datetime) -> Iterator[tuple[float, PlannedUse]]:
    """(seconds of the county's time after `start`, use) without an end, the odd ones among them."""
    people = people_of(county, max(200, round(PEOPLE / max(1.0, speed))))
    midnight = dt.datetime.combine(start.date(), dt.time(), CHINA)
    while True:
        day = midnight.date()
        odd = plan_oddities(county, day, range(_MORNING_S - 3000, _EVENING_S, _ODD_EVERY_S), people)
        begins_s = (midnight - start).total_seconds()
        for use in in_order([*plan_day(county, day, people), *odd.uses]):
            if begins_s + use.at_s >= 0:
                yield begins_s + use.at_s, use
        midnight += dt.timedelta(days=1)


def begin_at(now: dt.datetime) -> dt.datetime:
    """The county's time at the start: the time that it is; if it sleeps now, the morning, for somebody is looking."""
    of_day = now.hour * 3600 + now.minute * 60
    return now if _MORNING_S <= of_day < _EVENING_S else now.replace(hour=7, minute=0, second=0, microsecond=0)


class Caller:
    """Speaks to the gateway as one of the sandbox's callers."""

    def __init__(self, session: aiohttp.ClientSession, file: dict[str, Any]) -> None:
        self._session = session
        self._file = file
        self._token, self._renew_at = "", 0.0

    async def post(self, path: str, body: bytes, content_type: str) -> int:
        """The status of the answer. Raises aiohttp.ClientError, OSError, TimeoutError."""
        status = await self._renew() if time.monotonic() >= self._renew_at else 200
        if status != 200:
            return status
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": content_type}
        async with self._session.post(self._file["issuer"] + path, data=body, headers=headers) as answer:
            await answer.read()
            if answer.status == 401:  # the gateway has new keys: ask for a new token next time
                self._renew_at = 0.0
            return answer.status

    async def _renew(self) -> int:
        async with self._session.post(self._file["token_url"], data=token_form(self._file)) as answer:
            if answer.status == 200:
                found = await answer.json()
                self._token = found["access_token"]
                self._renew_at = time.monotonic() + found["expires_in"] - _RENEW_BEFORE_S
            return answer.status


class Sender:
    """Sends uses when they are due, AT_ONCE at most; what cannot go in time does not go."""

    def __init__(self, county: County, callers: dict[str, Caller], speed: float) -> None:
        self._county = county
        self._callers = callers
        self._speed = speed
        self._places = asyncio.Semaphore(AT_ONCE)
        self._sending: set[asyncio.Task[None]] = set()
        self._last_seen: dict[int, tuple[str, float]] = {}
        self._paused_until, self._pause_s = 0.0, _PAUSE_S
        self._run, self._number = secrets.token_hex(4), 0

    async def live(self, uses: Iterator[tuple[float, PlannedUse]]) -> None:
        """For ever, if the uses are without an end."""
        began = time.monotonic()
        while (step := await asyncio.to_thread(next, uses, None)) is not None:  # a new day is planned for seconds
            after_s, use = step
            due = began + after_s / self._speed
            await asyncio.sleep(max(1 / PER_SECOND, due - time.monotonic()))
            await self._places.acquire()
            now = time.monotonic()
            if now - due > _LATE_S or now < self._paused_until or self._would_be_in_two_places(use, now):
                self._places.release()
                continue
            task = asyncio.create_task(self._send(use))
            self._sending.add(task)
            task.add_done_callback(self._sent)
        await asyncio.gather(*self._sending)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._places.release()

    def _would_be_in_two_places(self, use: PlannedUse, now: float) -> bool:
        """Where the day passes faster than people do: they leave it, unless they are meant to be odd."""
        if use.town is None or use.odd:
            return False
        town, at = self._last_seen.get(use.person, (use.town, now))
        if town != use.town and now - at < journey_s(town, use.town):
            return True
        self._last_seen[use.person] = use.town, now
        return False

    async def _send(self, use: PlannedUse) -> None:
        caller = self._callers.get(use.caller)
        if caller is None:  # a configuration of somebody's own
            return
        try:
            status = await caller.post(*self._request(use))
        except (aiohttp.ClientError, OSError, TimeoutError):
            status = 503
        if status == 429 or status >= 500:
            self._paused_until = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)
        else:
            self._pause_s = _PAUSE_S

    def _request(self, use: PlannedUse) -> tuple[str, bytes, str]:
        """(path, body, content type)."""
        citizen = self._county.citizen(use.person)
        identifier = citizen.card_identifier
        if use.spoilt:
            identifier = identifier[:-1] + ("1" if identifier.endswith("0") else "0")
        chip = {"card_number": citizen.card_number, "card_identifier": identifier}
        what: dict[str, Any] = {"scene": use.scene, "terminal_id": use.terminal_id}
        if not use.returned:
            body = {"presentation": {"type": "chip_card"} | chip} | what
            return "/v1/cards/verify", json.dumps(body).encode(), "application/json"
        self._number += 1
        what |= {
            "id": f"traffic-{self._run}-{self._number}", "occurred_at": dt.datetime.now(CHINA).isoformat(),
            "amount_fen": use.amount_fen, "result": "success",
        }  # fmt: skip
        return "/v1/usage-events", json.dumps(chip | what).encode() + b"\n", "application/x-ndjson"


async def run(data_dir: Path, speed: float) -> None:
    """Until a signal ends the process: there is nothing to put away."""
    county = read_county(data_dir)
    files = [json.loads(file.read_text()) for file in (data_dir / "sandbox" / "callers").glob("*.json")]
    connector = aiohttp.TCPConnector(limit=AT_ONCE, keepalive_timeout=5)  # shorter than the gateway's
    timeout = aiohttp.ClientTimeout(total=_REQUEST_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
        callers = {file["client_id"]: Caller(session, file) for file in files}
        uses = uses_from(county, speed, begin_at(dt.datetime.now(CHINA)))
        await Sender(county, callers, speed).live(uses)


def main() -> None:
    parser = argparse.ArgumentParser(prog="traffic")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--speed", type=float, required=True)
    given = parser.parse_args()
    end_with_parent(int(os.environ.get("PARENT_PID", os.getppid())))
    configure("warning", "traffic")
    os.nice(_NICENESS)
    asyncio.run(run(given.data_dir, given.speed))


if __name__ == "__main__":
    main()
