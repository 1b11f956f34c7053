"""Identifiers: UUIDv7 for everything we name ourselves, GB 11643 numbers for people."""

import datetime as dt
from uuid import UUID

_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECKS = "10X98765432"


def uuid7(unix_ms: int, random_bytes: bytes) -> bytes:
    """The 16 bytes of a UUIDv7 (RFC 9562 §5.7) from a time in ms and ten random bytes."""
    rand = int.from_bytes(random_bytes, "big")
    return (unix_ms << 80 | 0x7 << 76 | (rand >> 68) << 64 | 0b10 << 62 | rand & 0x3FFF_FFFF_FFFF_FFFF).to_bytes(
        16, "big"
    )


_LATEST_MS = int(dt.datetime(9999, 1, 1, tzinfo=dt.UTC).timestamp()) * 1000


def uuid7_unix_ms(value: UUID) -> int:
    """The time (ms) inside a UUIDv7; at most 9999-01-01, for one that is made up may be beyond the calendar."""
    return min(value.int >> 80, _LATEST_MS)


def id_number_check(first17: str) -> str:
    """The check character of a GB 11643 number (domain.md §5 [K, checked])."""
    return _CHECKS[sum(w * (ord(c) - 48) for w, c in zip(_WEIGHTS, first17, strict=True)) % 11]


def is_id_number(text: str, today: dt.date) -> bool:
    """Whether text is a well-formed GB 11643 number: digits, a real birth date up to today, the right check."""
    if len(text) != 18 or not (text[:17].isascii() and text[:17].isdigit()):
        return False
    try:
        born = dt.date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    return born <= today and id_number_check(text[:17]) == text[17]
