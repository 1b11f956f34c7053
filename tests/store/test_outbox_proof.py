"""That a subscriber is up is shown only by what it takes as new: a duplicate or a refusal puts no event at fault."""

import pytest

from gateway.domain.outbox import Acknowledgement
from gateway.flows import deliver_usage
from gateway.flows.deliver_usage import ASIDE_IN_A_ROW, DeliverPages, _Other
from gateway.store import outbox, usage_events
from tests.conftest import Database
from tests.store.test_outbox_outage import HOUR, MINUTE, go
from tests.subscribers import Events, Receiver, Relay, add_events, by_card, logged, turn_through

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


async def in_outage(relay: Relay) -> None:
    """As if so many had been set aside."""
    async with relay.pool.acquire() as connection:
        for _ in range(ASIDE_IN_A_ROW):
            await outbox.set_aside(connection, relay.name, relay.now)


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
        assert len(receiver.calls) < tried + 250 or not strict, "with a pause after each turn"
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
        await in_outage(relay)
        relay.pages._firsts_turn = True  # no other event goes
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


async def test_no_more_are_passed_over_while_the_first_one_cannot_leave(database: Database) -> None:
    receiver = Receiver()
    first = await add(database.dsn, 1)
    receiver.unbuilt = set(await add(database.dsn, 40, 1))
    async with Relay(database.dsn, receiver) as relay:
        await in_outage(relay)
        receiver.reached = False
        for _ in range(5):
            assert await relay.pages.turn() > 0
        assert len(receiver.calls) == deliver_usage._UNBUILT_MAX
        receiver.reached = True
        await relay.pages.turn()
        assert receiver.calls[-1] == first


@pytest.mark.parametrize("left", [False, True], ids=["as it is", "control"])
async def test_one_that_did_not_leave_is_no_proof_any_more(database: Database, left: bool) -> None:
    receiver = Receiver()
    bad = await add(database.dsn, 5)
    receiver.poison = set(bad)
    good = await add(database.dsn, 1, 5, "library.entry")
    async with Relay(database.dsn, receiver) as relay:
        await in_outage(relay)
        await relay.pages.turn()
        assert receiver.calls == [good, bad[:1]]
        assert await relay.rows_of("outbox_held") == 1
        receiver.reached = left
        await relay.pages.turn()
        receiver.reached = True
        await relay.pages.turn()
        assert receiver.calls[-2] == good
        assert await relay.rows_of("outbox_held") == (3 if left else 1)


@pytest.mark.parametrize("kept", [True, False], ids=["as it is", "control"])
async def test_a_proof_is_of_an_event_that_is_ahead(
    database: Database, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """When the feed has come up to it, neither its own duplicate nor that of another shows anything."""
    if not kept:
        monkeypatch.setattr(_Other, "may_go", lambda self, first, now: True)
    receiver = Receiver()
    bad, good = await add(database.dsn, 2)
    (there,) = await add(database.dsn, 1, 2, "library.entry")
    receiver.poison = {bad}
    async with Relay(database.dsn, receiver) as relay:
        await in_outage(relay)
        receiver.silent = True
        await relay.pages.turn()
        assert receiver.arrived[-1][0] == there
        receiver.silent = False
        while await relay.rows_of("outbox_held") == 0:
            await relay.pages.turn()
            relay.now += MINUTE / 6
        assert receiver.arrived[-1][0] == good
        await relay.pages.turn()
        assert receiver.calls[-2:] == [[there if kept else good], [good]]
        assert await relay.rows_of(OUT) == (1 if kept else 0)


async def test_what_waits_behind_its_card_shows_nothing(database: Database) -> None:
    receiver = Receiver()
    await add_events(database.dsn, Events(2, 1), transactions=1, start=1)
    receiver.poison = {(await logged(database.dsn))[0][0]}
    await add(database.dsn, 1, 3, "library.entry")
    async with Relay(database.dsn, receiver) as relay:
        await in_outage(relay)
        for aside in (1, 2):
            await relay.pages.turn()
            assert await relay.rows_of("outbox_held") == aside
        assert await relay.rows_of(OUT) == 1
