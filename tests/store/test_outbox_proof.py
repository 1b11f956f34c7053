"""That a subscriber is up is shown only by what it takes as new: a duplicate or a refusal puts no event at fault."""

import datetime as dt
from typing import TYPE_CHECKING

import pytest

from gateway.domain.outbox import Acknowledgement
from gateway.domain.outcome import Approved
from gateway.flows import deliver_usage
from gateway.flows.deliver_usage import ASIDE_IN_A_ROW, DeliverPages
from gateway.store import outbox, usage_events
from gateway.store.outbox import Standing
from gateway.store.usage_events import Row
from tests.conftest import Database
from tests.store.test_outbox_outage import HOUR, MINUTE, go
from tests.subscribers import Events, Receiver, Relay, add_events, by_card, logged, turn_through

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

BAD = ASIDE_IN_A_ROW + 4
CARDS = 1_000_000
"""So many that each event has its own."""
WARM = 511
"""After so many, one by one at first, pages are of 256 and more."""
OUT = f"outbox_subscriber WHERE asides >= {ASIDE_IN_A_ROW}"


@pytest.fixture(params=[True, False], ids=["as it is", "control"])
def strict(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The planted bug: any acknowledgement is one."""
    if not request.param:
        monkeypatch.setattr(Acknowledgement, "accepted", lambda self, events: events)
    return bool(request.param)


async def add(dsn: str, events: int, start: int = 0, scene: str = "parking.exit") -> list[str]:
    """The new ones, in order."""
    before = {event_id for event_id, _ in await logged(dsn)}
    await add_events(dsn, Events(events, CARDS, scene), transactions=1, start=start)
    return [event_id for event_id, _ in await logged(dsn) if event_id not in before]


async def warmed(relay: Relay, dsn: str, events: int) -> list[str]:
    """The next page is a large one, and so many wait."""
    await add(dsn, WARM)
    await turn_through(relay)
    return await add(dsn, events, start=WARM)


async def sent_at_once(relay: Relay, receiver: Receiver, dsn: str, events: int, bad: int = 0) -> list[str]:
    """So many are sent together, each as a batch. The `bad` first are not answered, so none of them stays behind."""
    new = await warmed(relay, dsn, events)
    receiver.poison = set(new[:bad])
    await relay.pages.turn()
    return new


async def test_who_can_write_no_more_knows_duplicates(database: Database, strict: bool) -> None:
    receiver = Receiver()
    async with Relay(database.dsn, receiver, batch_max=1, lanes_max=256) as relay:
        new = await sent_at_once(relay, receiver, database.dsn, 100, BAD)
        assert len(receiver.arrived) > WARM + 50
        receiver.poison, receiver.full = set(), True
        await go(relay, HOUR * 5 / 6)
        aside = await relay.rows_of("outbox_held")
        assert aside == ASIDE_IN_A_ROW if strict else aside >= BAD
        tried = len(receiver.calls)
        await go(relay, 2 * HOUR)
        assert len(receiver.calls) < tried + 100 or not strict, "with a pause after each turn"
        receiver.full = False
        await relay.run()
        assert {one[0] for one in receiver.arrived} >= set(new)
        assert await relay.rows_of(OUT) == 0


async def test_what_is_refused_was_not_written(database: Database, strict: bool) -> None:
    receiver = Receiver()
    receiver.poison = set(await add(database.dsn, BAD))
    receiver.refuses = set(await add(database.dsn, 40, BAD, "library.entry"))
    async with Relay(database.dsn, receiver) as relay:
        await go(relay, HOUR * 5 / 6)
        aside = await relay.rows_of("outbox_held")
        assert aside == ASIDE_IN_A_ROW if strict else aside > BAD
        receiver.poison = receiver.refuses = set()
        await relay.run()
        assert receiver.cards() == by_card(await logged(database.dsn))


async def test_duplicates_of_what_waits_aside_end_no_outage(database: Database, strict: bool) -> None:
    receiver = Receiver()
    await add(database.dsn, 50)
    async with Relay(database.dsn, receiver) as relay:
        receiver.silent = True
        await go(relay, 2 * HOUR)
        receiver.silent, receiver.full = False, True
        relay.now += HOUR
        await relay.held.turn()
        assert await relay.rows_of("outbox_held") == 0, "it had arrived"
        assert await relay.rows_of(OUT) == (1 if strict else 0)


@pytest.mark.parametrize("heard", [True, False], ids=["as it is", "control"])
async def test_one_that_is_taken_as_new_ends_an_outage_before_duplicates(
    database: Database, monkeypatch: pytest.MonkeyPatch, heard: bool
) -> None:
    """All that was sent meanwhile had arrived."""
    if not heard:
        taken = DeliverPages._taken
        monkeypatch.setattr(DeliverPages, "_taken", lambda self, page, sent, is_up: taken(self, page, sent, False))
    receiver = Receiver()
    async with Relay(database.dsn, receiver) as relay:
        await warmed(relay, database.dsn, 250)
        receiver.silent = True
        await relay.pages.turn()
        await add(database.dsn, 300, start=WARM + 250)
        await go(relay, HOUR)
        receiver.silent = False
        relay.now += HOUR
        assert await relay.rows_of(OUT) == 1
        for _ in range(2):  # the first event's own try, and the other's
            await relay.pages.turn()
        assert await relay.rows_of(OUT) == (0 if heard else 1)


@pytest.mark.parametrize("grows", [True, False], ids=["as it is", "control"])
async def test_where_all_was_sent_and_had_arrived_pages_grow(
    database: Database, monkeypatch: pytest.MonkeyPatch, grows: bool
) -> None:
    receiver = Receiver()
    async with Relay(database.dsn, receiver) as relay:
        await warmed(relay, database.dsn, 250)
        receiver.silent = True
        await go(relay, 2 * HOUR)
        assert len(receiver.arrived) == WARM + 250
        if not grows:
            page = usage_events.page
            monkeypatch.setattr(usage_events, "page", lambda connection, after, limit: page(connection, after, 1))
        receiver.silent = False
        relay.now += HOUR
        before = len(receiver.calls)
        await turn_through(relay)
        assert await relay.rows_of("outbox_held") == 0
        assert (len(receiver.calls) - before < 50) == grows
        assert await relay.rows_of(OUT) == 1, "nothing new was there to take"
        await add(database.dsn, 1, start=WARM + 250)
        await turn_through(relay)
        assert await relay.rows_of(OUT) == 0


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
        monkeypatch.setattr(DeliverPages, "_again", lambda self, first: None)
    receiver = Receiver()
    await add(database.dsn, 60)
    async with Relay(database.dsn, receiver) as relay:
        receiver.full = True
        while await relay.rows_of(OUT) == 0:
            await go(relay, MINUTE)
        before = len(chosen)
        receiver.reached = relay.pages._asked = False
        await go(relay, HOUR)
        assert (len(chosen) - before <= 1) == kept
        receiver.reached, receiver.full = True, False
        await relay.run()
        assert receiver.cards() == by_card(await logged(database.dsn))
        marked = [one for one in receiver.arrived if one[2]]
        assert (len(marked) < 30) == kept


@pytest.mark.parametrize("heard", [True, False], ids=["as it is", "control"])
async def test_what_a_part_of_a_page_took_as_new_shows_it_too(
    database: Database, monkeypatch: pytest.MonkeyPatch, heard: bool
) -> None:
    if not heard:
        monkeypatch.setattr(deliver_usage._Sent, "accepted", 0)
    receiver = Receiver()
    async with Relay(database.dsn, receiver, batch_max=1, lanes_max=4) as relay:
        await add(database.dsn, 3)
        await turn_through(relay)
        receiver.poison = {(await add(database.dsn, 4, 3))[-1]}
        async with relay.pool.acquire() as connection:
            for _ in range(ASIDE_IN_A_ROW):
                await outbox.set_aside(connection, relay.name, relay.now)
        relay.pages._asked = True  # the page's own turn
        await relay.pages.turn()
        assert len(receiver.arrived) == 6
        assert await relay.rows_of(OUT) == (0 if heard else 1)


@pytest.mark.parametrize("begins", [1, 400], ids=["as it is", "control"])
async def test_who_takes_over_in_an_outage_marks_few_as_sent(database: Database, begins: int) -> None:
    receiver = Receiver()
    new = await add(database.dsn, 300)
    async with Relay(database.dsn, receiver) as relay:
        receiver.full = True
        await go(relay, HOUR)
        assert await relay.rows_of(OUT) == 1
        relay.restart()
        relay.pages._limit = begins
        before = len(receiver.calls)
        await go(relay, 20 * MINUTE)
        sent = {event_id for ids in receiver.calls[before:] for event_id in ids}
        assert (len(sent) < 20) == (begins == 1) and sent <= set(new)


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


@pytest.mark.parametrize("tries", [deliver_usage._UNBUILT_MAX, 1], ids=["as it is", "control"])
async def test_what_we_cannot_build_is_no_other_event(
    database: Database, monkeypatch: pytest.MonkeyPatch, tries: int
) -> None:
    monkeypatch.setattr(deliver_usage, "_UNBUILT_MAX", tries)
    receiver = Receiver()
    bad = await add(database.dsn, BAD)
    receiver.poison = set(bad)
    receiver.unbuilt = set((await add(database.dsn, 80, BAD, "library.entry"))[:5])
    async with Relay(database.dsn, receiver) as relay:
        while await relay.rows_of("outbox_held") < BAD:
            await go(relay, MINUTE)
        found = bad[ASIDE_IN_A_ROW]
        assert (receiver.calls[: receiver.calls.index([bad[-1]])].count([found]) == 1) == (tries > 1)


async def test_where_we_can_build_no_other_event_the_first_has_its_tries(database: Database) -> None:
    receiver = Receiver()
    receiver.poison = set(await add(database.dsn, BAD))
    receiver.unbuilt = set(await add(database.dsn, 400, BAD))
    async with Relay(database.dsn, receiver) as relay:
        await go(relay, 4 * HOUR)
        assert ASIDE_IN_A_ROW + 2 < await relay.rows_of("outbox_held") <= BAD
        assert len(receiver.calls) < 1000


async def test_a_proof_is_of_the_event_that_goes_again(database: Database) -> None:
    """When the feed has come up to it, a duplicate of another one shows nothing."""
    await add(database.dsn, 3)
    async with Relay(database.dsn, Receiver()) as relay:
        pages = relay.pages
        async with pages._delivery.look() as (connection, standing):
            first, proof, other = await usage_events.page(connection, standing.cursor, 3)
        pages._once_more, pages._proved_at = proof, relay.now
        assert pages._again(first) is proof
        assert pages._again(proof) is None
        pages._learn(other, Approved(facts={"duplicates": 1, "refused": []}))
        assert pages._proved_at is None
