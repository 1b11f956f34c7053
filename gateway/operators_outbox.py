"""What operators ask of the outward feed on the command line, while the gateway runs."""

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from gateway.domain.errors import CannotStart
from gateway.domain.times import CHINA
from gateway.flows.deliver_usage import HELD_MAX
from gateway.operators import database_of
from gateway.settings import Settings
from gateway.store import outbox_figures
from gateway.store.outbox_figures import LAG_COUNTED_MAX
from gateway.store.pool import connect

if TYPE_CHECKING:
    from gateway.store.pool import Connection

SHOWN_MAX = 1000
_REPLAYED_AT_ONCE = 5000


async def outbox_status(settings: Settings) -> list[str]:
    """A line for each subscriber. Raises OSError, asyncpg.PostgresError."""
    async with _connected(settings) as connection:
        rows = await outbox_figures.figures(connection)
    if not rows:
        return ["there are no subscribers: outbox.enabled in gateway.toml"]
    lines = [
        f"{'subscriber':<20}{'behind':>9}{'oldest':>9}{'aside':>8}{'dead':>8}{'tries':>7}  {'next try':<27}at work"
    ]
    for row in rows:
        behind = f"{row.lag_events}{'+' if row.lag_events == LAG_COUNTED_MAX else ''}"
        lines.append(
            f"{row.name:<20}{behind:>9}{f'{row.lag_s:.0f} s':>9}{row.held:>8}{row.dead:>8}{row.tries:>7}  "
            f"{_shown(row.next_try_at):<27}{'yes' if row.at_work else 'no'}"
        )
    return lines


async def dead_letters(
    settings: Settings, name: str, since: dt.datetime | None, until: dt.datetime | None
) -> list[str]:
    """A line for each, the oldest first; times without a zone are China's. Raises CannotStart, OSError."""
    async with _connected(settings) as connection:
        await _check(connection, name)
        letters = await outbox_figures.dead_letters(connection, name, _aware(since), _aware(until), SHOWN_MAX)
    lines = [f"{'event':<37}{'recorded':<27}{'given up':<27}{'tries':>5}  code"] if letters else ["there are none"]
    lines += [
        f"{letter.event_id!s:<37}{_shown(letter.recorded_at):<27}{_shown(letter.dead_at):<27}{letter.tries:>5}  "
        f"{letter.code or 'no answer'}"
        for letter in letters
    ]
    return lines + ([f"… and perhaps more: only {SHOWN_MAX} are shown"] if len(letters) == SHOWN_MAX else [])


class Replayed(NamedTuple):
    sent_again: int
    left: int
    """Dead letters of that time for which there is no place now."""


async def replay(settings: Settings, name: str, since: dt.datetime, until: dt.datetime) -> Replayed:
    """Fill half of what may wait aside: were it full, the feed would wait too. Times without a zone are China's.

    Raises CannotStart, OSError, asyncpg.PostgresError.
    """
    first, last = _aware(since), _aware(until)
    assert first is not None and last is not None
    count = 0
    async with _connected(settings) as connection:
        await _check(connection, name)
        while True:
            (figures,) = await outbox_figures.figures(connection, [name])
            places = min(_REPLAYED_AT_ONCE, max(0, HELD_MAX // 2 - figures.held))
            async with connection.transaction():
                now = dt.datetime.now(dt.UTC)
                moved = await outbox_figures.replay(connection, name, first, last, now, places)
            count += moved
            if moved < _REPLAYED_AT_ONCE:
                return Replayed(count, await outbox_figures.count_dead(connection, name, first, last))


async def _check(connection: "Connection", name: str) -> None:
    if not await outbox_figures.figures(connection, [name]):
        raise CannotStart(f"there is no subscriber {name!r}")


@asynccontextmanager
async def _connected(settings: Settings) -> AsyncIterator["Connection"]:
    connection = await connect(database_of(settings), settings.gateway.database, "yikatong operator")
    try:
        yield connection
    finally:
        await connection.close()


def _aware(time: dt.datetime | None) -> dt.datetime | None:
    return time.replace(tzinfo=CHINA) if time is not None and time.tzinfo is None else time


def _shown(time: dt.datetime | None) -> str:
    return "-" if time is None else time.astimezone(CHINA).isoformat(" ", "seconds")
