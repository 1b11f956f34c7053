"""Points in the sandbox: what some thousand people of the county have at the beginning, so that there is something to
redeem."""

from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg

from gateway.domain.ids import uuid7
from gateway.domain.points import ISSUED, TransferKind, expires_on
from gateway.domain.times import CHINA
from gateway.sandbox.county import County
from gateway.store import points
from gateway.store.payments import created_at
from gateway.store.points import Transfer

if TYPE_CHECKING:
    import datetime as dt

    from gateway.store.pool import Connection

PEOPLE_MAX = 20_000
"""The first of the county: those of cards.csv are among them."""
_AT_ONCE = 5_000
_LEAST, _MOST = 100, 2_000


def opening_points(seed: int, i: int) -> int:
    """Of the person of an index: always the same."""
    draw = blake2b(b"points %d %d" % (seed, i), digest_size=4).digest()
    return _LEAST + int.from_bytes(draw, "big") % (_MOST - _LEAST + 1)


async def open_points(dsn: str, county: County, now: "dt.datetime", valid_months: int) -> None:
    """Opening transfers from the issuer, unless somebody has points. All of them or none; as the tables' owner."""
    connection: Connection = await asyncpg.connect(dsn, timeout=10)
    try:
        if await connection.fetchval("SELECT EXISTS (SELECT FROM points_account WHERE kind = 'citizen')"):
            return
        async with connection.transaction():
            people = iter(range(min(county.cards, PEOPLE_MAX)))
            while some := list(islice(people, _AT_ONCE)):
                await _open(connection, county, some, now, valid_months)
    finally:
        await connection.close()


async def _open(
    connection: "Connection", county: County, people: list[int], now: "dt.datetime", valid_months: int
) -> None:
    """A third of it expires a year before the rest."""
    day, unix_ms = now.astimezone(CHINA).date(), int(now.timestamp() * 1000)
    late = expires_on(day, valid_months)
    early = expires_on(day, max(valid_months - 12, 1))
    lots: dict[tuple[UUID, dt.date], int] = {}
    transfers = []
    for i in people:
        citizen, amount = county.citizen(i), opening_points(county.seed, i)
        person_id, card_id = UUID(bytes=citizen.person_id), UUID(bytes=citizen.card_id)
        transfer_id = UUID(bytes=uuid7(unix_ms, blake2b(citizen.card_id, digest_size=10).digest()))
        lots[person_id, early] = amount // 3
        lots[person_id, late] = lots.get((person_id, late), 0) + amount - amount // 3
        transfers.append(
            Transfer(transfer_id, created_at(transfer_id), TransferKind.OPEN, person_id, card_id, ISSUED, amount, day)
        )
    await points.open_accounts(connection, [transfer.card_id for transfer in transfers if transfer.card_id])
    await points.lock(connection, [transfer.person_id for transfer in transfers])
    await points.add_to_lots(connection, lots)
    await points.post(connection, transfers)
