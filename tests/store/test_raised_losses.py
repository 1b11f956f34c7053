"""Who takes back what: lives of cards that several callers report and release, beside a model of a few lines.

Whoever raises another's temporary loss to a formal one and releases that leaves the card as lost as it was before:
else a caller with a found card would open it again by two requests.
"""

import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid4

import msgspec
import pytest

from gateway.crypto.key_store import KeyStore
from gateway.domain.cards import CardStatus, LossKind
from gateway.domain.masking import Secret
from gateway.flows.effects import Asked, Done
from gateway.flows.report_loss import Release, ReleaseLoss, Report, ReportLoss
from gateway.flows.tell_bank import TellBank
from gateway.settings import load
from gateway.store import operations
from gateway.store.losses import Wanted
from gateway.store.pool import FOR_EFFECTS, connect
from tests.conftest import Database
from tests.ledger import new_id
from tests.registry import add_cards, new_card

if TYPE_CHECKING:
    from gateway.store.pool import Connection

CALLERS = ("demo-kiosk", "demo-bank", "demo-bureau")
LIVES, STEPS, TOGETHER_MAX = 150, 12, 4
NORMAL, TEMPORARY, FORMAL = CardStatus.NORMAL, CardStatus.LOST_TEMPORARY, CardStatus.LOST_FORMAL
NO_BANK = TellBank(cast(Any, None), cast(Any, None), cast(Any, None), load({}).gateway.losses)


class Model:
    """Of one card: whose report made it lost, and whose raised that to a formal loss."""

    def __init__(self, registry: CardStatus) -> None:
        self.status = registry
        self._lost: UUID | None = None
        self._raised: UUID | None = None

    def report(self, reference: UUID, kind: LossKind) -> str:
        if self.status is NORMAL:
            self._lost, self.status = reference, TEMPORARY if kind is LossKind.TEMPORARY else FORMAL
        elif self.status is TEMPORARY and kind is LossKind.FORMAL:
            self._raised, self.status = reference, FORMAL
        return "accepted"

    def release(self, reference: UUID) -> str:
        if self.status is NORMAL:
            return "released"
        if reference != (self._raised or self._lost):
            return "refused"
        if self._raised:
            self._raised, self.status = None, TEMPORARY
        else:
            self._lost, self.status = None, NORMAL
        return "released"


class Card:
    """A card in the database, beside its model."""

    def __init__(self, connection: "Connection", card_id: UUID, registry: CardStatus) -> None:
        self._connection = connection
        self._wanted = Wanted(card_id=card_id)
        self.model = Model(registry)
        self.reports: list[tuple[str, UUID]] = []

    async def report(self, asked: list[tuple[str, LossKind]]) -> list[tuple[str, str]]:
        """In one transaction: (what the gateway says, what the model says) of each, with the status."""
        batch = [Asked(who, new_id(), Report(self._wanted, kind), str(uuid4())) for who, kind in asked]
        said = await self._perform(ReportLoss(NO_BANK), batch)
        self.reports += [(each.caller_id, each.reference) for each in batch]
        expected = [(self.model.report(each.reference, each.what.kind), self.model.status) for each in batch]
        return list(zip(said, [f"{word} {status.name.lower()}" for word, status in expected], strict=True))

    async def release(self, asked: list[tuple[str, UUID]]) -> list[tuple[str, str]]:
        batch = [Asked(who, new_id(), Release(reference), str(uuid4())) for who, reference in asked]
        said = await self._perform(ReleaseLoss(NO_BANK), batch)
        expected = []
        for _, reference in asked:
            word = self.model.release(reference)
            expected.append("refused other_report" if word == "refused" else f"{word} {self.model.status.name.lower()}")
        return list(zip(said, expected, strict=True))

    async def _perform(self, kind: ReportLoss | ReleaseLoss, batch: list[Asked]) -> list[str]:
        async with self._connection.transaction():
            ended = await kind.perform(self._connection, batch)
            done = [each for each in ended if isinstance(each, Done)]
            assert len(done) == len(batch)
            await operations.record(self._connection, [each.operation for each in done if each.operation], {})
        sides = [msgspec.json.decode(each.answer.body)["social_security"] for each in done]
        return [f"{side['status']} {side.get('reason') or side['card_status']}" for side in sides]


@pytest.fixture
async def connection(database: Database, keys: KeyStore) -> "AsyncIterator[Connection]":
    made = await connect(Secret(database.dsn), load({}).gateway.database, "losses", FOR_EFFECTS)
    yield made
    await made.close()


async def test_nobody_takes_back_what_another_has_said(
    database: Database, keys: KeyStore, connection: "Connection"
) -> None:
    chance = random.Random(20261127)
    statuses = [chance.choice((NORMAL, NORMAL, TEMPORARY, FORMAL)) for _ in range(LIVES)]
    ids = await add_cards(database.dsn, keys, tuple(new_card(status) for status in statuses))
    seen: Counter[str] = Counter()
    for card_id, registry in zip(ids, statuses, strict=True):
        card = Card(connection, card_id, registry)
        for _ in range(STEPS):
            count = chance.randint(1, TOGETHER_MAX)
            if not card.reports or chance.random() < 0.5:
                said = await card.report(
                    [(chance.choice(CALLERS), chance.choice(list(LossKind))) for _ in range(count)]
                )
            else:
                said = await card.release([chance.choice(card.reports[-5:]) for _ in range(count)])
            for by_us, by_the_model in said:
                assert by_us == by_the_model
                seen[by_us] += 1
    assert set(seen) == {
        "accepted lost_temporary", "accepted lost_formal", "released normal", "released lost_temporary",
        "refused other_report",
    }  # fmt: skip
