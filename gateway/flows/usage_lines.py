"""From the lines of a bulk or a daily file to what is looked up in the database. No I/O: it may run in any thread."""

import datetime as dt
import re
import time
from collections.abc import Container, Iterable
from typing import NamedTuple

import msgspec

from gateway.crypto.blind_index import BlindIndex
from gateway.crypto.key_store import KeyStore, KeyUse
from gateway.crypto.pseudonym import CARD_REF_PATTERN, Pseudonyms
from gateway.domain.cards import tell_apart
from gateway.domain.errors import FieldError
from gateway.domain.fields import field_error
from gateway.domain.usage import FIELDS, Reject, RejectCode, UsageLine, id_of, mistakes_of, read_line
from gateway.threads import breathing

LINE_MAX_BYTES = 16_384
AHEAD_US = 5 * 60 * 1_000_000

_CARD_REF = re.compile(CARD_REF_PATTERN)


class Given(msgspec.Struct, frozen=True, gc=False):
    """A line that fits the contract. One of chip_index and card_id is set, in hex."""

    number: int
    line: UsageLine
    chip_index: str
    card_id: str


class ReadLines(NamedTuple):
    given: list[Given]
    rejected: list[Reject]


class LineReader:
    """Reads lines of one caller after the other. Not to be shared by threads that run at once."""

    def __init__(self, index: BlindIndex, pseudonyms: Pseudonyms, days_back: int) -> None:
        self._index = index
        self._pseudonyms = pseudonyms
        self._back_us = days_back * 86_400_000_000
        self._days_back = days_back

    def read(self, caller_id: str, lines: Iterable[tuple[int, bytes]], scenes: Container[str] | None) -> ReadLines:
        """`lines` with their places. Raises nothing for what is in them.

        `scenes` None: they are read a second time, and what may change since (scenes, the clock) was judged before.
        """
        now_us = time.time_ns() // 1000
        read = ReadLines([], [])
        for number, raw in breathing(lines):
            found = self._read(caller_id, number, raw, scenes, now_us)
            if type(found) is Given:
                read.given.append(found)
            else:
                assert isinstance(found, Reject)
                read.rejected.append(found)
        return read

    def _read(
        self, caller_id: str, number: int, raw: bytes, scenes: Container[str] | None, now_us: int
    ) -> Given | Reject:
        if len(raw) > LINE_MAX_BYTES:
            return Reject(number, None, RejectCode.MALFORMED, [FieldError("$", "is too long")])
        try:
            line = read_line(raw)
        except msgspec.ValidationError as error:
            return Reject(number, id_of(raw), RejectCode.INVALID, [field_error(error, FIELDS)])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Reject(number, None, RejectCode.MALFORMED)
        if mistakes := mistakes_of(line):
            return Reject(number, line.id, RejectCode.INVALID, mistakes)
        if scenes is not None:
            if line.scene not in scenes:
                field = FieldError("$.scene", "is not a scene of this gateway")
                return Reject(number, line.id, RejectCode.UNKNOWN_SCENE, [field])
            if not -self._back_us <= _unix_us(line.occurred_at) - now_us <= AHEAD_US:
                field = FieldError("$.occurred_at", f"must be at most {self._days_back} days ago and 5 minutes ahead")
                return Reject(number, line.id, RejectCode.TIME, [field])
        return self._found(caller_id, number, line)

    def _found(self, caller_id: str, number: int, line: UsageLine) -> Given | Reject:
        """With what its card is looked up by."""
        if line.card_ref is not None:
            if not _CARD_REF.match(line.card_ref):
                return Reject(number, line.id, RejectCode.UNRECOGNISED)
            return Given(number, line, "", self._pseudonyms.card_id(caller_id, line.card_ref).hex())
        assert line.card_number is not None and line.card_identifier is not None, "mistakes_of has looked"
        pair = tell_apart(line.card_number, line.card_identifier)
        if pair is None:
            needs = "needs a card number (9 characters) and a card identifier (32 hex digits)"
            return Reject(number, line.id, RejectCode.INVALID, [FieldError("$.card_number", needs)])
        return Given(number, line, self._index.chip(*pair).hex(), "")


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _unix_us(moment: dt.datetime) -> int:
    passed = moment - _EPOCH
    return (passed.days * 86_400 + passed.seconds) * 1_000_000 + passed.microseconds


def line_reader(keys: KeyStore, days_back: int) -> LineReader:
    """With an index and pseudonyms of its own, as it works in another thread than those of the requests."""
    index = BlindIndex(keys.working_keys(KeyUse.INDEX)[-1])
    return LineReader(index, Pseudonyms(keys.working_keys(KeyUse.PSEUDONYM)), days_back)
