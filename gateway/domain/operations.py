"""What the gateway asks of partners. Money is integer fen, times are aware, a reference is ours, stable over retries.

Account numbers and the like are Secret: an adapter reveals them into the bytes that it builds; nothing else does.
"""

import datetime as dt
from enum import StrEnum
from functools import cache
from uuid import UUID

import msgspec

from gateway.domain.cards import LossKind
from gateway.domain.masking import Secret
from gateway.domain.outbox import FeedItem


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """Every operation carries our reference, by which the partner can be asked what became of it."""

    reference: UUID
    at: dt.datetime
    """When the operation was first made; the same in every retry."""


class Purchase(Operation, frozen=True, kw_only=True):
    account: Secret[str]
    amount_fen: int
    merchant_id: str
    terminal_id: str
    order_id: str
    trace: int
    """A number of six digits that is unique per link and day (ISO 8583 F11)."""


class Reverse(Operation, frozen=True, kw_only=True):
    """Undo a purchase of which we do not know, or no longer want, the outcome. It may be sent any number of times."""

    original: Purchase


class Refund(Operation, frozen=True, kw_only=True):
    """Give back a part of an approved purchase. Never reversed."""

    original: Purchase
    amount_fen: int
    trace: int


class Balance(Operation, frozen=True, kw_only=True):
    account: Secret[str]
    trace: int


class AccountCheck(Operation, frozen=True, kw_only=True):
    """Does the account exist, and is it this person's?"""

    account: Secret[str]
    name: Secret[str]
    id_number: Secret[str]


class Transfer(Operation, frozen=True, kw_only=True):
    from_account: Secret[str]
    to_account: Secret[str]
    to_name: Secret[str]
    amount_fen: int
    purpose: str


class BatchLine(msgspec.Struct, frozen=True):
    line: int
    to_account: Secret[str]
    to_name: Secret[str]
    amount_fen: int


class BatchTransfer(Operation, frozen=True, kw_only=True):
    """Payroll: the lines sum to total_fen."""

    from_account: Secret[str]
    batch_no: str
    lines: tuple[BatchLine, ...]
    total_fen: int


class NotifyLoss(Operation, frozen=True, kw_only=True):
    """Tell the bank that a card is lost, or found again."""

    account: Secret[str]
    id_number: Secret[str]
    kind: LossKind
    release: bool


class CheckFile(Operation, frozen=True, kw_only=True):
    """Fetch the partner's list of a settlement day."""

    day: dt.date


class SettleTotals(Operation, frozen=True, kw_only=True):
    """Compare a settlement day's sums with the partner's (ISO 8583 F48). `balanced` in the outcome's facts."""

    day: dt.date
    trace: int
    debit_fen: int
    debits: int
    """How many purchases, less those reversed."""
    credit_fen: int
    credits: int
    """How many refunds."""


class VerifyEcardCode(Operation, frozen=True, kw_only=True):
    """Ask the national platform whose code this is; a code is good once."""

    code: Secret[str]


class EcardSignLevel(Operation, frozen=True, kw_only=True):
    """`sign_info`: has this person signed an e-card, and at what level?"""

    name: Secret[str]
    id_number: Secret[str]
    region: str


class ScanLogin(Operation, frozen=True, kw_only=True):
    """`qrcode_channel`: a code to show for scanning with the e-card app."""


class ScanLoginState(Operation, frozen=True, kw_only=True):
    """`qrcode_channel_query`: who has scanned and confirmed the shown code?"""

    shown: str


class DeliverUsage(Operation, frozen=True, kw_only=True):
    """Bring usage events to a subscriber of the outward feed: a batch, in the feed's order.

    Approved says of each event that it was accepted, was there already, or was refused: facts `duplicates` (a number)
    and `refused` (pairs of event id and code). Sent again, the same events are duplicates.
    """

    sequence: int
    """Of the batch: grows, and is never used twice for a subscriber."""
    items: tuple[FeedItem, ...]


class Way(StrEnum):
    ENTRY = "entry"
    EXIT = "exit"


class OpenBarrier(Operation, frozen=True, kw_only=True):
    """Let a car in or out, once for its reference. Of an exit, the reference is that of its ParkingFee too."""

    terminal_id: str
    way: Way
    plate: Secret[str]
    ticket: str
    open_before: dt.datetime
    """Not later: by then the car may have gone, and another one stands there."""


class ParkingFee(Operation, frozen=True, kw_only=True):
    """What a car owes on its way out; `fee_fen` in the outcome's facts. Changes nothing."""

    terminal_id: str
    plate: Secret[str]
    ticket: str


class HotelCheckIn(Operation, frozen=True, kw_only=True):
    """Tell a hotel that a guest's card is good, and what part of the price it pays."""

    terminal_id: str
    booking: str
    holder: Secret[str]
    """Masked: `*三`, never more."""
    rate_percent: int
    act_before: dt.datetime
    """Not later: by then the guest may have gone."""


class TillDiscount(Operation, frozen=True, kw_only=True):
    """Tell a till what is taken off a bill."""

    terminal_id: str
    ticket: str
    amount_fen: int
    """Before the discount."""
    discount_fen: int
    act_before: dt.datetime
    """Not later: by then the bill may have been paid."""


class QueryStatus(Operation, frozen=True, kw_only=True):
    """What became of an earlier operation, asked by our reference."""

    original: Operation


class LinkMessage(StrEnum):
    """What keeps a long-lived link alive."""

    SIGN_ON = "sign_on"
    ECHO = "echo"
    SIGN_OFF = "sign_off"


@cache
def name_of(kind: type[object]) -> str:
    """`Purchase` -> `purchase`, `VerifyEcardCode` -> `verify_ecard_code`: in configuration, metrics and logs."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in kind.__name__)[1:]


OPERATIONS: dict[str, type[Operation]] = {
    name_of(kind): kind
    for kind in (
        Purchase, Reverse, Refund, Balance, AccountCheck, Transfer, BatchTransfer, NotifyLoss, CheckFile,
        SettleTotals, VerifyEcardCode, EcardSignLevel, ScanLogin, ScanLoginState, DeliverUsage, OpenBarrier,
        ParkingFee, HotelCheckIn, TillDiscount, QueryStatus,
    )
}  # fmt: skip
"""Every operation by its name."""
