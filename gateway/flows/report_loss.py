"""Report a card lost, and release it: the social security side (domain.md §1.4, §1.5).

The bank's account is frozen by the bank alone: two requests, two results, and partial success is a normal outcome. From
the commit of a report on, every verify reads the card as lost: they share one row. What the bank is to be told is in
the same commit; telling it is tell_bank.py.
"""

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import msgspec

from gateway.domain.cards import LOST, REPORT, STATUS_REASON, TRANSITIONS, CardAction, CardStatus, LossKind
from gateway.domain.errors import Problem, unavailable
from gateway.domain.loss_notices import OPEN, Heard, NoticeKind, NoticeState, first_state
from gateway.domain.verdicts import Reason
from gateway.flows.effects import Answer, Asked, Begun, Done
from gateway.flows.tell_bank import (
    ACCEPTED,
    NOT_CONNECTED,
    REFUSED,
    RELEASED,
    BankSide,
    LossAnswer,
    SocialSecuritySide,
    TellBank,
    answer_of,
)
from gateway.store import ecards, loss_notices, losses
from gateway.store.loss_notices import Holder, Notice
from gateway.store.losses import Card, Change, Wanted
from gateway.store.operations import Operation
from gateway.store.payments import created_at
from gateway.store.pool import Place

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

_encode = msgspec.json.Encoder().encode
_AT_ONCE = dt.timedelta(0)
_SHOWN = {status: status.name.lower() for status in CardStatus}
OTHER_REPORT = "other_report"
"""Why a release is refused: the card is lost by another's word."""

_NOT_TOLD = BankSide(NOT_CONNECTED)
_OF_CODES = frozenset({Reason.CODE_EXPIRED, Reason.CODE_REPLAYED, Reason.CODE_INVALID})
"""Reasons before any card: a code that is not good is nobody's."""


class Report(NamedTuple):
    """`preset` is a reason to refuse that was found before the card was read; `code_digest`, of an e-card's code."""

    wanted: Wanted
    kind: LossKind
    preset: str = ""
    code_digest: bytes | None = None


class Release(NamedTuple):
    """`reference` is that of the caller's own report; `card`, if given, must be the report's."""

    reference: UUID
    card: Wanted | None = None
    preset: str = ""
    code_digest: bytes | None = None


class _Changed(NamedTuple):
    """What the social security side did: the bank may be told."""

    asked: Asked
    card_id: UUID
    before: CardStatus
    after: CardStatus

    @property
    def opens(self) -> bool:
        return self.before in LOST and self.after not in LOST


Results = list[Done | Begun | Problem]


class ReportLoss:
    """Kind of effect; `what` is a Report."""

    name = NoticeKind.LOSS.value

    def __init__(self, tell: TellBank) -> None:
        self._tell = tell

    async def perform(self, connection: "AnyConnection", batch: Sequence[Asked]) -> Results:
        reports: list[Report] = [asked.what for asked in batch]
        presets = await _presets(connection, batch)
        cards = await losses.lock_wanted(connection, [report.wanted for report in reports])
        changes = _Changes()
        done: list[_Changed | Done | Problem] = []
        for item, (asked, report, preset) in enumerate(zip(batch, reports, presets, strict=True)):
            card = cards.get(item)
            if preset == Reason.PLATFORM_UNAVAILABLE:
                done.append(unavailable("what was presented cannot be read now"))
            elif preset in _OF_CODES:
                done.append(_refused(self.name, asked, preset))
            elif card is None:
                done.append(_refused(self.name, asked, Reason.UNRECOGNISED.value))
            elif preset:
                done.append(_refused(self.name, asked, preset, card))
            else:
                before, after = changes.apply(card, REPORT[report.kind])
                if after is None:
                    done.append(_refused(self.name, asked, STATUS_REASON[before].value, card))
                else:
                    done.append(_Changed(asked, card.card_id, before, after))
        return await _end(connection, self._tell, NoticeKind.LOSS, changes, done)

    async def finish(self, what: Notice) -> Answer:
        return await self._tell.first(what)


class ReleaseLoss:
    """Kind of effect; `what` is a Release."""

    name = NoticeKind.RELEASE.value

    def __init__(self, tell: TellBank) -> None:
        self._tell = tell

    async def perform(self, connection: "AnyConnection", batch: Sequence[Asked]) -> Results:
        releases: list[Release] = [asked.what for asked in batch]
        callers = [asked.caller_id for asked in batch]
        presets = await _presets(connection, batch)
        cards = await losses.lock_reported(
            connection, [release.reference for release in releases], callers, ReportLoss.name
        )
        given: dict[int, UUID] = {}
        if any(release.card is not None for release in releases):
            given = await losses.find_wanted(connection, [release.card or Wanted() for release in releases])
        changes = _Changes()
        done: list[_Changed | Done | Problem] = []
        for item, (asked, release, preset) in enumerate(zip(batch, releases, presets, strict=True)):
            if item not in cards:
                done.append(Problem("not_found"))
                continue
            if preset == Reason.PLATFORM_UNAVAILABLE:
                done.append(unavailable("what was presented cannot be read now"))
                continue
            if preset or (release.card is not None and given.get(item) != cards[item][0].card_id):
                done.append(_refused(self.name, asked, preset or Reason.UNRECOGNISED.value, cards[item][0]))
                continue
            card, standing = cards[item]
            status = changes.status(card)
            action = standing.release(status)
            if action is None:
                done.append(_refused(self.name, asked, OTHER_REPORT, card))
            elif status is CardStatus.LOST_FORMAL and card.replacement_started:
                done.append(_refused(self.name, asked, "replacement_started", card))
            else:
                before, after = changes.apply(card, action)
                if after is None:
                    done.append(_refused(self.name, asked, STATUS_REASON[before].value, card))
                else:
                    done.append(_Changed(asked, card.card_id, before, after))
        return await _end(connection, self._tell, NoticeKind.RELEASE, changes, done)

    async def finish(self, what: Notice) -> Answer:
        return await self._tell.first(what)


async def _presets(connection: "AnyConnection", batch: Sequence[Asked]) -> list[str]:
    """The reasons to refuse that are there before cards are read. Codes are claimed here: who comes second replays."""
    codes = {asked.reference: asked.what.code_digest for asked in batch if asked.what.code_digest is not None}
    if not codes:
        return [asked.what.preset for asked in batch]
    replayed = codes.keys() - await ecards.claim(connection, codes)
    return [Reason.CODE_REPLAYED.value if asked.reference in replayed else asked.what.preset for asked in batch]


class _Changes:
    """What a batch makes of its cards: several effects of one card follow one another, and it is written once."""

    def __init__(self) -> None:
        self.made: dict[Place, Change] = {}
        """Of the cards that have another status now."""

    def status(self, card: Card) -> CardStatus:
        change = self.made.get(card.place)
        return card.status if change is None else change.status

    def apply(self, card: Card, action: CardAction) -> tuple[CardStatus, CardStatus | None]:
        """(status before, status after or None if the table refuses)."""
        before = self.status(card)
        after = TRANSITIONS.get((before, action))
        if after is not None and after is not before:
            earlier = self.made.get(card.place)
            lost = after in LOST and (before not in LOST or (earlier is not None and earlier.lost))
            self.made[card.place] = Change(after, lost, before in LOST and after is CardStatus.LOST_FORMAL)
        return before, after


async def _end(
    connection: "AnyConnection",
    tell: TellBank,
    kind: NoticeKind,
    changes: _Changes,
    done: Sequence[_Changed | Done | Problem],
) -> Results:
    """Write the changes, and record what the banks are to be told of them, in their order.

    One of a card whose last notice is still open is answered `pending` at once: the resolver keeps the order. That is
    so also where the bank cannot be told now: it would be told of the last one later, and never of this one. A release
    that frees nothing there is not told (loss_notices.first_state()); its notice, or that there is none, says so.
    """
    # the social security side is done, and never changed; the notice says what the bank's came to
    name, result = kind.value, ACCEPTED if kind is NoticeKind.LOSS else RELEASED
    holders: dict[UUID, Holder] = {}
    busy: set[UUID] = set()
    heard: dict[UUID, Heard] = {}
    changed = {each.card_id for each in done if isinstance(each, _Changed)}
    if changed:
        busy = await losses.change(connection, changes.made, changed)
        heard = await _heard(connection, done) if kind is NoticeKind.RELEASE else {}
        if busy or heard or tell.has_routes:
            holders = await loss_notices.holders(connection, changed)
    ended: Results = []
    notices: list[Notice] = []
    due_in: list[dt.timedelta | None] = []
    for each in done:
        if not isinstance(each, _Changed):
            ended.append(each)
            continue
        operation, holder = _operation(name, result, each), holders.get(each.card_id)
        known, waits = heard.get(each.asked.reference), each.card_id in busy
        state = NoticeState.INTENT if known is None else first_state(each.after in LOST, known)
        is_open = state in OPEN
        if holder is None or state is None or (is_open and not waits and not tell.can_tell(holder.bank)):
            ended.append(Done(_answer(each.asked, _here(each, result), _NOT_TOLD), operation))
            continue
        notice = _notice(kind, each, holder, state)
        notices.append(notice)
        due_in.append((_AT_ONCE if waits else tell.lease) if is_open else None)
        ended.append(Begun(operation, notice) if is_open and not waits else Done(answer_of(notice), operation))
        if is_open:
            busy.add(each.card_id)
    if notices:
        await loss_notices.insert(connection, notices, due_in)
    return ended


async def _heard(connection: "AnyConnection", done: Sequence[_Changed | Done | Problem]) -> dict[UUID, Heard]:
    """By release, of those that do not open their card."""
    unopened = {
        each.asked.reference: (each.card_id, each.asked.what.reference)
        for each in done
        if isinstance(each, _Changed) and not each.opens
    }
    return await loss_notices.heard(connection, unopened) if unopened else {}


def _operation(name: str, result: str, changed: _Changed) -> Operation:
    asked = changed.asked
    return Operation(
        asked.reference, name, asked.caller_id, changed.card_id, _parent(asked), result, None,
        int(changed.before), int(changed.after),
    )  # fmt: skip


def _notice(kind: NoticeKind, changed: _Changed, holder: Holder, state: NoticeState) -> Notice:
    """As the card is lost now, or was: a temporary report does not weaken a formal loss at the bank either."""
    asked, lost = changed.asked, changed.after if kind is NoticeKind.LOSS else changed.before
    return Notice(
        asked.reference, created_at(asked.reference), kind,
        LossKind.FORMAL if lost is CardStatus.LOST_FORMAL else LossKind.TEMPORARY,
        asked.caller_id, asked.key, changed.card_id, changed.after, *holder, state,
        OTHER_REPORT if state is NoticeState.REFUSED else None,
    )  # fmt: skip


def _refused(kind: str, asked: Asked, reason: str, card: Card | None = None) -> Done:
    card_id = card and card.card_id
    operation = Operation(asked.reference, kind, asked.caller_id, card_id, _parent(asked), REFUSED, reason)
    return Done(_answer(asked, SocialSecuritySide(REFUSED, reason), _NOT_TOLD), operation)


def _parent(asked: Asked) -> UUID | None:
    return asked.what.reference if isinstance(asked.what, Release) else None


def _here(changed: _Changed, result: str) -> SocialSecuritySide:
    return SocialSecuritySide(result, card_status=_SHOWN[changed.after])


def _answer(asked: Asked, side: SocialSecuritySide, bank: BankSide) -> Answer:
    return Answer(200, _encode(LossAnswer(str(asked.reference), side, bank)))
