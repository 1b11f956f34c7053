"""The daily file of returned usage: what its header says, and why a file is held.

A text of lines that end with LF or CR LF, plain or gzipped (its first bytes tell), in the encoding agreed with its
sender:

1. the header, one line of JSON in ASCII, a `Header`;
2. the signature, in base64, of the bytes of the first line without its line end, by the key that the header names (the
   sender's for effects; SM2 in DER with the user id 1234567812345678);
3. the data, from the third line to the end: one `UsageLine` of JSON in each, as in POST /v1/usage-events.

The header has the digest of the data (SM3 of all its bytes, as they are in the file before gzip), the number of lines
that are not blank, and the sum of `amount_fen` over all of them, reversals and failed uses too (a line whose amount is
not there or cannot be read adds nothing). Nobody has established a national format: this one is ours (domain.md §8
「用卡数据回流 record」 [G]).
"""

from collections.abc import Collection
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple

import msgspec

from gateway.domain.callers import CALLER_ID_PATTERN
from gateway.domain.cards import END
from gateway.domain.fields import field_error

FORMAT = "yikatong-usage-1"
HEADER_MAX_BYTES = 4096
SIGNATURE_MAX_BYTES = 1024

_Count = Annotated[int, msgspec.Meta(ge=0, le=100_000_000)]
_Sum = Annotated[int, msgspec.Meta(ge=0, le=10**17)]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line of a file. `batch_no` is the sender's own, once for ever."""

    format: Literal["yikatong-usage-1"]
    caller: Annotated[str, msgspec.Meta(pattern=CALLER_ID_PATTERN + "(?!\\n)")]
    batch_no: Annotated[str, msgspec.Meta(pattern=f"^[!-~]{{1,64}}{END}")]
    count: _Count
    sum_fen: _Sum
    digest: Annotated[str, msgspec.Meta(pattern=f"^sm3:[0-9a-f]{{64}}{END}")]
    key_id: Annotated[str, msgspec.Meta(pattern=f"^[!-~]{{1,100}}{END}")]


class HoldReason(StrEnum):
    """Why nothing of a file is taken up, or nothing more."""

    HEADER = "header_malformed"
    CALLER = "not_a_sender"
    """The header's caller has no block in usage_return.files, or it is not the one whose folder the file lies in."""
    KEY = "unknown_key"
    """The key is none of the sender's keys in force."""
    SIGNATURE = "bad_signature"
    DIGEST = "wrong_digest"
    COUNT = "wrong_count"
    SUM = "wrong_sum"
    TRUNCATED = "truncated"
    """The gzip stream breaks off, or is none."""
    TOO_LARGE = "too_large"
    BATCH = "batch_no_used"
    """The sender has used this batch_no for another file."""
    CHANGED = "changed"
    """Somebody wrote to the file while it was read."""
    MISCOUNTED = "miscounted"
    """What was recorded of its lines, one run after the other, is not as many as it has: people have to look."""
    FAULT = "gateway_fault"
    """The gateway failed at it, and its log says where. Put back when that is mended, it goes on where it was."""


class Held(Exception):
    """Nothing of the file is taken up, or nothing more. `detail` holds nothing of the data."""

    def __init__(self, reasons: Collection[HoldReason], detail: str = "") -> None:
        super().__init__(", ".join(reasons))
        self.reasons = list(reasons)
        self.detail = detail


class Totals(NamedTuple):
    """What was counted over the data."""

    lines: int
    sum_fen: int
    digest: str


class _Amount(msgspec.Struct):
    amount_fen: int | None = None


_decode_header = msgspec.json.Decoder(Header).decode
_decode_amount = msgspec.json.Decoder(_Amount).decode
_FIELDS = frozenset(field.encode_name for field in msgspec.structs.fields(Header))


def read_header(line: bytes) -> Header:
    """Raises Held."""
    try:
        line.decode("ascii")
        return _decode_header(line)
    except msgspec.ValidationError as error:
        field, message = field_error(error, _FIELDS)
        raise Held([HoldReason.HEADER], f"{field}: {message}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Held([HoldReason.HEADER], "the first line is not JSON in ASCII") from None


def amount_of(line: bytes) -> int:
    """Of a line that may be anything else; 0 where none can be read."""
    try:
        return _decode_amount(line).amount_fen or 0
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0


def differences(header: Header, totals: Totals) -> list[HoldReason]:
    """Where the data are not what the header says."""
    found = []
    if totals.digest != header.digest:
        found.append(HoldReason.DIGEST)
    if totals.lines != header.count:
        found.append(HoldReason.COUNT)
    if totals.sum_fen != header.sum_fen:
        found.append(HoldReason.SUM)
    return found
