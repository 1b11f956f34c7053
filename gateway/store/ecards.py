"""E-cards: codes that were used, and the card that an e-card goes with."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

KEPT_HOURS = 24
"""Of a claim: a code lives for 60 s at the platform (domain.md §2.3 [G])."""


class Wanted(NamedTuple):
    """What is looked up: whether a code, or a caller's key, has been claimed, or the card of a person by its number."""

    code_digest: bytes | None = None
    number_index: bytes | None = None
    id_number_index: bytes | None = None
    caller: str | None = None
    key: str | None = None
    """An Idempotency-Key of that caller."""


class Found(NamedTuple):
    """`used`: the code, or the key, has been claimed. It is not claimed here."""

    used: bool
    card_id: UUID | None


# a replaced card keeps its number: the one that is not cancelled, else the newest
# no EXISTS: while its table is thought small, PostgreSQL would read all of it for each batch
_LOOK = """
SELECT (SELECT true FROM code_use WHERE code_digest = asked.code_digest) IS NOT NULL
       OR (SELECT true FROM idempotency_key WHERE caller = asked.caller AND key = asked.key) IS NOT NULL,
       (SELECT card_id FROM card JOIN person USING (person_id)
        WHERE number_index = asked.number_index AND id_number_index = asked.id_number_index
        ORDER BY status = 9, issued_on DESC, card_id DESC LIMIT 1)
FROM unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::text[], $5::text[])
     WITH ORDINALITY AS asked(code_digest, number_index, id_number_index, caller, key, item)
ORDER BY item
"""


async def look(connection: "AnyConnection", batch: Sequence[Wanted], timeout: float) -> list[Found]:
    """Look up a batch, in its order."""
    columns = (list(column) for column in zip(*batch, strict=True))
    return [Found(*row) for row in await connection.fetch(_LOOK, *columns, timeout=timeout)]


async def claim(connection: "AnyConnection", codes: Mapping[UUID, bytes]) -> set[UUID]:
    """Claim codes (their digests) for operations, inside the transaction; returns the operations that have theirs.

    For those that record no usage event: verify.sql claims in the same order, so none waits in a circle.
    """
    rows = await connection.fetch(
        "INSERT INTO code_use (event_id, code_digest)"
        " SELECT * FROM unnest($1::uuid[], $2::bytea[]) AS asked(reference, code_digest)"
        " ORDER BY code_digest, reference ON CONFLICT DO NOTHING RETURNING event_id",
        list(codes), list(codes.values()),
    )  # fmt: skip
    return {row[0] for row in rows}


async def sweep(connection: "AnyConnection", limit: int) -> int:
    """Delete up to `limit` claims past their hours; returns how many."""
    done = await connection.fetch(
        "DELETE FROM code_use WHERE code_digest IN (SELECT code_digest FROM code_use"
        " WHERE used_at < now() - make_interval(hours => $1) ORDER BY used_at LIMIT $2) RETURNING true",
        KEPT_HOURS, limit,
    )  # fmt: skip
    return len(done)
