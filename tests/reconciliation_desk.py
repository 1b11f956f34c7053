"""A desk that settles at a simulated bank and reconciles with it.

The days are not today's: the bank goes by the time in a reference, which it is told with each message.
"""

import asyncio
import csv
import datetime as dt
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest

from gateway.domain.ids import uuid7
from gateway.domain.masking import Secret
from gateway.domain.operations import CheckFile, Operation, QueryStatus
from gateway.domain.outcome import Approved, DeclineCode, Declined, Outcome, Unknown
from gateway.domain.payments import PaymentKind, PaymentState
from gateway.domain.times import CHINA
from gateway.flows.reconcile_bank import ReconcileBank
from gateway.flows.settle_payment import Banks, SettlePayment, banks_of
from gateway.flows.write_outcomes import WriteOutcomes
from gateway.metrics import RECONCILED_DAY
from gateway.settings import load
from gateway.store import payments
from gateway.store.payments import Move, Payment
from gateway.store.pool import FOR_EFFECTS, Pool, connect
from tests.bank import give_account
from tests.conftest import Database
from tests.keyed import keyed
from tests.partners.peers import partners
from tests.registry import add_cards, new_card
from tests.simulated_banks import JIAXING, banks
from tests.store.test_payments import LEASE

_K, _S = PaymentKind, PaymentState
NEW = "bank-jiaxing-new"
"""Another partner of the bank: its file has those lines of the one simulated bank that were made through it."""
FRIDAY = dt.datetime.now(CHINA).date() + dt.timedelta(days=1)
"""Whatever day of the week it is."""


def day(number: int) -> dt.date:
    return FRIDAY + dt.timedelta(days=number)


def at(number: int, hour: int = 12) -> dt.datetime:
    return dt.datetime.combine(day(number), dt.time(hour), CHINA)


def whole() -> dt.date:
    """The last day up to which the gauge knows of no gap."""
    return dt.datetime.fromtimestamp(RECONCILED_DAY.labels(JIAXING)._value.get(), CHINA).date()


class Desk:
    """Settles at the simulated bank, and reconciles with it; it can be told to lie or to give no file."""

    def __init__(self, reached: Banks, folder: Path) -> None:
        self._reached = reached
        self.folder = folder
        self.lies: dict[type[Operation], Outcome] = {}
        """What is answered to these: they do not come to the bank."""
        self.loses: set[type[Operation]] = set()
        """The bank does these, and its answer is lost."""
        self.closed: Collection[dt.date] = ()
        """Of these days it has no file."""
        self.begun: set[str] = set()
        """The bank has lines of other tests too."""
        self.routes = {JIAXING: JIAXING}
        self.through: str | None = None
        """The partner of what is begun."""
        self.by_new: set[str] = set()
        self.fileless: set[str] = set()
        """Partners without a check file."""
        self.one_file = False
        """The bank gives its whole day to whoever asks."""
        self.asked: list[dt.date] = []
        """The files that it was asked for."""
        self.settle: SettlePayment
        self.pool: Pool
        self.card_id: UUID
        self.account: bytes

    async def ask(self, name: str, operation: Operation, deadline_s: float) -> Outcome:
        if isinstance(operation, CheckFile):
            self.asked.append(operation.day)
            if operation.day in self.closed:
                return Declined(DeclineCode.NOT_FOUND)
        if type(operation) in self.lies:
            return self.lies[type(operation)]
        outcome = await self._reached.ask(JIAXING, operation, deadline_s)
        if isinstance(operation, CheckFile) and isinstance(outcome, Approved) and not self.one_file:
            everything = outcome.facts["lines"]
            assert isinstance(everything, list)
            lines = [line for line in everything if (line["reference"] in self.by_new) == (name == NEW)]
            return Approved(facts={"lines": lines})
        return Unknown("lost") if type(operation) in self.loses else outcome

    def can(self, name: str, kind: type[Operation]) -> bool:
        if kind is QueryStatus or (kind is CheckFile and name in self.fileless):
            return False
        return self._reached.can(JIAXING, kind)

    def flow(self, kind: type[ReconcileBank] = ReconcileBank) -> ReconcileBank:
        settings = msgspec.structs.replace(load({}).gateway.payments, routes=self.routes)
        return kind(self.pool, Banks(self.ask, self.can), settings, self.folder)

    async def begin(self, when: dt.datetime, parent: Payment | None = None, state: PaymentState = _S.INTENT) -> Payment:
        """A payment, or the reversal of one, as its request leaves it."""
        reference = UUID(bytes=uuid7(int(when.timestamp() * 1000), uuid4().bytes[:10]))
        made = Payment(
            reference, payments.created_at(reference), _K.REVERSAL if parent else _K.PAYMENT, "demo-merchant",
            str(reference), str(reference), "T-1", parent and parent.reference, self.card_id, JIAXING, self.account,
            100, parent.trace if parent else reference.int % 899_999 + 1, state,
            partner=parent.partner if parent else self.through,
        )  # fmt: skip
        async with self.pool.acquire() as connection:
            await payments.insert(connection, [made], LEASE)
        self.begun.add(str(reference))
        if made.partner == NEW:
            self.by_new.add(str(reference))
        return made

    async def settled(self, when: dt.datetime, parent: Payment | None = None) -> Payment:
        """begin(), and the answer of the bank."""
        made = await self.begin(when, parent)
        await self.settle.first(made)
        return await self.now(made)

    async def move(self, payment: Payment, before: PaymentState, after: PaymentState) -> None:
        async with self.pool.acquire() as connection:
            assert await payments.move(connection, Move(payment, (before,), after, None, LEASE))

    async def now(self, payment: Payment) -> Payment:
        async with self.pool.acquire() as connection:
            found = await payments.find(connection, payment.reference)
        assert found is not None
        return found

    async def findings(self, day: dt.date, kind: type[ReconcileBank] = ReconcileBank) -> dict[str, str]:
        """Of a day's report, by reference: what was begun here."""
        flow = self.flow(kind)
        report = await flow.ask(JIAXING, day)
        with report.files[0].open(encoding="utf-8", newline="") as stream:
            found = {row["reference"]: row["finding"] for row in csv.DictReader(stream)}
        return {reference: finding for reference, finding in found.items() if reference in self.begun}

    def reports(self) -> list[dt.date]:
        return sorted(dt.date.fromisoformat(file.stem[-10:]) for file in self.folder.rglob("*.json"))


@asynccontextmanager
async def banks_reached(folder: Path) -> AsyncIterator[Banks]:
    async with banks(folder) as both, partners(folder, both.blocks(timeout_ms=2000)) as made:
        yield banks_of(made)


@asynccontextmanager
async def desk_of(database: Database, folder: Path, reached: Banks) -> AsyncIterator[Desk]:
    made = Desk(reached, folder / "data")
    config = load({}).gateway
    connected = partial(connect, Secret(database.dsn), config.database, "test", FOR_EFFECTS)
    async with keyed(database.dsn, folder / "keys") as (made.pool, data_keys, store):
        (made.card_id,) = await add_cards(database.dsn, store, (new_card(),))
        await give_account(database.dsn, store, made.card_id, JIAXING)
        async with made.pool.acquire() as connection:
            await data_keys.current(connection, ("answers", "operations"))
            made.account = (await payments.accounts(connection, [made.card_id]))[made.card_id].account_sealed
        outcomes = WriteOutcomes(connected, data_keys)
        serving = asyncio.create_task(outcomes.serve())
        # an operation of a day that is gone is still its request's
        patient = msgspec.structs.replace(config.payments, deadline_ms=30 * 86_400_000)
        made.settle = SettlePayment(made.pool, data_keys, outcomes, Banks(made.ask, made.can), patient)
        try:
            yield made
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


@pytest.fixture(scope="module")
async def at_bank(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Banks]:
    async with banks_reached(tmp_path_factory.mktemp("banks")) as reached:
        yield reached


@pytest.fixture
async def desk(database: Database, tmp_path: Path, at_bank: Banks) -> AsyncIterator[Desk]:
    async with desk_of(database, tmp_path, at_bank) as made:
        yield made
