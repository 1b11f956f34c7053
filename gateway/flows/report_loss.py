"""Report a card lost, and release it: the social security side (domain.md §1.4, §1.5).

The bank's account is frozen by the bank alone: two requests, two results, and partial success is a normal outcome. From
the commit of a report on, every verify reads the card as lost: they share one row.
"""

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import msgspec

from gateway.domain.cards import LOST, REPORT, STATUS_REASON, TRANSITIONS, CardAction, CardStatus, LossKind
from gateway.domain.errors import Problem, unavailable
from gateway.domain.verdicts import Reason
from gateway.flows.effects import Answer, Asked, Done
from gateway.store import losses
from gateway.store.losses import Card, Wanted
from gateway.store.operations import Operation

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

ACCEPTED, REFUSED, RELEASED = "accepted", "refused", "released"
NOT_CONNECTED = "not_connected"

_encode = msgspec.json.Encoder().encode


class SocialSecuritySide(msgspec.Struct, frozen=True, gc=False):
    """`accepted` (the card is lost now), `released` (it is not any more) or `refused` with a reason."""

    status: str
    reason: str | msgspec.UnsetType = msgspec.UNSET
    card_status: str | msgspec.UnsetType = msgspec.UNSET


class BankSide(msgspec.Struct, frozen=True, gc=False):
    """`not_connected`: the bank was not told; the holder has to report to the bank."""

    status: str


class LossAnswer(msgspec.Struct, frozen=True, gc=False):
    """Two requests, two results."""

    reference: str
    social_security: SocialSecuritySide
    bank: BankSide


class Report(NamedTuple):
    """`preset` is a reason to refuse that was found before the card was read."""

    wanted: Wanted
    kind: LossKind
    preset: str = ""


class Release(NamedTuple):
    """`reference` is that of the caller's own report; `card`, if given, must be the report's."""

    reference: UUID
    card: Wanted | None = None
    preset: str = ""


class ReportLoss:
    """Kind of effect; `what` is a Report."""

    name = "loss_report"

    async def perform(self, connection: "AnyConnection", batch: Sequence[Asked]) -> list[Done | Problem]:
        reports: list[Report] = [asked.what for asked in batch]
        cards = await losses.lock_wanted(connection, [report.wanted for report in reports])
        changes = _Changes()
        done: list[Done | Problem] = []
        for item, (asked, report) in enumerate(zip(batch, reports, strict=True)):
            card, now = cards.get(item, (None, None))
            if report.preset == Reason.PLATFORM_UNAVAILABLE:
                done.append(unavailable("what was presented cannot be read now"))
            elif card is None:
                done.append(_refused(self.name, asked, Reason.UNRECOGNISED.value))
            elif report.preset:
                done.append(_refused(self.name, asked, report.preset, card))
            else:
                before, after = changes.apply(card, REPORT[report.kind], now)
                if after is None:
                    done.append(_refused(self.name, asked, STATUS_REASON[before].value, card))
                else:
                    done.append(_changed(self.name, asked, ACCEPTED, card, before, after))
        await changes.write(connection)
        return done


class ReleaseLoss:
    """Kind of effect; `what` is a Release."""

    name = "loss_release"

    async def perform(self, connection: "AnyConnection", batch: Sequence[Asked]) -> list[Done | Problem]:
        releases: list[Release] = [asked.what for asked in batch]
        callers = [asked.caller_id for asked in batch]
        cards = await losses.lock_reported(
            connection, [release.reference for release in releases], callers, ReportLoss.name
        )
        given: dict[int, UUID] = {}
        if any(release.card is not None for release in releases):
            given = await losses.find_wanted(connection, [release.card or Wanted() for release in releases])
        changes = _Changes()
        done: list[Done | Problem] = []
        for item, (asked, release) in enumerate(zip(batch, releases, strict=True)):
            if item not in cards:
                done.append(Problem("not_found"))
                continue
            if release.preset == Reason.PLATFORM_UNAVAILABLE:
                done.append(unavailable("what was presented cannot be read now"))
                continue
            if release.preset or (release.card is not None and given.get(item) != cards[item][0].card_id):
                done.append(_refused(self.name, asked, release.preset or Reason.UNRECOGNISED.value, cards[item][0]))
                continue
            card, lost_by_it = cards[item]
            now = changes.now(card)
            # who made a card lost releases it, not who found it lost already: that may have been the registry, or a
            # formal report of another caller
            if CardStatus(now.status) in LOST and (lost_by_it is None or lost_by_it != now.lost_at):
                done.append(_refused(self.name, asked, "other_report", card))
            elif now.status == CardStatus.LOST_FORMAL and now.replacement_started:
                done.append(_refused(self.name, asked, "replacement_started", card))
            else:
                before, after = changes.apply(card, CardAction.RELEASE)
                if after is None:
                    done.append(_refused(self.name, asked, STATUS_REASON[before].value, card))
                else:
                    done.append(_changed(self.name, asked, RELEASED, card, before, after))
        await changes.write(connection)
        return done


class _Changes:
    """What a batch makes of its cards: several effects of one card follow one another, and it is written once."""

    def __init__(self) -> None:
        self._cards: dict[UUID, Card] = {}

    def now(self, card: Card) -> Card:
        return self._cards.get(card.card_id, card)

    def apply(
        self, card: Card, action: CardAction, lost_at: dt.datetime | None = None
    ) -> tuple[CardStatus, CardStatus | None]:
        """(status before, status after or None if the table refuses). `lost_at`: if it is lost from now on."""
        card = self.now(card)
        before = CardStatus(card.status)
        after = TRANSITIONS.get((before, action))
        if after is not None and after is not before:
            since = lost_at if after in LOST else None
            self._cards[card.card_id] = card._replace(status=int(after), lost_at=since)
        return before, after

    async def write(self, connection: "AnyConnection") -> None:
        if self._cards:
            await losses.change(connection, list(self._cards.values()))


def _changed(kind: str, asked: Asked, result: str, card: Card, before: CardStatus, after: CardStatus) -> Done:
    side = SocialSecuritySide(result, card_status=after.name.lower())
    operation = Operation(
        asked.reference, kind, asked.caller_id, card.card_id, _parent(asked), result, None, int(before), int(after)
    )
    return Done(_answer(asked, side), operation)


def _refused(kind: str, asked: Asked, reason: str, card: Card | None = None) -> Done:
    card_id = card and card.card_id
    operation = Operation(asked.reference, kind, asked.caller_id, card_id, _parent(asked), REFUSED, reason)
    return Done(_answer(asked, SocialSecuritySide(REFUSED, reason)), operation)


def _parent(asked: Asked) -> UUID | None:
    return asked.what.reference if isinstance(asked.what, Release) else None


def _answer(asked: Asked, side: SocialSecuritySide) -> Answer:
    return Answer(200, _encode(LossAnswer(str(asked.reference), side, BankSide(NOT_CONNECTED))))
