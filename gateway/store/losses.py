"""Cards that are reported lost or released: found, locked in the order of their ids, changed."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from gateway.domain.cards import LOST, CardStatus, Standing
from gateway.store.operations import recorded_between
from gateway.store.pool import Place

if TYPE_CHECKING:
    import asyncpg

    from gateway.store.pool import AnyConnection


class Wanted(NamedTuple):
    """How a card is found: by its chip, by its id, or by its number and its holder's id number together."""

    chip_index: bytes | None = None
    card_id: UUID | None = None
    number_index: bytes | None = None
    id_number_index: bytes | None = None


class Card(NamedTuple):
    """A card, locked until the end of the transaction."""

    place: Place
    card_id: UUID
    status: CardStatus
    replacement_started: bool


class Change(NamedTuple):
    """What a card becomes; whether it is lost, or its loss is raised to a formal one, since this transaction."""

    status: CardStatus
    lost: bool = False
    raised: bool = False


_STATUS = {int(status): status for status in CardStatus}

# a replaced card keeps its number: the one that is not cancelled, else the newest
_FOUND = """
WITH found AS (
    SELECT asked.item, one.card_id
    FROM unnest($1::bytea[], $2::uuid[], $3::bytea[], $4::bytea[])
         WITH ORDINALITY AS asked(chip_index, card_id, number_index, id_number_index, item)
    CROSS JOIN LATERAL (
        SELECT card_id FROM card WHERE chip_index = asked.chip_index
        UNION ALL
        SELECT card_id FROM card WHERE card_id = asked.card_id
        UNION ALL
        (SELECT card_id FROM card JOIN person USING (person_id)
         WHERE number_index = asked.number_index AND id_number_index = asked.id_number_index
         ORDER BY status = 9, issued_on DESC, card_id DESC LIMIT 1)
    ) one
)
"""
_FIND_WANTED = _FOUND + "SELECT item, card_id FROM found"  # noqa: S608 - two constants of ours
_LOCK_WANTED = (
    _FOUND
    + """
SELECT item, card.ctid, card_id, status, replacement_started
FROM found JOIN card USING (card_id) ORDER BY card_id FOR UPDATE OF card
"""
)
_LOCK_CHIPS = """
SELECT item, card.ctid, card_id, status, replacement_started
FROM unnest($1::bytea[]) WITH ORDINALITY AS asked(chip_index, item) JOIN card USING (chip_index)
ORDER BY card_id FOR UPDATE OF card
"""

_LOCK_REPORTED = """
WITH found AS (
    SELECT asked.item, o.card_id, o.recorded_at, o.card_status_before AS before, o.card_status_after AS made
    FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::timestamptz[])
         WITH ORDINALITY AS asked(reference, caller, since, until, item)
    JOIN operation o ON o.reference = asked.reference AND o.caller = asked.caller AND o.kind = $5
        AND o.recorded_at BETWEEN asked.since AND asked.until AND o.result = 'accepted'
)
SELECT item, card.ctid, card_id, status, replacement_started, made,
       coalesce(before <> ALL($6::smallint[]) AND lost_at = recorded_at, false),
       coalesce(before <> made AND before = ANY($6) AND raised_at = recorded_at, false)
FROM found JOIN card USING (card_id) ORDER BY card_id FOR UPDATE OF card
"""

_CHANGE = """
WITH changed AS (
    UPDATE card SET
        status = new.status,
        lost_at = CASE WHEN new.lost THEN now() WHEN new.status = ANY($5::smallint[]) THEN lost_at END,
        raised_at = CASE WHEN new.raised THEN now() END
    FROM unnest($1::tid[], $2::smallint[], $3::boolean[], $4::boolean[]) AS new(place, status, lost, raised)
    WHERE card.ctid = new.place RETURNING true
)
SELECT count(*), ARRAY(SELECT card_id FROM loss_notice WHERE card_id = ANY($6) AND next_try_at IS NOT NULL) FROM changed
"""
_LOST = [int(status) for status in LOST]


async def find_wanted(connection: "AnyConnection", wanted: Sequence[Wanted]) -> dict[int, UUID]:
    """The ids of cards by their place in `wanted`, without locks."""
    rows = await connection.fetch(_FIND_WANTED, *(list(column) for column in zip(*wanted, strict=True)))
    return {row[0] - 1: row[1] for row in rows}


async def lock_wanted(connection: "AnyConnection", wanted: Sequence[Wanted]) -> dict[int, Card]:
    """The cards by their place in `wanted`; what was not found is absent."""
    chips, *others = (list(column) for column in zip(*wanted, strict=True))
    if None in chips:
        rows = await connection.fetch(_LOCK_WANTED, chips, *others)
    else:  # mostly: found in less time
        rows = await connection.fetch(_LOCK_CHIPS, chips)
    return {row[0] - 1: _card(row) for row in rows}


async def lock_reported(
    connection: "AnyConnection", references: Sequence[UUID], callers: Sequence[str], kind: str
) -> dict[int, tuple[Card, Standing]]:
    """The cards of accepted reports of these callers by their place in `references`, each with what is still so of its
    report."""
    since, until = zip(*map(recorded_between, references), strict=True)
    rows = await connection.fetch(_LOCK_REPORTED, references, callers, list(since), list(until), kind, _LOST)
    return {row[0] - 1: (_card(row), Standing(_STATUS[row[5]], row[6], row[7])) for row in rows}


def _card(row: "asyncpg.Record") -> Card:
    return Card(row[1], row[2], _STATUS[row[3]], row[4])


async def change(
    connection: "AnyConnection", cards: Mapping[Place, Change], of_interest: Collection[UUID]
) -> set[UUID]:
    """Write the status of locked cards that have another one now. How fresh the registry's word is stays as it was.

    Returns which of the locked cards `of_interest` have a loss notice that is not decided: read after the locks, and
    on the same way to the database.
    """
    columns = [list(column) for column in zip(*cards.values(), strict=True)] or [[], [], []]
    row = await connection.fetchrow(_CHANGE, list(cards), *columns, _LOST, list(of_interest))
    assert row is not None and row[0] == len(cards), "a card that is locked stays in its place"
    return set(row[1])
