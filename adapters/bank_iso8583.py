"""A bank by ISO 8583 on a long-lived link, as 银联 POS speaks it (domain.md §4.2).

消费 0200, 余额查询 0200, 冲正 0400 or 0420, 退货 0220, 结算 0500, 签到 0800, 回响 and 签退 0820. Every message but the
link's own carries a mac in its last field (F64, or F128 with a second bitmap) over all that goes before it.

The dialect cannot ask what became of an operation. A purchase of unknown outcome is reversed, with its own F11, F41,
F42, until 00 or 25 answers. A refund is an advice and never reversed; whoever sends it again sends the same, and our
reference in a private field tells the host so.
"""

import datetime as dt
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec

from adapters._iso8583 import Codec, Fields, Numbers, Unpackable, Unreadable
from gateway.domain.operations import (
    Balance,
    LinkMessage,
    Operation,
    Purchase,
    QueryStatus,
    Refund,
    Reverse,
    SettleTotals,
)
from gateway.domain.outcome import Approved, DeclineCode, Declined, Outcome, Unknown
from gateway.domain.times import CHINA
from gateway.partners.contract import CallContext, CannotBuild, CryptoRefused, LinkFrame, Transport, WireReply

_YUAN = "156"
_NO_ANSWER = "98"
"""Why a reversal is sent (F39 of the request): no reply within the time."""

DECLINES: Final[Mapping[str, DeclineCode]] = {
    "05": DeclineCode.DO_NOT_HONOUR,
    "14": DeclineCode.INVALID_CARD,
    "25": DeclineCode.NOT_FOUND,
    "30": DeclineCode.PARTNER_FAILURE,
    "41": DeclineCode.LOST_CARD,
    "51": DeclineCode.INSUFFICIENT_FUNDS,
    "54": DeclineCode.EXPIRED_CARD,
    "55": DeclineCode.WRONG_PIN,
    "61": DeclineCode.LIMIT_EXCEEDED,
    "75": DeclineCode.PIN_TRIES_EXCEEDED,
    "91": DeclineCode.PARTNER_FAILURE,
    "94": DeclineCode.DUPLICATE,
    "96": DeclineCode.PARTNER_FAILURE,
    "A0": DeclineCode.PARTNER_FAILURE,
}
"""F39 (domain.md §4.2). A code that is not here, and not in Dialect.declines, leaves the outcome Unknown."""

NETWORK: Final[Mapping[LinkMessage, tuple[str, str]]] = {
    LinkMessage.SIGN_ON: ("0800", "001"),
    LinkMessage.ECHO: ("0820", "301"),
    LinkMessage.SIGN_OFF: ("0820", "002"),
}
"""Message type, and the network code at the end of F60."""

_SHOWN: Final = frozenset(("t", "3", "4", "11", "12", "13", "15", "22", "25", "37", "39", "41", "42", "49", "60", "70"))
"""Fields that may be logged; every other is masked (card, tracks, PIN, chip data, amounts of the account, texts)."""

_Digits6 = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{6}$")]


_Merchant = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Z]{1,15}$")]
_Terminal = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Z]{1,8}$")]


class Shop(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this bank calls a merchant and its terminals."""

    merchant_id: _Merchant
    terminal_id: _Terminal
    """Of terminals that are not in `terminals`."""
    terminals: Mapping[str, _Terminal] = {}


class Dialect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    merchant_id: _Merchant
    """F42 and F41 of what belongs to no shop: balance, settlement, the link's own messages."""
    terminal_id: _Terminal
    shops: Mapping[str, Shop] = {}
    """By merchant; F42 and F41 of others are as they call themselves. A reversal must find its purchase: an entry that
    was paid at is changed when its payments can no longer be reversed."""
    numbers: Numbers = "bcd"
    header: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2}){0,32}$")] = ""
    """Hex, before the message type (TPDU and the like); a reply's is as long and not looked at."""
    entry_mode: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{3}$")] = "032"
    """F22: 03 a code was read, 2 without PIN. The bank's own rule decides."""
    condition: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{2}$")] = "00"
    batch_no: _Digits6 = "000001"
    reference_field: Literal["57", "59", "62"] = "59"
    """The private field that the host keeps: our reference, then that of the original, 32 hex digits each."""
    reversal: Literal["0400", "0420"] = "0400"
    """0400 names the original in F61, 0420 in F90."""
    reversal_hours_max: Annotated[int, msgspec.Meta(ge=1, le=72)] = 24
    """After that F11 may mean another purchase: a matter of reconciliation (jPOS: 86 400 s)."""
    declines: Mapping[Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Z]{2}$")], DeclineCode] = {}
    """More codes of this bank, or other meanings."""


class Adapter:
    TRANSPORT: ClassVar[Transport] = Transport.ISO8583
    OPERATIONS: ClassVar[frozenset[type[Operation]]] = frozenset((Purchase, Reverse, Refund, Balance, SettleTotals))
    offered = OPERATIONS
    KEYS: ClassVar[frozenset[str]] = frozenset(("mac",))
    Settings: ClassVar[type[msgspec.Struct]] = Dialect

    def __init__(self, settings: Dialect) -> None:
        self._settings = settings
        self._header = bytes.fromhex(settings.header)
        self._codec = Codec(settings.numbers)
        self._declines = {**DECLINES, **settings.declines}
        self._requests: dict[type[Operation], Callable[[Any, CallContext], Fields]] = {
            Purchase: self._purchase,
            Reverse: self._reverse,
            Refund: self._refund,
            Balance: self._balance,
            SettleTotals: self._settle,
        }

    def build(self, op: Operation, ctx: CallContext) -> LinkFrame:
        fields = self._request(op, ctx)
        mac_field = "128" if any(int(number) > 64 for number in fields if number != "t") else "64"
        try:
            unsealed = self._codec.pack({**fields, mac_field: "0" * 16})[:-8]
            return LinkFrame(self._header + unsealed + ctx.crypto.mac("mac", unsealed)[:8])
        except (Unpackable, CryptoRefused) as error:
            raise CannotBuild(str(error)) from None

    def parse(self, op: Operation, ctx: CallContext, reply: WireReply) -> Outcome:
        if not isinstance(reply, LinkFrame):
            return Unknown("not a message of a link")
        try:
            fields = self._read_sealed(ctx, reply.body)
            asked = self._request(op, ctx)
        except (Unreadable, CannotBuild):
            return Unknown("unreadable")
        except CryptoRefused:
            return Unknown("the mac cannot be checked")
        if fields is None:
            return Unknown("the mac does not fit")
        if not self._answers(asked, fields):
            return Unknown("a reply to something else")
        code = fields.get("39", "")
        if isinstance(op, Reverse):
            return _reversed(code, fields)
        if code == "00":
            return _done(op, fields)
        declined = self._declines.get(code)
        if declined is None:
            return Unknown(f"answered {code!a}")
        if declined is DeclineCode.DUPLICATE and ctx.attempt > 1:
            return Unknown("answered as a duplicate, perhaps of an earlier try")
        return Declined(declined)

    def query_for(self, op: Operation) -> QueryStatus | None:
        """None: the dialect has no such message."""
        return None

    def redact(self, wire: bytes) -> str:
        try:
            fields = self._read(wire)
        except Unreadable:
            return f"unreadable, {len(wire)} bytes"
        shown = (
            f"{number}={ascii(value)[1:-1] if number in _SHOWN else '***'}"
            for number, value in fields.items()
            if number not in ("h", "p", "1")
        )
        return " ".join(shown)

    def correlate(self, message: bytes) -> str | None:
        """Kind of message, F41, F11. The kind, because a reversal has the F41 and F11 of its purchase (jPOS QMUX)."""
        try:
            fields = self._read(message)
        except Unreadable:
            return None
        kind, terminal, trace = fields["t"], fields.get("41"), fields.get("11")
        if not _is_type(kind) or terminal is None or trace is None:
            return None
        return f"{kind[:2]}{int(kind[2]) & ~1} {terminal} {trace}"

    def is_reply(self, message: bytes) -> bool:
        kind = self._codec.message_type(message[len(self._header) :])
        return _is_type(kind) and int(kind[2]) % 2 == 1

    def link_message(self, kind: LinkMessage, ctx: CallContext, trace: int) -> LinkFrame:
        """Without a mac: the reply is not trusted with anything but that the host is there."""
        message_type, code = NETWORK[kind]
        fields = {"t": message_type, **self._place(self._settings), **_when(ctx.now, trace)}
        fields["60"] = f"00{self._settings.batch_no}{code}"
        try:
            return LinkFrame(self._header + self._codec.pack(fields))
        except Unpackable as error:
            raise CannotBuild(str(error)) from None

    def link_accepted(self, reply: bytes) -> bool:
        try:
            fields = self._read(reply)
        except Unreadable:
            return False
        return fields["t"] in ("0810", "0830") and fields.get("39") == "00"

    # requests

    def _request(self, op: Operation, ctx: CallContext) -> Fields:
        """Without the mac. Raises CannotBuild."""
        request = self._requests.get(type(op))
        if request is None:
            raise CannotBuild("not an operation of this dialect")
        return request(op, ctx)

    def _purchase(self, op: Purchase, ctx: CallContext) -> Fields:
        return {
            "t": "0200",
            **self._card(op.account.reveal(), "000000"),
            "4": _amount(op.amount_fen),
            **_when(op.at, op.trace),
            **self._place(op),
            "49": _YUAN,
            "60": f"22{self._settings.batch_no}000",
            self._settings.reference_field: op.reference.hex,
        }

    def _reverse(self, op: Reverse, ctx: CallContext) -> Fields:
        original = op.original
        if ctx.now - original.at > dt.timedelta(hours=self._settings.reversal_hours_max):
            raise CannotBuild("too late for a reversal")
        fields = self._purchase(original, ctx)
        if self._settings.reversal == "0400":
            message_type, named = "0400", {"61": self._original(original)}
        else:
            message_type = "0420" if ctx.attempt == 1 else "0421"
            stamp = f"{original.at.astimezone(CHINA):%m%d%H%M%S}"
            named = {"90": f"0200{fields['11']}{stamp}{'0' * 22}"}
        references: Fields = {self._settings.reference_field: op.reference.hex + original.reference.hex}
        return {**fields, "t": message_type, "39": _NO_ANSWER, **named, **references}

    def _refund(self, op: Refund, ctx: CallContext) -> Fields:
        if not 0 < op.amount_fen <= op.original.amount_fen:
            raise CannotBuild("more than the purchase, or nothing")
        return {
            "t": "0220" if ctx.attempt == 1 else "0221",
            **self._card(op.original.account.reveal(), "200000"),
            "4": _amount(op.amount_fen),
            **_when(op.at, op.trace),
            **self._place(op.original),
            "49": _YUAN,
            "60": f"25{self._settings.batch_no}000",
            "61": self._original(op.original),
            self._settings.reference_field: op.reference.hex + op.original.reference.hex,
        }

    def _balance(self, op: Balance, ctx: CallContext) -> Fields:
        return {
            "t": "0200",
            **self._card(op.account.reveal(), "310000"),
            **_when(op.at, op.trace),
            **self._place(self._settings),
            "49": _YUAN,
            "60": f"01{self._settings.batch_no}000",
            self._settings.reference_field: op.reference.hex,
        }

    def _settle(self, op: SettleTotals, ctx: CallContext) -> Fields:
        """F48: debits, their count, credits, their count, a place for the host's verdict; the same of foreign cards."""
        if not (0 <= op.debits <= 999 and 0 <= op.credits <= 999):
            raise CannotBuild("a batch has at most 999 of each")
        ours = f"{_total(op.debit_fen)}{op.debits:03}{_total(op.credit_fen)}{op.credits:03}0"
        return {
            "t": "0500",
            **_when(op.at, op.trace),
            "15": f"{op.day:%m%d}",
            **self._place(self._settings),
            "48": ours + "0" * 31,
            "49": _YUAN,
            "60": f"00{self._settings.batch_no}201",
            self._settings.reference_field: op.reference.hex,
        }

    def _card(self, account: str, processing: str) -> Fields:
        if not (13 <= len(account) <= 19 and account.isascii() and account.isdigit()):
            raise CannotBuild("an account has 13 to 19 digits")
        return {"2": account, "3": processing, "22": self._settings.entry_mode, "25": self._settings.condition}

    def _place(self, op: Purchase | Dialect) -> Fields:
        merchant, terminal = op.merchant_id, op.terminal_id
        if isinstance(op, Purchase) and (shop := self._settings.shops.get(merchant)) is not None:
            merchant, terminal = shop.merchant_id, shop.terminals.get(terminal, shop.terminal_id)
        return {"41": terminal.ljust(8), "42": merchant.ljust(15)}

    def _original(self, original: Purchase) -> str:
        when = _when(original.at, original.trace)
        return f"{self._settings.batch_no}{when['11']}{when['13']}"

    # replies

    def _read(self, wire: bytes) -> Fields:
        return self._codec.read(wire[len(self._header) :])

    def _read_sealed(self, ctx: CallContext, wire: bytes) -> Fields | None:
        """None for a mac that is missing or wrong. Raises Unreadable, CryptoRefused."""
        message = wire[len(self._header) :]
        fields = self._codec.read(message)
        if ("128" if "1" in fields else "64") not in fields:
            return None
        return fields if ctx.crypto.verify("mac", message[:-8], message[-8:]) else None

    def _answers(self, asked: Fields, fields: Fields) -> bool:
        """F11 and F41 must come back; what else comes back of the request must be the same."""
        kind = asked["t"]
        if fields["t"] != f"{kind[:2]}{int(kind[2]) + 1}0" or "11" not in fields or "41" not in fields:
            return False
        echoed = ("2", "3", "4", "11", "13", "15", "41", "42", "49", self._settings.reference_field)
        return all(fields[number] == asked.get(number) for number in echoed if number in fields)


def _is_type(kind: str) -> bool:
    return len(kind) == 4 and kind.isascii() and kind.isdigit()


def _amount(fen: int) -> str:
    if not 0 < fen < 10**12:
        raise CannotBuild("an amount has 1 to 12 digits")
    return f"{fen:012}"


def _total(fen: int) -> str:
    return _amount(fen) if fen else "0" * 12


def _when(at: dt.datetime, trace: int) -> Fields:
    if not 0 < trace < 10**6:
        raise CannotBuild("a trace has 1 to 6 digits")
    local = at.astimezone(CHINA)
    return {"11": f"{trace:06}", "12": f"{local:%H%M%S}", "13": f"{local:%m%d}"}


def _reversed(code: str, fields: Fields) -> Outcome:
    """00 and 25 both end it (domain.md §4.2); after any other answer it is to be sent again.

    25 is not an approval: the purchase may still be on its way, and whoever asked looks once more.
    """
    if code == "00":
        return Approved(_partner_reference(fields))
    if code == "25":
        return Declined(DeclineCode.NOT_FOUND)
    return Unknown(f"a reversal answered {code!a}")


def _done(op: Operation, fields: Fields) -> Outcome:
    if isinstance(op, Balance):
        fen = _available_fen(fields.get("54", ""))
        return Unknown("no balance") if fen is None else Approved(_partner_reference(fields), {"balance_fen": fen})
    if isinstance(op, SettleTotals):
        verdict = fields.get("48", "")[30:31]
        if verdict not in ("1", "2"):  # 3: the host could not compare
            return Unknown("no settlement verdict")
        return Approved(_partner_reference(fields), {"balanced": int(verdict == "1")})
    auth_code = fields.get("38", "").strip()
    return Approved(_partner_reference(fields), {"auth_code": auth_code} if auth_code else {})


def _partner_reference(fields: Fields) -> str:
    return fields.get("37", "").strip()


def _available_fen(amounts: str) -> int | None:
    """F54, per 20: kind of account, kind of amount (01 booked, 02 available), currency, C or D, 12 digits of fen."""
    found = {}
    for kind, sign, fen in re.findall(rf"[0-9]{{2}}([0-9]{{2}}){_YUAN}([CD])([0-9]{{12}})", amounts):
        found[kind] = int(fen) if sign == "C" else -int(fen)
    return found.get("02", found.get("01"))
