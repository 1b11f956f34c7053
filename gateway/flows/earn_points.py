"""Points for uses: earned once for each event, by the rule of its scene; taken back when the use is reversed.

It runs inside the caller's transaction, with a number of statements that does not depend on how many uses there are.
Call it as late in the transaction as can be: the persons' accounts and the issuer's are locked from here to the commit.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from gateway.domain.points import ISSUED, EarnRules, Lot, TransferKind, earned, expires_on, take
from gateway.domain.times import CHINA
from gateway.metrics import POINTS, POINTS_SHORTFALL
from gateway.store import points
from gateway.store.payments import created_at
from gateway.store.points import Account, Transfer

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection


class Use(NamedTuple):
    """An accepted use of a card, or the reversal of one."""

    event_id: UUID
    """A UUIDv7 of ours: it becomes the id of the transfer, and so nothing is earned twice for it."""
    card_id: UUID
    scene: str
    amount_fen: int
    occurred_at: dt.datetime
    reverses: UUID | None = None
    """The event whose points are to be taken back."""


class EarnFigures(NamedTuple):
    """What a batch came to; tell() it once its transaction is committed."""

    earned: int = 0
    taken_back: int = 0
    shortfall: int = 0
    """Not taken back, because it was spent already."""

    def tell(self) -> None:
        """The metrics."""
        POINTS.labels(TransferKind.EARN).inc(self.earned)
        POINTS.labels(TransferKind.TAKE_BACK).inc(self.taken_back)
        POINTS_SHORTFALL.inc(self.shortfall)


class EarnPoints:
    """earn() for a batch. `rules` gives what is in force now."""

    def __init__(self, rules: Callable[[], EarnRules]) -> None:
        self._rules = rules

    async def earn(self, connection: "AnyConnection", uses: Sequence[Use]) -> EarnFigures:
        """Inside a transaction. An event that earned before earns nothing more; a card that is not known, nothing.

        A reversal takes back what its event had earned, at most what the person can still spend; what is missing stays
        in the transfer's shortfall. Raises asyncpg.PostgresError.
        """
        rules = self._rules()
        # the same event twice in one batch is one event
        earning = {use.event_id: use for use in uses if use.reverses is None and use.scene in rules.scenes}
        reversing = {use.event_id: use for use in uses if use.reverses is not None}
        if not earning and not reversing:
            return EarnFigures()
        cards = {use.card_id for use in earning.values()} | {use.card_id for use in reversing.values()}
        await points.open_accounts(connection, cards)
        persons = await points.persons_of(connection, cards)
        accounts = await points.lock(connection, set(persons.values()))
        done = await points.known(connection, [*earning, *reversing])
        granted = await _grant(connection, rules, persons, [use for key, use in earning.items() if key not in done])
        reversals = [use for key, use in reversing.items() if key not in done and use.card_id in persons]
        taken = await _take_back(connection, rules, persons, accounts, granted, reversals) if reversals else []
        # one posting for both: the issuer's account is updated once
        await points.post(connection, granted + taken)
        return EarnFigures(
            sum(transfer.points for transfer in granted),
            -sum(transfer.points for transfer in taken),
            sum(transfer.shortfall for transfer in taken),
        )


async def _grant(
    connection: "AnyConnection", rules: EarnRules, persons: Mapping[UUID, UUID], uses: Sequence[Use]
) -> list[Transfer]:
    """The transfers of uses that earn something within the limit of their day; their lots are written."""
    wanted: list[tuple[Use, UUID, dt.date, int]] = []
    for use in uses:
        person_id, amount = persons.get(use.card_id), earned(rules.scenes[use.scene], use.amount_fen)
        if person_id is not None and amount > 0:
            wanted.append((use, person_id, use.occurred_at.astimezone(CHINA).date(), amount))
    so_far = await points.earned_on(connection, {(person_id, use.scene, day) for use, person_id, day, _ in wanted})
    transfers: list[Transfer] = []
    lots: defaultdict[tuple[UUID, dt.date], int] = defaultdict(int)
    for use, person_id, day, amount in wanted:
        place = (person_id, use.scene, day)
        amount = min(amount, rules.scenes[use.scene].daily_max - so_far.get(place, 0))
        if amount <= 0:
            continue
        so_far[place] = so_far.get(place, 0) + amount
        lots[person_id, expires_on(day, rules.valid_months)] += amount
        transfers.append(Transfer(
            use.event_id, created_at(use.event_id), TransferKind.EARN, person_id, use.card_id, ISSUED, amount, day,
            scene=use.scene,
        ))  # fmt: skip
    if lots:
        await points.add_to_lots(connection, lots)
    return transfers


async def _take_back(
    connection: "AnyConnection", rules: EarnRules, persons: Mapping[UUID, UUID], accounts: Mapping[UUID, Account],
    granted: Sequence[Transfer], reversals: Sequence[Use],
) -> list[Transfer]:  # fmt: skip
    """The transfers that undo what the reversed events had earned; their lots are written."""
    undone: dict[UUID, int] = {}
    originals = {transfer.transfer_id: transfer for transfer in granted}
    for key, earned_by in (
        await points.earned_by(connection, {use.reverses for use in reversals if use.reverses})
    ).items():
        originals[key], undone[key] = earned_by.transfer, earned_by.undone
    available = defaultdict(int, {person_id: account.available for person_id, account in accounts.items()})
    for transfer in granted:
        available[transfer.person_id] += transfer.points
    lots = {
        person_id: {lot.expires_on: lot for lot in held}
        for person_id, held in (await points.lots_of(connection, {persons[use.card_id] for use in reversals})).items()
    }
    changed: dict[tuple[UUID, dt.date], Lot] = {}
    transfers: list[Transfer] = []
    for use in reversals:
        original = originals.get(use.reverses) if use.reverses else None
        if original is None or original.person_id != persons[use.card_id]:
            continue  # it earned nothing, or was another person's
        person_id = original.person_id
        due = original.points - undone.get(original.transfer_id, 0)
        undone[original.transfer_id] = original.points
        if due <= 0:
            continue
        amount = min(due, available[person_id])
        available[person_id] -= amount
        own = expires_on(original.day, rules.valid_months)
        for lot in take(list(lots.get(person_id, {}).values()), amount, own):
            lots[person_id][lot.expires_on] = changed[person_id, lot.expires_on] = lot
        transfers.append(Transfer(
            use.event_id, created_at(use.event_id), TransferKind.TAKE_BACK, person_id, use.card_id, ISSUED, -amount,
            original.day, due - amount, original.scene, original.transfer_id,
        ))  # fmt: skip
    await points.set_lots(connection, ((person_id, lot) for (person_id, _), lot in changed.items()))
    return transfers
