"""Correct the ledger: never by changing a row, only by a new transfer that names the old one."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg

from gateway.domain.points import ISSUED, TransferKind, expires_on, take
from gateway.domain.times import CHINA
from gateway.store import points
from gateway.store.payments import created_at
from gateway.store.points import Account, Transfer
from gateway.store.pool import GONE, UnfitDatabase

if TYPE_CHECKING:
    from gateway.store.pool import Connection


class NotCorrected(Exception):
    """Why not, in words for the operator."""


class NotKnown(Exception):
    """Whether there is a transfer of this id."""

    def __init__(self, transfer_id: UUID) -> None:
        super().__init__(str(transfer_id))
        self.transfer_id = transfer_id


async def correct_once(
    dial: Callable[[], "Awaitable[Connection]"], transfer_id: UUID, corrects: UUID, amount: int, note: str,
    valid_months: int,
) -> tuple[Transfer, bool]:  # fmt: skip
    """correct() on a connection of its own; whether the transfer was there already, from an earlier try.

    A connection that is lost may have taken the answer to its commit with it: then another one is asked. Raises
    NotCorrected, NotKnown; asyncpg.PostgresError, UnfitDatabase, or one of GONE when nothing was written.
    """
    connection = await dial()
    try:
        if (made := await _made(connection, transfer_id, corrects, amount, note)) is not None:
            return made, True
        return await correct(connection, transfer_id, corrects, amount, note, valid_months), False
    except GONE as error:
        try:
            another = await dial()
            try:
                async with another.transaction():
                    # who has sent the commit has locked the account: this waits for how it ends
                    await _lock(another, corrects)
                    made = await _made(another, transfer_id, corrects, amount, note)
            finally:
                another.terminate()
        except (*GONE, UnfitDatabase, asyncpg.PostgresError):
            raise NotKnown(transfer_id) from error
        if made is None:
            raise NotCorrected("the connection to the database was lost") from error
        return made, False
    finally:
        connection.terminate()


async def correct(
    connection: "Connection", transfer_id: UUID, corrects: UUID, amount: int, note: str, valid_months: int
) -> Transfer:
    """Give a person `amount` points more (fewer, if negative) because of an old transfer, once. Raises NotCorrected."""
    made_at = created_at(transfer_id)
    day = made_at.astimezone(CHINA).date()
    async with connection.transaction():
        old, account = await _lock(connection, corrects)
        if (made := await _made(connection, transfer_id, corrects, amount, note)) is not None:
            return made
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


async def _lock(connection: "Connection", corrects: UUID) -> tuple[Transfer, Account]:
    """The old transfer, and its person's account."""
    old = await points.find(connection, corrects)
    if old is None:
        raise NotCorrected("there is no such transfer")
    return old, (await points.lock(connection, [old.person_id]))[old.person_id]


async def _made(
    connection: "Connection", transfer_id: UUID, corrects: UUID, amount: int, note: str
) -> Transfer | None:  # fmt: skip
    """The transfer of this id. Raises NotCorrected if it is no such correction."""
    made = await points.find(connection, transfer_id)
    wanted = (TransferKind.CORRECT, corrects, amount, note)
    if made is not None and (made.kind, made.corrects, made.points, made.note) != wanted:
        raise NotCorrected(f"transfer {transfer_id} is another one")
    return made
