"""Which other event goes to see whether a subscriber is up, and whether it goes again."""

import datetime as dt
from typing import TYPE_CHECKING

import pytest

from gateway.flows import deliver_usage
from gateway.flows.deliver_usage import ASIDE_IN_A_ROW, _Other
from gateway.store import outbox
from gateway.store.outbox import Standing
from gateway.store.usage_events import Row
from tests.conftest import Database
from tests.store.test_outbox_outage import HOUR, MINUTE, go
from tests.store.test_outbox_proof import BAD, OUT, add, in_outage
from tests.subscribers import Receiver, Relay, by_card, logged

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The other events, one after the other."""
    another, noted = outbox.another, list[str]()

    async def note(connection: "AnyConnection", name: str, first: Row, standing: Standing, in_vain: int) -> Row | None:
        row = await another(connection, name, first, standing, in_vain)
        noted.append("" if row is None else str(row.event_id))
        return row

    monkeypatch.setattr(outbox, "another", note)
    return noted


@pytest.mark.parametrize(
    ("bound", "value", "others"),
    [("PROOF_MAX", 16, 2), ("PROOF_MAX", 2, 3), ("PROOF_HOLDS", dt.timedelta(0), BAD - ASIDE_IN_A_ROW + 1)],
)
async def test_of_those_that_were_not_sent_the_next_is_the_other_event(
    database: Database, chosen: list[str], monkeypatch: pytest.MonkeyPatch, bound: str, value: object, others: int
) -> None:
    """... while they are taken; each is good for so many, and for a minute. So few are marked as sent."""
    monkeypatch.setattr(deliver_usage, bound, value)
    receiver = Receiver()
    receiver.poison = set(await add(database.dsn, BAD))
    ahead = await add(database.dsn, 40, BAD, "library.entry")
    async with Relay(database.dsn, receiver) as relay:
        await go(relay, HOUR)
    assert chosen == ahead[:others], "the last is for the first good one"


@pytest.mark.parametrize("kept", [True, False], ids=["as it is", "control"])
async def test_one_that_did_not_leave_is_kept(
    database: Database, chosen: list[str], monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    if not kept:
        monkeypatch.setattr(_Other, "may_go", lambda self, first, now: False)
    receiver = Receiver()
    await add(database.dsn, 60)
    async with Relay(database.dsn, receiver) as relay:
        receiver.full = True
        while await relay.rows_of(OUT) == 0:
            await go(relay, MINUTE)
        before = len(chosen)
        receiver.reached = False
        relay.pages._firsts_turn = False  # else it would wait, and no other event go, for as long as nothing leaves
        await go(relay, HOUR)
        assert (len(chosen) - before <= 1) == kept
        receiver.reached, receiver.full = True, False
        await relay.run()
        assert receiver.cards() == by_card(await logged(database.dsn))
        marked = [one for one in receiver.arrived if one[2]]
        assert (len(marked) < 30) == kept


@pytest.mark.parametrize("ends", [True, False], ids=["as it is", "control"])
async def test_one_that_did_not_leave_is_kept_for_this_outage(
    database: Database, chosen: list[str], ends: bool
) -> None:
    receiver = Receiver()
    await add(database.dsn, 3)
    await add(database.dsn, 1, 3, "library.entry")
    async with Relay(database.dsn, receiver) as relay:
        await in_outage(relay)
        receiver.reached = False
        await relay.pages.turn()
        receiver.reached = True
        if ends:
            async with relay.pool.acquire() as connection:
                await outbox.answered(connection, relay.name, ended=True)
            await relay.pages.turn()
            await in_outage(relay)
        await relay.pages.turn()
    assert len(chosen) == (2 if ends else 1)


@pytest.mark.parametrize("leaps", [True, False], ids=["as it is", "control"])
async def test_a_long_row_of_bad_ones_is_left_behind(
    database: Database, monkeypatch: pytest.MonkeyPatch, leaps: bool
) -> None:
    """Of the same kind as those behind it."""
    if not leaps:
        another = outbox.another
        monkeypatch.setattr(
            outbox,
            "another",
            lambda connection, name, first, standing, _: another(connection, name, first, standing, 0),
        )
    receiver = Receiver()
    receiver.poison = set(await add(database.dsn, 60))
    await add(database.dsn, 80, 60)
    async with Relay(database.dsn, receiver) as relay:
        await go(relay, 2 * HOUR)
    assert (len(receiver.arrived) > 50) == leaps


async def test_while_it_takes_some_as_new_the_other_event_is_the_next(
    database: Database, chosen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far ahead those before were that came to nothing."""
    monkeypatch.setattr(deliver_usage, "PROOF_MAX", 1)
    receiver = Receiver()
    receiver.poison = set(await add(database.dsn, 6))
    ahead = await add(database.dsn, 40, 6, "library.entry")
    receiver.refuses = {ahead[0], ahead[2]}
    async with Relay(database.dsn, receiver) as relay:
        await in_outage(relay)
        await go(relay, 10 * MINUTE)
    assert chosen[:6] == [ahead[i] for i in (0, 2, 6, 7, 8, 9)]


async def in_an_outage(dsn: str) -> tuple[list[str], list[str]]:
    """Half a day of it: (those of another scene, those behind them)."""
    await add(dsn, 20)
    rare = await add(dsn, 3, 20, "library.entry")
    behind = await add(dsn, 30, 23)
    receiver = Receiver()
    receiver.full = True
    async with Relay(dsn, receiver) as relay:
        await go(relay, 11 * HOUR, 2 * MINUTE)
    return rare, behind


async def test_in_an_outage_the_other_event_is_never_the_same_while_some_were_not_sent(
    database: Database, chosen: list[str]
) -> None:
    rare, behind = await in_an_outage(database.dsn)
    unsent = [rare[0], rare[2], *(behind[i] for i in (3, 11, 27, 29))]
    assert chosen[: len(unsent)] == unsent
    rest = chosen[len(unsent) :]
    assert len(rest) > 10 and len(set(rest)) > 5 and "" not in rest, "any, when all were sent"


async def test_control_the_other_event_is_any_of_the_rarest_kind(
    database: Database, chosen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, order, after = outbox._ANOTHER.partition("ORDER BY sent, CASE WHEN sent THEN")
    assert order
    _, limit, after = after.partition(" LIMIT 1")
    by_kind = "ORDER BY (caller = $4)::int + (scene = $5)::int, hashtextextended(event_id::text, $7) + $10 * 0"
    monkeypatch.setattr(outbox, "_ANOTHER", before + by_kind + limit + after)
    rare, _ = await in_an_outage(database.dsn)
    assert len(chosen) > 10 and set(chosen) == set(rare), "what was sent is no matter"
