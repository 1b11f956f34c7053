"""Usage data that callers return (用卡数据回流): a use of a card that happened elsewhere, or the taking back of one.

The record is that of domain.md §8 [G] in the words of api.md; a line of a bulk and a line of a daily file are the same.
"""

import datetime as dt
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, NamedTuple

import msgspec

from gateway.domain.cards import END
from gateway.domain.errors import FieldError
from gateway.domain.fields import TerminalId, Time
from gateway.domain.presentations import CardKey
from gateway.domain.scenes import SCENE_PATTERN

BULK_LINES_MAX = 10_000
_ID_PATTERN = f"^[!-~]{{1,64}}{END}"

LineId = Annotated[str, msgspec.Meta(pattern=_ID_PATTERN, max_length=64, description="Visible ASCII")]
_Fen = Annotated[int, msgspec.Meta(ge=0, le=10_000_000_00, description="Fen, up to 10 million yuan")]


class UsageResult(StrEnum):
    SUCCESS = "success"
    FAILED = "failed"
    """Recorded; it earns nothing and no sum counts it."""


class UsageLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A use of a card; with `reversal_of`, the taking back of one, which names the same card and amount.

    The card is `card_ref`, or `card_number` and `card_identifier`. `id` is the caller's own and unique for ever.
    """

    id: LineId
    scene: Annotated[str, msgspec.Meta(max_length=64, extra_json_schema={"pattern": SCENE_PATTERN})]
    terminal_id: TerminalId
    occurred_at: Time
    result: UsageResult
    card_ref: Annotated[str, msgspec.Meta(pattern=f"^[A-Za-z0-9_-]{{1,64}}{END}", max_length=64)] | None = None
    card_number: CardKey | None = None
    card_identifier: CardKey | None = None
    amount_fen: _Fen | None = None
    discount_fen: _Fen | None = None
    reversal_of: LineId | None = None


class RejectCode(StrEnum):
    """Why a line was not accepted; its neighbours do not notice, and its id is not used up."""

    MALFORMED = "malformed_json"
    """Not JSON in UTF-8, nested too deeply, or longer than a line may be."""
    INVALID = "validation_failed"
    UNKNOWN_SCENE = "unknown_scene"
    TIME = "time_out_of_bounds"
    """In the future, or later returned than the gateway takes it."""
    UNRECOGNISED = "unrecognised"
    """No such card, or number and identifier do not belong together: one answer for both."""
    CONFLICT = "id_conflict"
    """The id was used before for something else."""
    UNKNOWN_ORIGINAL = "unknown_original"
    """`reversal_of` is no accepted id of this caller, nor one of the same bulk or file."""
    ALREADY_REVERSED = "already_reversed"
    NOT_REVERSIBLE = "not_reversible"
    """`reversal_of` is a reversal itself, or a use that failed."""
    MISMATCH = "reversal_mismatch"
    """The reversal names another card or amount than what it takes back."""


class Reject(NamedTuple):
    """A line that was not accepted, by its place among its neighbours and its id, if that could be read."""

    number: int
    id: str | None
    code: RejectCode
    errors: Sequence[FieldError] = ()


class Original(NamedTuple):
    """What is known of a use that a line takes back."""

    card_id: str
    amount_fen: int | None
    result: str
    is_reversal: bool
    is_reversed: bool


def refusal_of_reversal(line: UsageLine, card_id: str, original: Original | None) -> RejectCode | None:
    """Why a line cannot take back the use; None: it can."""
    if original is None:
        return RejectCode.UNKNOWN_ORIGINAL
    if original.is_reversal or original.result != UsageResult.SUCCESS:
        return RejectCode.NOT_REVERSIBLE
    if original.card_id != card_id or original.amount_fen != line.amount_fen:
        return RejectCode.MISMATCH
    return RejectCode.ALREADY_REVERSED if original.is_reversed else None


def mistakes_of(line: UsageLine) -> list[FieldError]:
    """What is wrong between the fields of a line."""
    mistakes = []
    by_number = (line.card_number is not None) + (line.card_identifier is not None)
    if by_number != (2 if line.card_ref is None else 0):
        mistakes.append(FieldError("$", "needs card_ref, or card_number with card_identifier"))
    if line.reversal_of is not None:
        if line.reversal_of == line.id:
            mistakes.append(FieldError("$.reversal_of", "is the id of this line"))
        if line.result is not UsageResult.SUCCESS:
            mistakes.append(FieldError("$.result", "must be success: a reversal that failed takes nothing back"))
    return mistakes


class _Named(msgspec.Struct):
    id: str


_decode = msgspec.json.Decoder(UsageLine).decode
_decode_name = msgspec.json.Decoder(_Named).decode
_is_id = re.compile(_ID_PATTERN).match
FIELDS = frozenset(field.encode_name for field in msgspec.structs.fields(UsageLine))


def read_line(raw: bytes) -> UsageLine:
    """Raises msgspec.ValidationError for what does not fit; else DecodeError, UnicodeDecodeError or RecursionError."""
    return _decode(raw)


def id_of(raw: bytes) -> str | None:
    """The id of a line that does not fit, if it has a good one: so that its sender finds it."""
    try:
        name = _decode_name(raw).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return name if _is_id(name) else None


class UsageEvent(msgspec.Struct, frozen=True):
    """One use of a card. What does not apply is absent."""

    event_id: str
    kind: str
    caller: str
    scene: str
    terminal_id: str
    occurred_at: dt.datetime
    recorded_at: dt.datetime
    verdict: str | msgspec.UnsetType = msgspec.UNSET
    reason: str | msgspec.UnsetType = msgspec.UNSET
    card_ref: str | msgspec.UnsetType = msgspec.UNSET
    medium: str | msgspec.UnsetType = msgspec.UNSET
    region: str | msgspec.UnsetType = msgspec.UNSET
    result: UsageResult | msgspec.UnsetType = msgspec.UNSET
    amount_fen: int | msgspec.UnsetType = msgspec.UNSET
    discount_fen: int | msgspec.UnsetType = msgspec.UNSET
    reversal_of: str | msgspec.UnsetType = msgspec.UNSET
    """The `caller_event_id` of an earlier event of the same caller, which this one takes back."""
    caller_event_id: str | msgspec.UnsetType = msgspec.UNSET
