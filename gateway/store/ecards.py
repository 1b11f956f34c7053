"""E-cards: codes that were used, and the card that an e-card goes with."""

from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

KEPT_HOURS = 24
"""Of a claim: a code lives for 60 s at the platform (domain.md §2.3 [G])."""


async def was_used(connection: "AnyConnection", code_digest: bytes) -> bool:
    """Whether a code has been claimed. It is not claimed here: verify.sql does that."""
    used: bool = await connection.fetchval("SELECT EXISTS (SELECT FROM code_use WHERE code_digest = $1)", code_digest)
    return used


async def card_of(connection: "AnyConnection", number_index: bytes, id_number_index: bytes) -> UUID | None:
    """The card of a person by its number: the one that is not cancelled, else the newest (a replaced card keeps it)."""
    card_id: UUID | None = await connection.fetchval(
        "SELECT card_id FROM card JOIN person USING (person_id)"
        " WHERE number_index = $1 AND id_number_index = $2"
        " ORDER BY status = 9, issued_on DESC, card_id DESC LIMIT 1",
        number_index, id_number_index,
    )  # fmt: skip
    return card_id


async def sweep(connection: "AnyConnection", limit: int) -> int:
    """Delete up to `limit` claims past their hours; returns how many."""
    done = await connection.fetch(
        "DELETE FROM code_use WHERE code_digest IN (SELECT code_digest FROM code_use"
        " WHERE used_at < now() - make_interval(hours => $1) ORDER BY used_at LIMIT $2) RETURNING true",
        KEPT_HOURS, limit,
    )  # fmt: skip
    return len(done)
