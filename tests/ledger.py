"""The points ledger in tests: people with cards, and the proof that nothing was made or lost."""

import datetime as dt
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg

from gateway.crypto.key_files import open_folder
from gateway.domain.cards import CardStatus
from gateway.domain.ids import uuid7
from gateway.domain.points import ISSUED, TransferKind, expires_on
from gateway.flows.earn_points import EarnFigures, EarnPoints, Use
from gateway.store import points
from gateway.store.ledger_check import check
from gateway.store.payments import created_at
from gateway.store.points import Transfer
from tests.registry import TODAY, TestCard, add_cards, add_sources, new_card
from tests.running import Running

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection, Connection


def new_id(unix_ms: int | None = None) -> UUID:
    """A UUIDv7."""
    return UUID(bytes=uuid7(unix_ms or time.time_ns() // 1_000_000, os.urandom(10)))


async def add_people(connection: "Connection", count: int) -> dict[UUID, UUID]:
    """People with a card each, as the owner of the tables: card -> person. Nothing in them can be opened."""
    await add_sources(connection)
    people = {new_id(): new_id() for _ in range(count)}
    cards, persons = list(people), list(people.values())
    await connection.execute(
        "INSERT INTO person SELECT id, sm3, sm3, 1960, '武原' FROM unnest($1::uuid[], $2::bytea[]) AS p(id, sm3)",
        persons, [os.urandom(16) for _ in persons],
    )  # fmt: skip
    await connection.execute(
        "INSERT INTO card SELECT id, person, chip, chip, chip, chip, chip, 3, 1, now(), current_date, $4, '330424', 1"
        " FROM unnest($1::uuid[], $2::uuid[], $3::bytea[]) AS c(id, person, chip)",
        cards, persons, [os.urandom(16) for _ in cards], dt.date(2040, 1, 1),
    )  # fmt: skip
    return people


async def open_points(connection: "Connection", people: dict[UUID, UUID], amount: int, lots: int = 1) -> None:
    """The same for each of them (card -> person), in lots of different months."""
    await points.open_accounts(connection, people)
    async with connection.transaction():
        await points.lock(connection, people.values())
        parts = [amount // lots + (part < amount % lots) for part in range(lots)]
        for part, share in enumerate(parts):
            transfers = [_opening(card_id, person_id, share) for card_id, person_id in people.items()]
            on = expires_on(TODAY, 24 + part)
            await points.add_to_lots(connection, {(person_id, on): share for person_id in people.values()})
            await points.post(connection, transfers)


def _opening(card_id: UUID, person_id: UUID, share: int) -> Transfer:
    transfer_id = new_id()
    return Transfer(
        transfer_id, created_at(transfer_id), TransferKind.OPEN, person_id, card_id, ISSUED, share, TODAY
    )  # fmt: skip


async def earn(connection: "AnyConnection", flow: EarnPoints, uses: Sequence[Use]) -> EarnFigures:
    """What `flow` does with them, and of what returned usage writes in the same transaction all that the ledger minds.

    A use is reversed once, by its holder. Nor does one that earned nothing earn later, as it may here.
    """
    await connection.execute(
        "INSERT INTO usage_return SELECT 'test', id::text, id, 0, now() FROM unnest($1::uuid[]) AS u(id)"
        " ON CONFLICT DO NOTHING",
        [use.event_id for use in uses],
    )  # fmt: skip
    figures = await flow.earn(connection, uses)
    reversals = [use for use in uses if use.reverses is not None]
    await connection.execute(
        "INSERT INTO usage_reversal SELECT original, reversal"
        " FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) WITH ORDINALITY AS r(original, reversal, person_id, item)"
        " WHERE EXISTS (SELECT FROM points_transfer t"
        "               WHERE t.transfer_id = original AND t.kind = 'earn' AND t.person_id = r.person_id)"
        " ORDER BY item ON CONFLICT DO NOTHING",
        [use.reverses for use in reversals], [use.event_id for use in reversals],
        [use.person_id for use in reversals],
    )  # fmt: skip
    return figures


async def persons_of(connection: "AnyConnection", card_ids: Sequence[UUID]) -> dict[UUID, UUID]:
    """The holders of cards."""
    rows = await connection.fetch("SELECT card_id, person_id FROM card WHERE card_id = ANY($1)", list(card_ids))
    return {row[0]: row[1] for row in rows}


async def add_holder(gateway: Running, amount: int, status: CardStatus = CardStatus.NORMAL) -> TestCard:
    """A card of its own for one test, whose holder has points."""
    dsn, card = gateway.environment["DATABASE_URL"], new_card(status)
    (card_id,) = await add_cards(dsn, open_folder(gateway.data_dir / "keys"), (card,))
    connection = await asyncpg.connect(dsn)
    try:
        persons = await persons_of(connection, [card_id])
        if amount:
            await open_points(connection, persons, amount, lots=2)
    finally:
        await connection.close()
    return card


async def rules_broken_at(dsn: str) -> dict[str, tuple[str, ...]]:
    connection = await asyncpg.connect(dsn)
    try:
        return await broken_rules(connection)
    finally:
        await connection.close()


async def broken_rules(connection: "Connection") -> dict[str, tuple[str, ...]]:
    """What `ledger check` finds: the offending ids by their rule."""
    _, findings = await check(connection)
    return {finding.rule: finding.ids for finding in findings}
