"""What requests and answers look like: the types that decode them also make the published contract."""

import json
from typing import Annotated, Any

import msgspec

from gateway.domain.callers import KeyPurpose
from gateway.domain.cards import CARD_NUMBER_PATTERN, END, LossKind
from gateway.domain.errors import Problem, invalid
from gateway.domain.fields import NO_CONTROLS, TerminalId, Time, field_error
from gateway.domain.presentations import CardRef, ChipCard, EcardCode, Presentation, Proof, TransitQr
from gateway.domain.scenes import SCENE_PATTERN
from gateway.domain.usage import RejectCode, UsageEvent


class VerifyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A card presented at a terminal."""

    presentation: Presentation
    # its pattern is for the contract's readers: what is not a configured scene is refused anyway
    scene: Annotated[str, msgspec.Meta(max_length=64, extra_json_schema={"pattern": SCENE_PATTERN})]
    terminal_id: TerminalId
    occurred_at: Time | None = None
    explain: Annotated[bool, msgspec.Meta(description="Whether to say why other benefits are not given")] = False


_CardNumber = Annotated[str, msgspec.Meta(pattern=f"^{CARD_NUMBER_PATTERN}{END}", max_length=9)]
_IdNumber = Annotated[str, msgspec.Meta(pattern=f"^[0-9]{{17}}[0-9Xx]{END}", max_length=18)]


class LossReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A card reported lost: presented, or named by its number and its holder's id number, checked together."""

    kind: LossKind
    presentation: Presentation | None = None
    card_number: _CardNumber | None = None
    id_number: _IdNumber | None = None


class LossRelease(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The card of an earlier report is found again. If a card is given, as in a report, it must be that one."""

    kind: LossKind | None = None
    presentation: Presentation | None = None
    card_number: _CardNumber | None = None
    id_number: _IdNumber | None = None


AmountFen = Annotated[int, msgspec.Meta(ge=1, le=50_000_00, description="Fen, 1 to 50 000 yuan")]
_Reason = Annotated[str, msgspec.Meta(max_length=200, pattern=NO_CONTROLS)]


class PaymentRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A card presented to pay with. The order id is the caller's own and is paid once."""

    presentation: Presentation
    scene: Annotated[str, msgspec.Meta(max_length=64, extra_json_schema={"pattern": SCENE_PATTERN})]
    terminal_id: TerminalId
    amount_fen: AmountFen
    merchant_order_id: Annotated[
        str, msgspec.Meta(min_length=1, max_length=64, pattern=f"^[!-~]+{END}", description="Visible ASCII")
    ]
    apply_benefits: Annotated[
        bool, msgspec.Meta(description="Whether to charge less by the holder's best benefit of the scene")
    ] = False


class ReversalRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Undo a whole payment."""

    reason: _Reason = ""


class RefundRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Give back a part of a payment, or all of it."""

    amount_fen: AmountFen
    reason: _Reason = ""


_Detail = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=NO_CONTROLS)]


class VisitDetails(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """By what the merchant's own system knows what it is about: a car (plate or ticket, one of them on its way out), a
    booking, a bill (its ticket, and what it comes to)."""

    plate: Annotated[str, msgspec.Meta(min_length=1, max_length=16, pattern=NO_CONTROLS)] | None = None
    ticket: _Detail | None = None
    booking: _Detail | None = None
    amount_fen: AmountFen | None = None


class VisitRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A card presented where a merchant's own system acts on it: a barrier, a hotel's desk, a till."""

    presentation: Presentation
    scene: Annotated[str, msgspec.Meta(max_length=64, extra_json_schema={"pattern": SCENE_PATTERN})]
    terminal_id: TerminalId
    details: VisitDetails | None = None


class VisitOpening(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """An exit that was due is paid: by an approved payment of this caller, which opens one barrier."""

    payment: Annotated[
        str,
        msgspec.Meta(
            pattern=f"^[0-9a-f]{{8}}-[0-9a-f]{{4}}-7[0-9a-f]{{3}}-[0-9a-f]{{4}}-[0-9a-f]{{12}}{END}", max_length=36,
            description="Its reference",
        ),
    ]  # fmt: skip


_ConfiguredName = Annotated[str, msgspec.Meta(min_length=2, max_length=32, pattern=f"^[a-z0-9][a-z0-9-]*{END}")]


class RedemptionRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Points of the presented card's holder for an item of an outlet; `points` is its price, which the person saw."""

    presentation: Presentation
    points: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
    item: _ConfiguredName
    outlet_id: _ConfiguredName


class RedemptionEnd(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Commit or cancel: the reference in the path says what."""


class UsagePage(msgspec.Struct, frozen=True):
    """A page of the feed. `next` may be kept and asked again at any later time; `more`: asking at once is worth it."""

    items: list[UsageEvent]
    next: str
    more: bool


class TokenAnswer(msgspec.Struct, frozen=True):
    """RFC 6749 §5.1."""

    access_token: str
    token_type: str
    expires_in: int
    scope: str


class TokenError(msgspec.Struct, frozen=True):
    """RFC 6749 §5.2."""

    error: str
    error_description: str


class Jwks(msgspec.Struct, frozen=True):
    """RFC 7517 §5."""

    keys: list[dict[str, str]]


_Coordinate = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
_Kid = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=100,
        pattern=NO_CONTROLS,
        description='Of a signing key: visible ASCII without `"` and `\\`, as a signature names it',
    ),
]


class PublicJwk(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The public part of a key (RFC 7517) of the caller's registered algorithm; a private part is refused."""

    kty: Annotated[str, msgspec.Meta(max_length=10)]
    crv: Annotated[str, msgspec.Meta(max_length=20)]
    kid: _Kid
    x: _Coordinate
    y: _Coordinate | None = None
    alg: Annotated[str, msgspec.Meta(max_length=40)] | None = None
    use: Annotated[str, msgspec.Meta(max_length=10)] | None = None


class KeyChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new key, one to take out, or both."""

    use: KeyPurpose
    jwk: PublicJwk | None = None
    retire: _Kid | None = None


class ProblemField(msgspec.Struct, frozen=True):
    field: str
    message: str


class RejectedLine(msgspec.Struct, frozen=True):
    """A line that was not accepted. `index` counts from 0, `id` is null where it could not be read."""

    index: int
    id: str | None
    code: RejectCode
    errors: list[ProblemField]


class UsageReceipt(msgspec.Struct, frozen=True):
    """What became of the lines: received = created + duplicate + rejected."""

    received: int
    created: int
    duplicate: int
    rejected: list[RejectedLine]


class ProblemAnswer(msgspec.Struct, frozen=True):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[ProblemField]


_KNOWN_NAMES = {
    field.encode_name
    for kind in (
        VerifyRequest,
        LossReport,
        LossRelease,
        PaymentRequest,
        ReversalRequest,
        RefundRequest,
        RedemptionRequest,
        VisitRequest,
        VisitDetails,
        VisitOpening,
        ChipCard,
        Proof,
        EcardCode,
        TransitQr,
        CardRef,
        KeyChange,
        PublicJwk,
    )
    for field in msgspec.structs.fields(kind)
} | {"type"}
"""A path may hold a name that the caller made up: only ours are repeated."""


def decoder(kind: Any) -> Any:
    """A function from bytes to `kind`. It raises Problem 400 for what is not JSON and 422 for what does not fit."""
    decode = msgspec.json.Decoder(kind).decode

    def checked(body: bytes) -> Any:
        try:
            return decode(body)
        except msgspec.ValidationError as error:
            raise invalid(*field_error(error, _KNOWN_NAMES)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Problem("malformed_json") from None

    return checked


def effect_decoder(kind: Any) -> Any:
    """decoder() for what is signed: a field given twice is refused, as two readers could read two things from it."""
    decode = decoder(kind)
    read = json.JSONDecoder(object_pairs_hook=_each_once, parse_int=str).decode

    def checked(body: bytes) -> Any:
        asked = decode(body)  # first: it knows no deep nesting
        read(body.decode())
        return asked

    return checked


def _each_once(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) != len(pairs):
        raise invalid("$", "has a field twice")
