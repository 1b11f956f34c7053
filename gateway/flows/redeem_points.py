"""Redeem points at a 社银合作点: reserve, then commit or cancel; three kinds of effect.

The citizen is there: the card is judged by the statement of a verify, so its usage event is there too. A card that is
refused, and points that do not suffice, are answers (200 `refused` with the reason), as a declined payment is one: the
request was right, and the till shows it to the person. They are kept with their key like any other. A card of which
nothing is known now is no answer: 503, and the key stays free.

A reservation holds a part of the account's balance. Which lots it will be taken from is decided when it is committed.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import msgspec

from gateway.domain.errors import Problem
from gateway.domain.points import REDEEMED, Lot, TransferKind, take
from gateway.domain.redemptions import INSUFFICIENT_POINTS, RedemptionState
from gateway.domain.times import CHINA
from gateway.domain.verdicts import VERDICT_OF, Reason
from gateway.flows.effects import Answer, Asked, Done
from gateway.flows.verify_card import undecided
from gateway.metrics import POINTS, REDEMPTIONS, VERDICTS
from gateway.store import points, redemptions
from gateway.store.operations import Operation
from gateway.store.payments import created_at
from gateway.store.points import Account, Transfer
from gateway.store.redemptions import Redemption
from gateway.store.verify import Judged, Presented, verify_batch

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

_S = RedemptionState
_encode = msgspec.json.Encoder().encode
Results = list[Done | Problem]


class RedemptionAnswer(msgspec.Struct, frozen=True, gc=False):
    """A redemption as it stands. What does not apply is absent."""

    reference: str
    status: RedemptionState
    points: int
    item: str
    outlet_id: str
    reason: str | msgspec.UnsetType = msgspec.UNSET
    """Why it was refused: that of a verdict `refused`, or `insufficient_points`."""
    expires_at: dt.datetime | msgspec.UnsetType = msgspec.UNSET
    balance: int | msgspec.UnsetType = msgspec.UNSET
    """Of the person, with what is reserved."""
    available: int | msgspec.UnsetType = msgspec.UNSET
    operation: str | msgspec.UnsetType = msgspec.UNSET
    """The reference of this commit or cancel itself; a commit's is also the id of its transfer."""


class Wish:
    """What a person wants to have; `judged` and `state` are there once it was carried out."""

    def __init__(
        self, presented: Presented, amount: int, item: str, outlet_id: str, credit: UUID, reserved_for: dt.timedelta
    ) -> None:
        self.presented = presented
        self.points = amount
        self.item = item
        self.outlet_id = outlet_id
        self.credit = credit
        self.reserved_for = reserved_for
        self.judged: Judged | None = None
        self.state: RedemptionState | None = None

    def count(self, field: str, caller_id: str) -> None:
        """For the metrics: the verdict, also where it ended as a problem."""
        if self.judged is not None:
            reason, _, medium, *_ = self.judged
            VERDICTS.add((VERDICT_OF[reason], reason, medium or "none", field, caller_id))

    def count_state(self, caller_id: str) -> None:
        """For the metrics, once it is committed."""
        if self.state is not None:
            REDEMPTIONS.labels(self.state, caller_id).inc()


class End:
    """Commit or cancel; `ended` is there once it was carried out."""

    def __init__(self, reference: UUID) -> None:
        self.reference = reference
        self.ended: Redemption | None = None

    def count(self, caller_id: str) -> None:
        """For the metrics, once it is committed."""
        if self.ended is not None:
            REDEMPTIONS.labels(self.ended.state, caller_id).inc()
            if self.ended.state is _S.COMMITTED:
                POINTS.labels(TransferKind.REDEEM).inc(self.ended.points)


class ReservePoints:
    """Kind of effect; `what` is a Wish."""

    name = "points_redemption"

    def __init__(self, status_max_age: dt.timedelta, verify_timeout_s: float) -> None:
        self._status_max_age = status_max_age
        self._verify_timeout_s = verify_timeout_s

    async def perform(self, connection: "AnyConnection", batch: Sequence[Asked]) -> Results:
        presented = [asked.what.presented for asked in batch]
        judged = await verify_batch(connection, presented, self._status_max_age, self._verify_timeout_s)
        held = await redemptions.lock_holders(connection, {row[1] for row in judged if row[0] == Reason.OK})
        accounts = {holder.person_id: holder.account for holder in held.values()}
        rows: list[Redemption] = []
        done: Results = []
        for asked, row in zip(batch, judged, strict=True):
            wish: Wish = asked.what
            wish.judged = row
            if (problem := undecided(row)) is not None:
                done.append(problem)
                continue
            holder = held.get(row[1]) if row[0] == Reason.OK else None
            account = accounts[holder.person_id] if holder else Account(0, 0)
            redemption = _redemption(asked, wish, row, holder and holder.person_id, account)
            if redemption.state is _S.RESERVED and redemption.person_id is not None:
                account = account._replace(reserved=account.reserved + wish.points)
                accounts[redemption.person_id] = account
            wish.state = redemption.state
            rows.append(redemption)
            done.append(_done(self.name, asked, redemption, account if row[0] == Reason.OK else None))
        if rows:
            await redemptions.insert(connection, rows)
        return done


class CommitRedemption:
    """Kind of effect; `what` is an End."""

    name = "points_commit"

    async def perform(self, connection: "AnyConnection", batch: Sequence[Asked]) -> Results:
        ending = await _Ending.lock(connection, batch)
        lots = await points.lots_of(connection, ending.accounts)
        left = {person_id: {lot.expires_on: lot for lot in held} for person_id, held in lots.items()}
        transfers: list[Transfer] = []
        changed: dict[tuple[UUID, dt.date], Lot] = {}
        for asked, redemption in ending.mine:
            assert redemption.person_id is not None, "it is reserved"
            for lot in take(list(left[redemption.person_id].values()), redemption.points):
                left[redemption.person_id][lot.expires_on] = changed[redemption.person_id, lot.expires_on] = lot
            made_at = created_at(asked.reference)
            transfers.append(Transfer(
                asked.reference, made_at, TransferKind.REDEEM, redemption.person_id, redemption.card_id,
                redemption.credit, -redemption.points, made_at.astimezone(CHINA).date(),
                redemption=redemption.reference,
            ))  # fmt: skip
        if transfers:
            merchants = {r.credit: r.caller for _, r in ending.mine if r.credit != REDEEMED}
            if merchants:
                await points.open_merchant(connection, merchants)
            await points.set_lots(connection, ((person_id, lot) for (person_id, _), lot in changed.items()))
            await ending.write(connection, _S.COMMITTED)
            await points.post(connection, transfers)
        return ending.answers(self.name, _S.COMMITTED)


class CancelRedemption:
    """Kind of effect; `what` is an End."""

    name = "points_cancel"

    async def perform(self, connection: "AnyConnection", batch: Sequence[Asked]) -> Results:
        ending = await _Ending.lock(connection, batch)
        if ending.mine:
            await ending.write(connection, _S.CANCELLED)
        return ending.answers(self.name, _S.CANCELLED)


class _Ending(NamedTuple):
    """A batch that ends redemptions, each once; rows and accounts are locked, in that order."""

    batch: Sequence[Asked]
    mine: list[tuple[Asked, Redemption]]
    """Those that this batch ends."""
    problems: dict[UUID, Problem]
    accounts: dict[UUID, Account]

    @staticmethod
    async def lock(connection: "AnyConnection", batch: Sequence[Asked]) -> "_Ending":
        found = await redemptions.lock(
            connection, [asked.what.reference for asked in batch], [asked.caller_id for asked in batch]
        )
        ending = _Ending(batch, [], {}, {})
        ended: set[UUID] = set()
        for asked in batch:
            redemption = found.get(asked.what.reference)
            if redemption is None or redemption.caller != asked.caller_id:
                ending.problems[asked.reference] = Problem("not_found")
            elif redemption.state is not _S.RESERVED or redemption.reference in ended:
                ending.problems[asked.reference] = Problem("redemption_state")
            elif redemption.expires_at is not None and redemption.expires_at <= created_at(asked.reference):
                ending.problems[asked.reference] = Problem("redemption_state", "the reservation has expired")
            else:
                ended.add(redemption.reference)
                ending.mine.append((asked, redemption))
        persons = {redemption.person_id for _, redemption in ending.mine if redemption.person_id is not None}
        ending.accounts.update(await points.lock(connection, persons) if persons else {})
        return ending

    async def write(self, connection: "AnyConnection", state: RedemptionState) -> None:
        """The state, and what is no longer reserved."""
        await redemptions.end(connection, [redemption for _, redemption in self.mine], state)
        await release(connection, [redemption for _, redemption in self.mine])

    def answers(self, kind: str, state: RedemptionState) -> Results:
        done: dict[UUID, Done | Problem] = dict(self.problems)
        for asked, redemption in self.mine:
            assert redemption.person_id is not None, "it was reserved"
            balance, reserved = self.accounts[redemption.person_id]
            balance -= redemption.points if state is _S.COMMITTED else 0
            account = self.accounts[redemption.person_id] = Account(balance, reserved - redemption.points)
            asked.what.ended = redemption._replace(state=state)
            done[asked.reference] = _done(kind, asked, asked.what.ended, account)
        return [done[asked.reference] for asked in self.batch]


async def release(connection: "AnyConnection", ended: Sequence[Redemption]) -> None:
    """Give back what ended redemptions held of locked accounts."""
    held: defaultdict[UUID, int] = defaultdict(int)
    for redemption in ended:
        assert redemption.person_id is not None, "it was reserved"
        held[redemption.person_id] -= redemption.points
    await points.reserve(connection, held)


def _redemption(asked: Asked, wish: Wish, row: Judged, person_id: UUID | None, account: Account) -> Redemption:
    """Reserved, or refused."""
    reason = row[0] if row[0] != Reason.OK else INSUFFICIENT_POINTS if account.available < wish.points else None
    made_at = created_at(asked.reference)
    return Redemption(
        asked.reference, made_at, asked.caller_id, wish.outlet_id, wish.item, wish.points, wish.credit, row[1],
        person_id, _S.REFUSED if reason else _S.RESERVED, reason, None if reason else made_at + wish.reserved_for,
        made_at if reason else None,
    )  # fmt: skip


def _done(kind: str, asked: Asked, redemption: Redemption, account: Account | None) -> Done:
    """`account`: as it is now; None if its holder was not recognised."""
    begins = redemption.reference == asked.reference
    expires_at = redemption.expires_at if redemption.state is _S.RESERVED else None
    answer = RedemptionAnswer(
        str(redemption.reference), redemption.state, redemption.points, redemption.item, redemption.outlet_id,
        redemption.reason or msgspec.UNSET,
        expires_at.astimezone(CHINA).replace(microsecond=0) if expires_at else msgspec.UNSET,
        account.balance if account else msgspec.UNSET, account.available if account else msgspec.UNSET,
        msgspec.UNSET if begins else str(asked.reference),
    )  # fmt: skip
    parent = None if begins else redemption.reference
    operation = Operation(
        asked.reference, kind, asked.caller_id, redemption.card_id, parent, redemption.state, redemption.reason
    )
    return Done(Answer(200, _encode(answer)), operation)
