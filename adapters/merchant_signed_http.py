"""Merchants' own systems: parking lots, hotels, restaurants. One dialect whose every name is a setting.

No document of the reference says how such systems speak (domain.md §8 [G]): JSON by POST, the whole of it signed, one
status in each answer, is what their makers have in common. Signed are, of a request, `POST`, path, time, nonce and
body with line feeds between; of an answer the request's nonce and the body, so it answers that try alone. Names,
paths, words and codes are the block's `[partners.<name>.dialect]`, and a new merchant is such a block.

An answer's status says what became of the operation; a question's, what became of the one that is asked after.
"""

import base64
import datetime as dt
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec

from adapters._amounts import Amounts
from gateway.domain.operations import (
    HotelCheckIn,
    OpenBarrier,
    Operation,
    ParkingFee,
    QueryStatus,
    TillDiscount,
    Way,
    name_of,
)
from gateway.domain.outcome import Approved, DeclineCode, Declined, Outcome, Pending, Unknown
from gateway.domain.times import CHINA
from gateway.partners.contract import (
    CallContext,
    CannotBuild,
    CryptoRefused,
    HttpReply,
    HttpRequest,
    Transport,
    WireReply,
)

SIGN, PARTNER = "sign", "partner"
"""The keys of a config block: ours, and theirs. Of an HMAC both may be one file."""
_FEN_MAX: Final = 10**9
_TEXT_MAX: Final = 64
_MASKED: Final = re.compile(r"\*+[^*]{0,2}")
_PLAIN_TEXT: Final = re.compile(r"[^\x00-\x1f\x7f]*")

Place = Annotated[str, msgspec.Meta(pattern=r"^([A-Za-z_][A-Za-z0-9_-]{0,39}(\.(?=.)|\Z)){0,5}\Z")]
"""A name in their JSON, with dots into objects: `head.requestId`. Empty: there is none, and it is not sent."""
Target = Annotated[str, msgspec.Meta(pattern=r"^(/[A-Za-z0-9._-]{1,40}){0,8}\Z")]
"""Empty: this merchant has no such service."""
Header = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9-]{0,59}\Z")]
Word = Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,32}\Z")]


class Paths(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    open_barrier: Target = ""
    parking_fee: Target = ""
    hotel_check_in: Target = ""
    till_discount: Target = ""
    query_status: Target = ""


class Headers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    party: Header = "X-Party"
    at: Header = "X-Timestamp"
    nonce: Header = "X-Nonce"
    signature: Header = "X-Signature"
    """Of requests and answers."""


class Fields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Our names and theirs, in requests."""

    reference: Place = "reference"
    at: Place = "at"
    terminal_id: Place = "terminal_id"
    way: Place = "way"
    plate: Place = "plate"
    ticket: Place = "ticket"
    open_before: Place = "open_before"
    """Of a barrier."""
    act_before: Place = "act_before"
    """Of a hotel's desk and of a till."""
    booking: Place = "booking"
    holder: Place = "holder"
    rate_percent: Place = "rate_percent"
    amount_fen: Place = "amount_fen"
    discount_fen: Place = "discount_fen"


class Answers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same of answers."""

    reference: Place = "reference"
    status: Place = "status"
    fee_fen: Place = "fee_fen"


class Words(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    entry: Word = "entry"
    exit: Word = "exit"


_NEEDED: Final = {
    "open_barrier": ("open_before",), "hotel_check_in": ("booking", "rate_percent", "act_before"),
    "till_discount": ("ticket", "discount_fen", "act_before"),
}  # fmt: skip
"""What a merchant cannot act without; who is told no time may act when a car, a guest or a bill has gone."""


class MerchantSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    party: Word
    """Our name at the merchant."""
    signed: Literal["hmac", "sm2"] = "hmac"
    signature_form: Literal["hex", "base64"] = "hex"
    amounts: Amounts = Amounts.FEN
    """fen: an integer; yuan: a text with two decimals."""
    paths: Paths
    headers: Headers = Headers()
    fields: Fields = Fields()
    answers: Answers = Answers()
    words: Words = Words()
    done: Word
    pending: Word | None = None
    declines: Mapping[Word, DeclineCode] = {}
    """Status -> why; one that is in none of these three is Unknown, and asked after."""

    def __post_init__(self) -> None:
        if not (self.fields.reference and self.answers.reference and self.answers.status):
            raise ValueError("fields.reference, answers.reference and answers.status are needed")
        for path, names in _NEEDED.items():
            for name in names:
                if getattr(self.paths, path) and not getattr(self.fields, name):
                    raise ValueError(f"fields.{name} is needed with paths.{path}")
        if self.paths.parking_fee and not (self.answers.fee_fen and (self.fields.plate or self.fields.ticket)):
            raise ValueError("answers.fee_fen and fields.plate or fields.ticket are needed with paths.parking_fee")
        # else what never came there would be unknown, as what was done and not answered is
        if self.paths.query_status and DeclineCode.NOT_FOUND not in self.declines.values():
            raise ValueError("declines: one status that says not_found is needed with paths.query_status")
        places = [place.split(".") for place in msgspec.structs.astuple(self.fields) if place]
        if any(one == other[: len(one)] for one in places for other in places if one is not other):
            raise ValueError("fields: one is in the place of another")
        if len({self.done, self.pending, *self.declines}) < 2 + len(self.declines):
            raise ValueError("declines: a status has one meaning")
        if len({name.lower() for name in msgspec.structs.astuple(self.headers)} - {"content-type"}) < 4:
            raise ValueError("headers: each needs a name of its own")


class _Unreadable(Exception):
    """An answer is not one of the merchant's to this operation. The text holds nothing of it."""


class Adapter:
    """See the file's docstring."""

    TRANSPORT: ClassVar = Transport.HTTP
    OPERATIONS: ClassVar[frozenset[type[Operation]]] = frozenset(
        {OpenBarrier, ParkingFee, HotelCheckIn, TillDiscount, QueryStatus}
    )
    KEYS: ClassVar = frozenset({SIGN, PARTNER})
    Settings: ClassVar[type[msgspec.Struct]] = MerchantSettings

    def __init__(self, settings: MerchantSettings) -> None:
        self._settings = settings
        self.offered = frozenset(op for op in self.OPERATIONS if getattr(settings.paths, name_of(op)))
        fields = settings.fields
        self._shown = {fields.reference, fields.at, fields.open_before, fields.act_before, fields.way} | {
            fields.rate_percent, fields.amount_fen, fields.discount_fen, settings.answers.reference,
            settings.answers.status, settings.answers.fee_fen,
        }  # fmt: skip
        self._codes = {settings.done, settings.pending, *settings.declines}

    def build(self, op: Operation, ctx: CallContext) -> HttpRequest:
        settings = self._settings
        target, content = self._content(op)
        if not target:
            raise CannotBuild("this merchant has no such service")
        at = ctx.now.astimezone(CHINA).isoformat(timespec="seconds")
        made_at = op.at.astimezone(CHINA).isoformat(timespec="seconds")
        body = _encoded(settings.fields, {"reference": str(_asked(op).reference), "at": made_at} | content)
        head = f"POST\n{target}\n{at}\n{ctx.nonce.hex()}\n".encode()
        sign = ctx.crypto.mac if settings.signed == "hmac" else ctx.crypto.sign
        headers = {
            settings.headers.party: settings.party,
            settings.headers.at: at,
            settings.headers.nonce: ctx.nonce.hex(),
            settings.headers.signature: self._written(sign(SIGN, head + body)),
            "Content-Type": "application/json; charset=utf-8",
        }
        return HttpRequest("POST", target, headers, body)

    def parse(self, op: Operation, ctx: CallContext, reply: WireReply) -> Outcome:
        try:
            content = self._opened(ctx, reply)
            if _at(content, self._settings.answers.reference) != str(_asked(op).reference):
                raise _Unreadable("the answer to another operation")
            return self._outcome(op, content)
        except _Unreadable as why:
            return Unknown(str(why))

    def query_for(self, op: Operation) -> QueryStatus | None:
        """None for the fee, which changes nothing."""
        if not isinstance(op, OpenBarrier | HotelCheckIn | TillDiscount) or not self._settings.paths.query_status:
            return None
        return QueryStatus(reference=op.reference, at=op.at, original=op)

    def redact(self, wire: bytes) -> str:
        """What is at the places of times, amounts, references and codes, if it looks like one."""
        try:
            content = msgspec.json.decode(wire)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return f"({len(wire)} bytes that are not JSON)"
        found = ((place, _at(content, place)) for place in sorted(self._shown) if place)
        shown = [f"{place}={value}" for place, value in found if value is not None and self._is_plain(str(value))]
        return " ".join([*shown, f"({len(wire)} bytes)"])

    def _content(self, op: Operation) -> tuple[str, dict[str, Any]]:
        """(path, our names and their values). Raises CannotBuild."""
        paths = self._settings.paths
        match op:
            case OpenBarrier():
                words = self._settings.words
                way = {"way": words.entry if op.way is Way.ENTRY else words.exit}
                return paths.open_barrier, _car(op) | way | {"open_before": _until(op.open_before)}
            case ParkingFee():
                return paths.parking_fee, _car(op)
            case HotelCheckIn():
                holder = op.holder.reveal()
                if not _MASKED.fullmatch(holder) or not 0 <= op.rate_percent <= 100:
                    raise CannotBuild("the holder is not masked, or the rate is no part of a price")
                guest = {"terminal_id": _text(op.terminal_id), "booking": _text(op.booking), "holder": _text(holder)}
                stay = {"rate_percent": op.rate_percent, "act_before": _until(op.act_before)}
                return paths.hotel_check_in, guest | stay
            case TillDiscount():
                if not 0 <= op.discount_fen <= op.amount_fen <= _FEN_MAX:
                    raise CannotBuild("a discount is at most the amount")
                bill = {"terminal_id": _text(op.terminal_id), "ticket": _text(op.ticket)}
                amounts = {"amount_fen": self._money(op.amount_fen), "discount_fen": self._money(op.discount_fen)}
                return paths.till_discount, bill | amounts | {"act_before": _until(op.act_before)}
            case QueryStatus(original=OpenBarrier() | HotelCheckIn() | TillDiscount()):
                return paths.query_status, {}
        raise CannotBuild("not an operation of this dialect")

    def _opened(self, ctx: CallContext, reply: WireReply) -> Any:
        """The content of an answer, its signature checked. Raises _Unreadable."""
        if not isinstance(reply, HttpReply) or reply.status != 200:
            raise _Unreadable("not an answer of this dialect")
        try:
            signature = self._read(reply.headers.get(self._settings.headers.signature, ""))
            good = ctx.crypto.verify(PARTNER, f"{ctx.nonce.hex()}\n".encode() + reply.body, signature)
        except (ValueError, CryptoRefused):
            good = False
        if not good:
            raise _Unreadable("the signature is not the merchant's, or under the answer to another try")
        try:
            return msgspec.json.decode(reply.body)
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise _Unreadable("the body is not JSON") from None

    def _outcome(self, op: Operation, content: Any) -> Outcome:
        """Raises _Unreadable."""
        settings = self._settings
        status = _at(content, settings.answers.status)
        if type(status) not in (str, int):
            raise _Unreadable("there is no status")
        if (decline := settings.declines.get(str(status))) is not None:
            return Declined(decline)
        if str(status) == settings.pending:
            return Pending()
        if str(status) != settings.done:
            raise _Unreadable("the status is not in the table")
        return Approved(facts={"fee_fen": self._fee(content)} if isinstance(op, ParkingFee) else {})

    def _fee(self, content: Any) -> int:
        """Raises _Unreadable."""
        value = _at(content, self._settings.answers.fee_fen)
        try:
            fee = self._settings.amounts.fen(value) if self._settings.amounts is Amounts.YUAN else value
        except (ValueError, TypeError):
            fee = None
        if type(fee) is not int or not 0 <= fee <= _FEN_MAX:
            raise _Unreadable("there is no fee")
        return fee

    def _money(self, fen: int) -> int | str:
        return fen if self._settings.amounts is Amounts.FEN else f"{fen // 100}.{fen % 100:02d}"

    def _written(self, signature: bytes) -> str:
        return signature.hex() if self._settings.signature_form == "hex" else base64.b64encode(signature).decode()

    def _read(self, text: str) -> bytes:
        """Raises ValueError. A signature is written in one way."""
        raw = bytes.fromhex(text) if self._settings.signature_form == "hex" else base64.b64decode(text, validate=True)
        if self._written(raw) != text.lower() and self._written(raw) != text:
            raise ValueError
        return raw

    def _is_plain(self, value: str) -> bool:
        words = (self._settings.words.entry, self._settings.words.exit)
        return value in self._codes or value in words or _HARMLESS.fullmatch(value) is not None


_HARMLESS: Final = re.compile(
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"  # a reference
    r"|20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+08:00"
    r"|\d{1,9}(\.\d{2})?",  # an amount; a number of a person or card is longer
    re.ASCII,
)


def _asked(op: Operation) -> Operation:
    return op.original if isinstance(op, QueryStatus) else op


def _car(op: OpenBarrier | ParkingFee) -> dict[str, Any]:
    return {
        "terminal_id": _text(op.terminal_id), "plate": _text(op.plate.reveal()), "ticket": _text(op.ticket)
    }  # fmt: skip


def _until(time: dt.datetime) -> str:
    return time.astimezone(CHINA).isoformat(timespec="seconds")


def _text(text: str) -> str:
    """Raises CannotBuild."""
    if len(text) > _TEXT_MAX or not _PLAIN_TEXT.fullmatch(text):
        raise CannotBuild(f"a text has more than {_TEXT_MAX} characters, or control characters")
    return text


def _encoded(fields: Fields, values: Mapping[str, Any]) -> bytes:
    """JSON with the merchant's names; what is empty, or has no place, is left out. Raises CannotBuild."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        place: str = getattr(fields, name)
        if not place or value == "":
            continue
        *parents, last = place.split(".")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    try:
        return msgspec.json.encode(tree)
    except UnicodeEncodeError:
        raise CannotBuild("a text is not Unicode") from None


def _at(content: Any, place: str) -> Any:
    """What is there; None for nothing."""
    for name in place.split("."):
        content = content.get(name) if isinstance(content, dict) else None
    return content
