"""The points ledger in tests: people with cards, and the proof that nothing was made or lost."""

import datetime as dt
import os
import time
from typing import TYPE_CHECKING
from uuid import UUID

from gateway.domain.ids import uuid7
from gateway.store.ledger_check import check
from tests.registry import add_sources

if TYPE_CHECKING:
    from gateway.store.pool import Connection


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


async def broken_rules(connection: "Connection") -> dict[str, tuple[str, ...]]:
    """What `ledger check` finds: the offending ids by their rule."""
    _, findings = await check(connection)
    return {finding.rule: finding.ids for finding in findings}
