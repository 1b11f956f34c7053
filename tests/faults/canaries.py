"""Canaries: made-up people whose every value is unmistakable, and a search for them in every disguise.

Nothing real: the id numbers are of 330499, a county code that is not assigned.
"""

import base64
import datetime as dt
import hashlib
import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from gateway.domain.ids import id_number_check
from tests.registry import TestCard


class Canary(NamedTuple):
    """What is known of one person."""

    id_number: str
    card_number: str
    card_identifier: str
    name: str
    account: str
    birth_date: dt.date

    @property
    def values(self) -> tuple[str, ...]:
        return self[:5]

    @property
    def card(self) -> TestCard:
        return TestCard(
            self.card_number, self.card_identifier, name=self.name, birth_date=self.birth_date,
            id_number=self.id_number,
        )  # fmt: skip


def canary(number: int) -> Canary:
    """The same for the same number."""
    birth = dt.date(1950, 1, 1) + dt.timedelta(days=number * 11)
    first17 = f"330499{birth:%Y%m%d}{number % 1000:03}"
    digest = hashlib.sha256(str(number).encode()).digest()
    name = "金丝雀" + "".join(chr(0x4E00 + int.from_bytes(digest[i : i + 2], "big") % 0x5000) for i in (0, 2, 4, 6))
    identifier = f"330499D156{digest.hex().upper()[:22]}"
    account = f"999998{number * 7919 + 1_000_000_000:012}7"
    return Canary(
        first17 + id_number_check(first17), f"QX{7_000_000 + number * 7919:07}", identifier, name, account, birth
    )


def flock(first: int, count: int) -> list[Canary]:
    return [canary(number) for number in range(first, first + count)]


def forms(value: str) -> set[bytes]:
    """A value as a log, a file or an answer may hold it."""
    raw = value.encode()
    found = {raw, value.upper().encode(), value.lower().encode(), raw.hex().encode(), raw.hex().upper().encode()}
    found |= {"".join(f"\\u{ord(letter):04{case}}" for letter in value).encode() for case in "xX"}
    found |= {core for offset in range(3) for core in _base64(raw, offset)}
    if not value.isascii():
        percent = quote(value)
        found |= {value.encode("unicode_escape"), value.encode("gbk", "ignore"), percent.encode()}
        found |= {percent.lower().encode(), "".join(f"\\x{byte:02x}" for byte in raw).encode()}
    return found


def _base64(raw: bytes, offset: int) -> set[bytes]:
    """What is certain of the base64 of a text that holds the value at a place of this remainder by 3."""
    coded = base64.b64encode(bytes(offset) + raw)
    core = coded[(0, 2, 3)[offset] : (offset + len(raw)) * 8 // 6]
    return {core, core.translate(bytes.maketrans(b"+/", b"-_"))}


class Found(NamedTuple):
    """What a search came to."""

    hits: list[str]
    """`file:what`, one for each place."""
    size: int
    """Bytes searched."""


def search(values: Iterable[str], places: Sequence[Path], patterns: Path) -> Found:
    """Look for every form of the values in files and folders; `patterns` is a file to write the forms to."""
    patterns.write_bytes(b"\n".join(sorted({form for value in values for form in forms(value)})) + b"\n")
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*")) if file.is_file()]
    # -s: a file of PostgreSQL may go meanwhile
    done = subprocess.run(
        ["grep", "-saoHFf", str(patterns), "--", *map(str, files)],
        env=os.environ | {"LC_ALL": "C"}, capture_output=True, check=False,
    )  # fmt: skip
    return Found(done.stdout.decode(errors="replace").splitlines(), sum(file.stat().st_size for file in files))
