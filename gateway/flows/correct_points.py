"""Correct the ledger: never by changing a row, only by a new transfer that names the old one."""

from typing import TYPE_CHECKING
from uuid import UUID

from gateway.domain.points import ISSUED, TransferKind, expires_on, take
from gateway.domain.times import CHINA
from gateway.store import points
from gateway.store.payments import created_at
from gateway.store.points import Transfer

if TYPE_CHECKING:
    from gateway.store.pool import Connection


class NotCorrected(Exception):
    """Why not, in words for the operator."""


async def correct(
    connection: "Connection", transfer_id: UUID, corrects: UUID, amount: int, note: str, valid_months: int
) -> Transfer:
    """Give a person `amount` points more (fewer, if negative) because of an old transfer. Raises NotCorrected."""
    made_at = created_at(transfer_id)
    day = made_at.astimezone(CHINA).date()
    async with connection.transaction():
        old = await points.find(connection, corrects)
        if old is None:
            raise NotCorrected("there is no such transfer")
        account = (await points.lock(connection, [old.person_id]))[old.person_id]
        if -amount > account.available:
            raise NotCorrected(f"the person has {account.available} points that are not reserved")
        if amount > 0:
            await points.add_to_lots(connection, {(old.person_id, expires_on(day, valid_months)): amount})
        else:
            lots = (await points.lots_of(connection, [old.person_id])).get(old.person_id, [])
            own = expires_on(old.day, valid_months)
            await points.set_lots(connection, [(old.person_id, lot) for lot in take(lots, -amount, own)])
        transfer = Transfer(
            transfer_id, made_at, TransferKind.CORRECT, old.person_id, old.card_id, ISSUED, amount, day,
            corrects=corrects, note=note,
        )  # fmt: skip
        await points.post(connection, [transfer])
    return transfer
