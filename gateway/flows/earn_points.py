"""Points for uses: earned once for each event, by the rule of its scene; taken back when the use is reversed.

It runs inside the caller's transaction, with a number of statements that does not depend on how many uses there are.
Call it as late in the transaction as can be: the persons' accounts and the issuer's are locked from here to the commit.
"""

import asyncio
import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import msgspec

from gateway.domain.ids import uuid7_unix_ms
from gateway.domain.points import ISSUED, EarnRules, Lot, TransferKind, earned, expires_on, take
from gateway.domain.times import CHINA
from gateway.metrics import POINTS, POINTS_SHORTFALL
from gateway.store import points
from gateway.store.payments import created_at
from gateway.store.points import Earning, Terms, Transfer
from gateway.threads import breathing

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection


class Use(msgspec.Struct, frozen=True, gc=False):
    """An accepted use of a card, or the reversal of one."""

    event_id: UUID
    """A UUIDv7 of ours: it becomes the id of the transfer, and so nothing is earned twice for it."""
    card_id: UUID
    person_id: UUID
    """Its holder."""
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
    """Not taken back, because it was spent already or had expired."""

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
        """Inside the transaction that makes the events.

        A reversal takes back what its event had earned and what has not expired of it, at most what the person can
        still spend; what is missing stays in the transfer's shortfall. Raises asyncpg.PostgresError;
        UniqueViolationError if an event earned before.
        """
        rules = self._rules()
        # the same event twice in one batch is one event
        earning = {use.event_id: use for use in uses if use.reverses is None and use.scene in rules.scenes}
        reversing = {use.event_id: use for use in uses if use.reverses is not None}
        if not earning and not reversing:
            return EarnFigures()
        # before the locks, for nobody waits for it yet; and thousands at a time, so beside the event loop
        wanted, terms = await asyncio.to_thread(_earnings, rules, earning.values())
        await points.lock_persons(connection, {use.person_id.hex for use in (*earning.values(), *reversing.values())})
        granted = await points.earn(connection, wanted, terms, ISSUED) if wanted else 0
        taken = await _take_back(connection, rules, reversing) if reversing else []
        await points.post(connection, taken)
        return EarnFigures(
            granted, -sum(transfer.points for transfer in taken), sum(transfer.shortfall for transfer in taken)
        )


def _earnings(rules: EarnRules, uses: Iterable[Use]) -> tuple[list[Earning], list[Terms]]:
    """What uses would earn if no limit of its day were reached."""
    numbers: dict[tuple[str, dt.date, int], str] = {}
    terms: list[Terms] = []
    earnings: list[Earning] = []
    for use in breathing(uses):
        rule = rules.scenes[use.scene]
        amount = min(earned(rule, use.amount_fen), rule.daily_max)
        if amount <= 0:
            continue
        day, unix_ms = use.occurred_at.astimezone(CHINA).date(), uuid7_unix_ms(use.event_id)
        number = numbers.get((use.scene, day, unix_ms))
        if number is None:
            expires = expires_on(day, rules.valid_months)
            terms.append(Terms(use.scene, day, expires, rule.daily_max, created_at(use.event_id)))
            number = numbers[use.scene, day, unix_ms] = str(len(terms))
        earnings.append(Earning(use.event_id.hex, use.card_id.hex, use.person_id.hex, str(amount), number))
    return earnings, terms


async def _take_back(connection: "AnyConnection", rules: EarnRules, asked: Mapping[UUID, Use]) -> list[Transfer]:
    """The transfers that undo what the reversed events had earned; their lots are written."""
    done = await points.known(connection, list(asked))
    accounts = await points.lock(connection, {use.person_id for use in asked.values()})
    reversals = [use for key, use in asked.items() if key not in done]
    undone: dict[UUID, int] = {}
    originals: dict[UUID, Transfer] = {}
    for key, earned_by in (
        await points.earned_by(connection, {use.reverses for use in reversals if use.reverses})
    ).items():
        originals[key], undone[key] = earned_by.transfer, earned_by.undone
    available = defaultdict(int, {person_id: account.available for person_id, account in accounts.items()})
    lots = {
        person_id: {lot.expires_on: lot for lot in held}
        for person_id, held in (await points.lots_of(connection, {use.person_id for use in reversals})).items()
    }
    own_days = {key: expires_on(original.day, rules.valid_months) for key, original in originals.items()}
    expired = await points.expired_after(connection, [(originals[key], day) for key, day in own_days.items()])
    changed: dict[tuple[UUID, dt.date], Lot] = {}
    transfers: list[Transfer] = []
    for use in reversals:
        original = originals.get(use.reverses) if use.reverses else None
        if original is None or original.person_id != use.person_id:
            continue  # it earned nothing, or was another person's
        person_id = original.person_id
        due = original.points - undone.get(original.transfer_id, 0)
        undone[original.transfer_id] = original.points
        if due <= 0:
            continue
        own = own_days[original.transfer_id]
        held = lots.get(person_id, {}).get(own)
        gone = max(0, due - (held.remaining if held else 0))
        # what its lot lacks was spent, or it expired: then it must not come out of the person's other points once more
        amount = min(due - min(gone, expired[original.transfer_id]), available[person_id])
        available[person_id] -= amount
        for lot in take(list(lots.get(person_id, {}).values()), amount, own):
            lots[person_id][lot.expires_on] = changed[person_id, lot.expires_on] = lot
        transfers.append(Transfer(
            use.event_id, created_at(use.event_id), TransferKind.TAKE_BACK, person_id, use.card_id, ISSUED, -amount,
            original.day, due - amount, original.scene, original.transfer_id,
        ))  # fmt: skip
    await points.set_lots(connection, ((person_id, lot) for (person_id, _), lot in changed.items()))
    return transfers
