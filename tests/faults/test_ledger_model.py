"""Promise 4: whatever is earned, reversed, reserved, committed, cancelled, repeated and expired in whatever order, on a
real PostgreSQL: the ledger is what a few lines in memory say it is (reliability.md §5.3).

A few runs here; 5 000 runs of 50 steps with `make faults`.
"""

import asyncio
import datetime as dt
import itertools
import json
import time
from collections.abc import Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from gateway.crypto.blind_index import BlindIndex
from gateway.crypto.key_files import create_missing
from gateway.crypto.key_store import KeyUse
from gateway.crypto.key_watch import KeyWatch
from gateway.domain.errors import Problem
from gateway.domain.masking import Secret
from gateway.domain.points import REDEEMED, take
from gateway.domain.times import CHINA
from gateway.flows import redeem_points
from gateway.flows.data_keys import DataKeys
from gateway.flows.earn_points import EarnPoints, Use
from gateway.flows.effects import Effects, Ended, Kind
from gateway.flows.expire_points import ExpirePoints, end_reservations
from gateway.flows.redeem_points import CancelRedemption, CommitRedemption, End, ReservePoints, Wish
from gateway.settings import load
from gateway.store import idempotency, points
from gateway.store.pool import FOR_EFFECTS, Pool, connect
from gateway.store.verify import Presented
from tests.conftest import Database
from tests.faults.points_model import RULES, Event, Model, Person
from tests.ledger import add_people, broken_rules, earn, new_id
from tests.running import MANY

RUNS, STEPS = (5_000, 50) if MANY else (20, 16)
PEOPLE = 3
HOUR = dt.timedelta(hours=1)
FIRST_DAY = dt.date(2026, 11, 20)
FIRST_EXPIRY = dt.date(2028, 9, 20)  # of what is earned at the beginning: one month is over, three are to come
T = TypeVar("T")

_PERSON = st.integers(0, PEOPLE - 1)
_EVENTS = st.one_of(
    st.tuples(st.just("use"), _PERSON, st.sampled_from(["till", "bus"]), st.integers(0, 9000), st.integers(0, 5)),
    st.tuples(st.sampled_from(["again", "reverse"]), st.integers(0, 30)),
)
_RESERVE = st.tuples(
    st.just("reserve"), _PERSON, st.sampled_from([5, 20, 45]), st.sampled_from([False, False, False, True])
)
_BATCH = st.lists(
    st.one_of(
        _RESERVE,
        st.tuples(st.sampled_from(["commit", "commit", "cancel"]), st.integers(0, 4)),
        st.tuples(st.sampled_from(["replay", "reuse"]), st.integers(0, 30)),
    ),
    min_size=1, max_size=6,
)  # fmt: skip
_LOST = st.sampled_from([None, None, None, *range(PEOPLE)])
_keys = itertools.count()


class Asked(NamedTuple):
    """One effect: reserve (person, points, late) or commit or cancel (place of a redemption)."""

    name: str
    first: int
    points: int = 0
    late: bool = False


class House:
    """The real parts: Effects with its batches, the kinds, earning and expiry."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self.runner = asyncio.Runner()
        self.run(self._open(dsn, folder))

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(main)

    async def _open(self, dsn: str, folder: Path) -> None:
        config = load({"DATA_DIR": str(folder)}).gateway
        create_missing(folder / "keys")
        watch = KeyWatch(folder / "keys", lambda _: None)
        self.pool = Pool(Secret(dsn), config.database, "test")
        await self.pool.open()
        self.owner = await asyncpg.connect(dsn)
        self.app = await connect(Secret(dsn), config.database, "test", FOR_EFFECTS)
        self.effects = Effects(
            partial(connect, Secret(dsn), config.database, "test", FOR_EFFECTS),
            DataKeys(self.pool, watch, "AES-256-GCM"), BlindIndex(watch.store.working_keys(KeyUse.INDEX)[-1]),
            batch_max=128, queue_max=128, deadline_s=10, on_batch=lambda _: None,
        )  # fmt: skip
        self.serving = asyncio.create_task(self.effects.serve())
        self.expire = ExpirePoints(self.pool)
        self.earn = EarnPoints(lambda: RULES)
        self.kinds: dict[str, Kind] = {
            "reserve": ReservePoints(dt.timedelta(days=1), 10), "commit": CommitRedemption(),
            "cancel": CancelRedemption(),
        }  # fmt: skip

    async def _close(self) -> None:
        self.serving.cancel()
        await asyncio.gather(self.serving, return_exceptions=True)
        await self.app.close()
        await self.owner.close()
        await self.pool.close()

    def close(self) -> None:
        self.run(self._close())
        self.runner.close()


class Ledger(RuleBasedStateMachine):
    """The model and the real one, step by step."""

    house: House

    @initialize()
    def begin(self) -> None:
        people = self.house.run(add_people(self.house.owner, PEOPLE))
        self.cards, self.persons = list(people), list(people.values())
        self.model = Model([Person() for _ in people])
        self.uses: list[Use] = []
        self.references: list[UUID] = []
        self.kept: list[tuple[str, Asked, bytes]] = []
        """(key, what it was used for, its answer)."""
        self.today = FIRST_EXPIRY
        self.use([("use", person, "till", 4500, back) for person in range(PEOPLE) for back in (0, 2, 4, 6)])
        self.time_passes(0)  # the oldest has expired
        self.at_once([("reserve", person, 20, False) for person in range(PEOPLE)], None)

    @rule(batch=st.lists(_EVENTS, min_size=1, max_size=5))
    def events(self, batch: list[tuple[Any, ...]]) -> None:
        self.use(batch)

    def use(self, batch: list[tuple[Any, ...]]) -> None:
        places = []
        for what, *given in batch:
            if what == "use":
                person, scene, fen, back = given
                places.append(self._event(Event(person, scene, fen, FIRST_DAY - dt.timedelta(days=20 * back))))
            elif self.uses and what == "again":
                places.append(given[0] % len(self.uses))
            elif self.uses:
                place = given[0] % len(self.uses)
                if (event := self.model.events[place]).reverses is None:
                    places.append(self._event(event._replace(reverses=place)))

        async def take_up() -> None:
            async with self.house.app.transaction():
                await earn(self.house.app, self.house.earn, [self.uses[place] for place in places])

        if self.model.use(places):
            self.house.run(take_up())
        else:
            with pytest.raises(asyncpg.UniqueViolationError):
                self.house.run(take_up())
        self.compare()

    def _event(self, event: Event) -> int:
        reverses = None if event.reverses is None else self.uses[event.reverses].event_id
        noon = dt.datetime.combine(event.day, dt.time(12), CHINA)
        card_id, person_id = self.cards[event.person], self.persons[event.person]
        self.uses.append(Use(new_id(), card_id, person_id, event.scene, event.fen, noon, reverses))
        self.model.events.append(event)
        return len(self.uses) - 1

    def at_once(self, batch: list[tuple[Any, ...]], lost: int | None) -> None:
        """Each either new, or with a key that was used before, for the same or for something else; one card is lost."""
        if lost is not None:
            self._set_card(lost, False)
        self._at_once(batch)
        if lost is not None:
            self._set_card(lost, True)
        self.compare()

    # there is more to them than to the others: twice as often
    effects = rule(batch=_BATCH, lost=_LOST)(at_once)
    more_effects = rule(batch=_BATCH, lost=_LOST)(at_once)

    def _at_once(self, batch: list[tuple[Any, ...]]) -> None:
        wanted: list[tuple[str, Asked]] = []
        for what, *given in batch:
            if what == "reserve":
                wanted.append((f"key-{next(_keys)}", Asked(what, *given)))
            elif what in ("commit", "cancel"):
                if self.references:
                    place = max(len(self.references) - 1 - given[0], 0)  # one of the last: it may be open
                    wanted.append((f"key-{next(_keys)}", Asked(what, place)))
            elif self.kept:
                key, asked, _ = self.kept[given[0] % len(self.kept)]
                wanted.append((key, asked if what == "replay" else Asked("reserve", 0, 1234)))

        async def ask() -> list[Ended | Problem]:
            return await asyncio.gather(*(self._ask(key, asked) for key, asked in wanted))

        answers = self.house.run(ask())
        # a key that is asked for twice at once is told so; the others run by kind, in their order
        seen: set[str] = set()
        order = []
        for place, (key, _) in enumerate(wanted):
            if key in seen:
                assert _code(answers[place]) == "idempotency_key_in_use"
            else:
                order.append(place)
            seen.add(key)
        for place in sorted(order, key=lambda place: self.house.kinds[wanted[place][1].name].name):
            self._expect(*wanted[place], answers[place])

    async def _ask(self, key: str, asked: Asked) -> Ended | Problem:
        what: Any = None
        if asked.name == "reserve":
            presented = Presented(
                str(new_id()), "", str(self.cards[asked.first]), "kiosk", "points.redeem", "outlet",
                str(time.time_ns() // 1000), "14", "", "",
            )  # fmt: skip
            what = Wish(presented, asked.points, "item", "outlet", REDEEMED, -HOUR if asked.late else HOUR)
        else:
            what = End(self.references[asked.first])
        try:
            return await self.house.effects.run(self.house.kinds[asked.name], "kiosk", key, repr(asked).encode(), what)
        except Problem as problem:
            return problem

    def _expect(self, key: str, asked: Asked, found: Ended | Problem) -> None:
        for known, before, body in self.kept:
            if known == key:
                if before == asked:
                    assert isinstance(found, Ended) and found.replayed and found.answer.body == body
                else:
                    assert _code(found) == "idempotency_key_reused"
                return
        if asked.name == "reserve":
            redemption = self.model.reserve(asked.first, asked.points, asked.late)
        else:
            if not self.model.end(asked.first, {"commit": "committed", "cancel": "cancelled"}[asked.name]):
                assert _code(found) == "redemption_state"
                return
            redemption = self.model.redemptions[asked.first]
        assert isinstance(found, Ended) and not found.replayed, found
        answer, person = json.loads(found.answer.body), self.model.people[redemption.person]
        assert answer["status"] == redemption.state
        if person.good or asked.name != "reserve":
            assert (answer["balance"], answer["available"]) == (person.balance, person.available)
        if asked.name == "reserve":
            self.references.append(UUID(answer["reference"]))
        self.kept.append((key, asked, found.answer.body))

    @rule(days=st.integers(0, 14))
    def time_passes(self, days: int) -> None:
        """Reservations whose time is over end; the day moves on, and with it lots expire."""
        self.today += dt.timedelta(days=days)

        async def expire() -> None:
            async with self.house.app.transaction():
                await end_reservations(self.house.app)
            async with self.house.app.transaction():
                await self.house.expire.end_lots(self.house.app, self.today)
            await points.sweep_lots(self.house.app, self.today, 500)

        self.house.run(expire())
        for place in range(len(self.model.redemptions)):
            self.model.end(place, "expired")
        for person in self.model.people:
            person.expire(self.today)
        self.compare()

    def _set_card(self, person: int, good: bool) -> None:
        self.model.people[person].good = good
        status = "UPDATE card SET status = $2 WHERE card_id = $1"
        self.house.run(self.house.owner.execute(status, self.cards[person], 1 if good else 4))

    def compare(self) -> None:
        accounts = self.house.run(points.lock(self.house.app, self.persons))
        lots = self.house.run(points.lots_of(self.house.app, self.persons))
        for person_id, person in zip(self.persons, self.model.people, strict=True):
            held = accounts.get(person_id, points.Account(0, 0))
            assert tuple(held) == (person.balance, person.reserved)
            found = {lot.expires_on: lot.remaining for lot in lots.get(person_id, ())}
            assert found == {on: amount for on, amount in person.lots.items() if amount}

    def teardown(self) -> None:
        if self.__dict__.get("persons") and not MANY:  # with many, the table grows: once, at the end
            assert self.house.run(broken_rules(self.house.owner)) == {}


def _code(found: Ended | Problem) -> str:
    assert isinstance(found, Problem), found
    return found.code


@pytest.fixture
def house(database: Database, tmp_path: Path) -> Iterator[House]:
    made = House(database.dsn, tmp_path)
    yield made
    made.close()


def play(house: House, runs: int, phases: tuple[Phase, ...] = tuple(Phase)) -> None:
    machine = type("Ledger", (Ledger,), {"house": house})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=runs, stateful_step_count=STEPS, deadline=None, derandomize=not MANY, print_blob=MANY,
            phases=phases, suppress_health_check=list(HealthCheck), database=None,
        ),
    )  # fmt: skip


def test_the_ledger_does_what_the_model_does(house: House) -> None:
    play(house, RUNS)
    assert house.run(broken_rules(house.owner)) == {}


def _last_in_first_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redeem_points, "take", lambda lots, amount: take(lots, amount, dt.date.max))


def _keys_that_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    async def claim(connection: Any, keys: Any, fingerprints: Any) -> set[idempotency.KeyOf]:
        return set(keys)

    monkeypatch.setattr(idempotency, "claim", claim)


def _expired_and_then_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def expired_after(connection: Any, earnings: Any) -> dict[UUID, int]:
        return {transfer.transfer_id: 0 for transfer, _ in earnings}

    monkeypatch.setattr(points, "expired_after", expired_after)


@pytest.mark.parametrize("plant", [_last_in_first_out, _keys_that_are_not_looked_at, _expired_and_then_taken_back])
def test_control_a_ledger_that_does_not_is_noticed(house: House, monkeypatch: pytest.MonkeyPatch, plant: Any) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, ExceptionGroup)):
        play(house, 50, (Phase.generate,))
