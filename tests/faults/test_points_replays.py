"""Promise 5, for points: a redemption that is sent many times is one, and answered with the same bytes."""

import asyncio
import json
import secrets
import time
from collections import Counter
from typing import Any

import asyncpg

from tests.faults.home import Figure
from tests.ledger import add_holder, rules_broken_at
from tests.running import MANY, Client, Running
from tests.signing import Signing, signed_headers

PATH = "/v1/points/redemptions"
REPLAYS = 100_000 if MANY else 1_000
RIVALS = 64
FRESH_S = 200  # a signature is good for 300 s


class Storm:
    """The same effect, over and over, by many at once."""

    def __init__(self, kiosk: Client, path: str, body: object) -> None:
        self.kiosk, self.path, self.raw = kiosk, path, json.dumps(body).encode()
        self.key = secrets.token_hex(8)
        self.bodies: Counter[bytes] = Counter()
        self.statuses: Counter[int] = Counter()
        self._left = 0
        self._headers: dict[str, str] = {}
        self._signed_at = 0.0
        self._signing = asyncio.Lock()

    async def blow(self, count: int, rivals: int = 1) -> dict[str, Any]:
        """The answer. So many requests in all; of rivals, all but one are told that it is being carried out."""
        self._left = count
        await asyncio.gather(*(self._rival() for _ in range(rivals)))
        assert len(self.bodies) == 1 and set(self.statuses) <= {200, 409}, (self.statuses, list(self.bodies)[:3])
        return dict(json.loads(next(iter(self.bodies))))

    async def _rival(self) -> None:
        while self._left > 0:
            self._left -= 1
            async with self.kiosk.session.post(self.path, data=self.raw, headers=await self._now()) as answer:
                body = await answer.read()
            self.statuses[answer.status] += 1
            if answer.status == 200:
                self.bodies[body] += 1
            else:
                assert answer.status == 409 and answer.headers["Retry-After"] and b"idempotency_key_in_use" in body

    async def _now(self) -> dict[str, str]:
        async with self._signing:
            if not self._headers or time.monotonic() > self._signed_at + FRESH_S:
                self._signed_at, self.kiosk._token = time.monotonic(), ""
                self._headers = signed_headers(
                    Signing.of(self.kiosk.file), "POST", f"127.0.0.1:{self.kiosk.gateway.port}", self.path, self.raw,
                    f"Bearer {await self.kiosk.token()}", key=self.key,
                )  # fmt: skip
        return self._headers


async def test_many_repetitions_at_once_are_one_effect(gateway: Running, kiosk: Client, figure: Figure) -> None:
    """First by many at once, then many effects side by side, each over and over."""
    card, dsn = await add_holder(gateway, 20 * (RIVALS + 1)), gateway.environment["DATABASE_URL"]
    presentation = {"type": "chip_card", "card_number": card.number, "card_identifier": card.identifier}
    wish = {"presentation": presentation, "points": 20, "item": "blood-pressure-check", "outlet_id": "wuyuan-01"}
    storms = [Storm(kiosk, PATH, wish) for _ in range(RIVALS + 1)]
    await storms[0].blow(REPLAYS // 10, rivals=RIVALS)
    reserved = await asyncio.gather(*(storm.blow(REPLAYS // RIVALS // 2) for storm in storms))
    assert {answer["status"] for answer in reserved} == {"reserved"}
    assert min(answer["available"] for answer in reserved) == 0
    commits = [Storm(kiosk, f"{PATH}/{answer['reference']}/commit", {}) for answer in reserved]
    await commits[0].blow(REPLAYS // 10, rivals=RIVALS)
    committed = await asyncio.gather(*(storm.blow(REPLAYS // RIVALS // 2) for storm in commits))
    assert {answer["status"] for answer in committed} == {"committed"}
    connection = await asyncpg.connect(dsn)
    try:
        effects = await connection.fetchval(
            "SELECT count(*) FROM points_transfer WHERE redemption = ANY($1::uuid[])",
            [answer["reference"] for answer in reserved],
        )
    finally:
        await connection.close()
    assert effects == len({answer["reference"] for answer in reserved}) == RIVALS + 1
    assert await rules_broken_at(dsn) == {}
    statuses: Counter[int] = sum((storm.statuses for storm in storms + commits), Counter())
    figure(requests=statuses.total(), same_bytes=statuses[200], in_use=statuses[409], effects=2 * effects)
