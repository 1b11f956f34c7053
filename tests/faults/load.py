"""A bounded load of verifies whose every request is told apart, and the check of what it left in the database.

Each request names a terminal of its own, and the event carries that name: so the check knows of every event which
request made it, also of requests whose answer never came.
"""

import asyncio
import enum
import itertools
import json
import time
from collections import Counter, defaultdict
from types import TracebackType
from typing import NamedTuple

import aiohttp
import asyncpg

from tests.registry import CARDS
from tests.running import BUSY, Client, verify_body

VERIFY = "/v1/cards/verify"
ANSWER_S = 1.0
"""The promise: a failure is answered within this."""
SLACK_S = 0.1 * BUSY
"""What we grant to our own client, which shares the machine with the gateway and its database."""

_TIMEOUT_S = 2.0
_REST_S = 0.01


class Outcome(enum.Enum):
    OK = "ok"  # a verdict: its event must be there
    FAILED = "failed"  # a problem: after a 503 the event may be there, after any other it must not
    UNKNOWN = "unknown"  # the connection broke: it may be there
    NOT_SENT = "not_sent"  # no connection: it must not be there


class Attempt(NamedTuple):
    """One request and what came of it; times are of the monotonic clock."""

    name: str
    outcome: Outcome
    began: float
    ended: float
    status: int = 0
    event_id: str = ""
    code: str = ""
    """Of the problem; of a verdict only if it is not what the card's state calls for."""
    retry_after: str | None = None

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class History:
    """What was asked and answered."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []

    def of(self, outcome: Outcome) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.outcome is outcome]

    def ok_since(self, when: float) -> list[Attempt]:
        """Verdicts on what was asked after a moment."""
        return [attempt for attempt in self.attempts if attempt.outcome is Outcome.OK and attempt.began > when]

    @property
    def acknowledged(self) -> int:
        return sum(attempt.outcome is Outcome.OK for attempt in self.attempts)

    @property
    def slowest_s(self) -> float:
        return max((attempt.seconds for attempt in self.attempts), default=0.0)

    def broken_promises(self) -> list[str]:
        """Answers that no caller should see, whatever has failed: late or wrong ones, 503 without Retry-After, 500."""
        found = []
        for attempt in self.attempts:
            if attempt.status and attempt.seconds > ANSWER_S + SLACK_S:
                found.append(f"{attempt.status} after {attempt.seconds:.2f} s")
            elif attempt.status == 503 and not attempt.retry_after:
                found.append("503 without Retry-After")
            elif attempt.status not in (0, 200, 503) or (attempt.code and attempt.status == 200):
                found.append(f"{attempt.status} {attempt.code}")
        return [f"{count} x {what}" for what, count in Counter(found).most_common(5)]


class Load:
    """So many keep-alive connections that verify one card after another until the end of the `async with` block."""

    def __init__(
        self, client: Client, prefix: str, connections: int = 32, count_max: int = 40_000, seconds_max: float = 60.0
    ) -> None:
        self.history = History()
        self._client = client
        self._prefix = prefix
        self._connections = connections
        self._count_max = count_max
        self._seconds_max = seconds_max
        self._numbers = itertools.count()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None
        self._headers: dict[str, str] = {}

    async def __aenter__(self) -> "Load":
        self._headers = await self._client.authorization() | {"Content-Type": "application/json"}
        self._session = aiohttp.ClientSession(
            base_url=self._client.gateway.url,
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
            connector=aiohttp.TCPConnector(limit=self._connections),
        )
        self._tasks = [asyncio.create_task(self._keep_asking()) for _ in range(self._connections)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        assert self._session is not None
        try:
            await asyncio.gather(*self._tasks)
        finally:
            await self._session.close()

    @property
    def ended(self) -> bool:
        """Whether its bounds were reached."""
        return all(task.done() for task in self._tasks)

    async def _keep_asking(self) -> None:
        deadline = time.monotonic() + self._seconds_max
        while not self._stopping and time.monotonic() < deadline:
            number = next(self._numbers)
            if number >= self._count_max:
                return
            attempt = await self._ask(number)
            self.history.attempts.append(attempt)
            if attempt.outcome is not Outcome.OK:
                await asyncio.sleep(_REST_S)  # a caller that is refused does not ask again at once

    async def _ask(self, number: int) -> Attempt:
        assert self._session is not None
        card = CARDS[number % len(CARDS)]
        name = f"{self._prefix}-{number}"
        body = json.dumps(verify_body(card.number, card.identifier, terminal_id=name))
        began = time.monotonic()
        try:
            async with self._session.post(VERIFY, data=body, headers=self._headers) as answer:
                found = await answer.json(content_type=None)
        except aiohttp.ClientConnectorError:
            return Attempt(name, Outcome.NOT_SENT, began, time.monotonic())
        except (aiohttp.ClientError, TimeoutError, ConnectionError):
            return Attempt(name, Outcome.UNKNOWN, began, time.monotonic())
        ended = time.monotonic()
        if answer.status != 200:
            retry_after = answer.headers.get("Retry-After")
            return Attempt(name, Outcome.FAILED, began, ended, answer.status, "", found["code"], retry_after)
        right = "" if found["reason"] == card.reason else "wrong_verdict"
        return Attempt(name, Outcome.OK, began, ended, 200, found["event_id"], right)


class Findings(NamedTuple):
    """What the check has found; the last three must be 0."""

    asked: int
    acknowledged: int
    refused: int
    unknown: int
    events: int
    lost: int
    """Verdicts whose event is not there."""
    duplicated: int
    """Events of a request that has another one, or whose id is there twice."""
    unasked: int
    """Events that no request can have made."""

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.unasked)


async def check(dsn: str, history: History, prefix: str) -> Findings:
    """Compare the attempts with the events in the database, read as the tables' owner."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "SELECT terminal_id, event_id::text FROM usage_event WHERE starts_with(terminal_id, $1)", f"{prefix}-"
        )
    finally:
        await connection.close()
    return compare(history, [(row["terminal_id"], row["event_id"]) for row in rows])


def compare(history: History, rows: list[tuple[str, str]]) -> Findings:
    """`rows`: (the request's name, event id) of every event."""
    events: defaultdict[str, list[str]] = defaultdict(list)
    for name, event_id in rows:
        events[name].append(event_id)
    lost, possible = 0, set()
    for attempt in history.attempts:
        if attempt.outcome is Outcome.OK:
            lost += attempt.event_id not in events.get(attempt.name, ())
        if attempt.outcome in (Outcome.OK, Outcome.UNKNOWN) or attempt.status == 503:
            possible.add(attempt.name)
    of_one_request = sum(len(ids) - 1 for ids in events.values())
    of_one_id = len(rows) - len({event_id for _, event_id in rows})
    return Findings(
        asked=len(history.attempts),
        acknowledged=history.acknowledged,
        refused=len(history.of(Outcome.FAILED)),
        unknown=len(history.of(Outcome.UNKNOWN)),
        events=len(rows),
        lost=lost,
        duplicated=max(of_one_request, of_one_id),
        unasked=sum(len(ids) for name, ids in events.items() if name not in possible),
    )
