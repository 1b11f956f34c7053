"""A daily file as a bank would send it: uses of the county's cards, signed by the sandbox's bank."""

import base64
import datetime as dt
import gzip
import json
import random
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gateway.crypto.digests import running
from gateway.crypto.sm2 import PrivateKey
from gateway.domain.times import CHINA
from gateway.domain.usage_files import FORMAT
from gateway.sandbox.prepare import sample
from gateway.settings import Settings

SENDER = "demo-bank"
_CARDS = 3000
_SCENES = ("market.till", "dining.till", "parking.exit", "hotel.checkin", "medical.window", "scenic.entry")
_REVERSED = 50
"""One use in so many is taken back by a line behind it."""


def write_usage_file(settings: Settings, path: Path, lines: int, encoding: str) -> None:
    """Gzipped if the name ends with .gz. Raises FileNotFoundError: no county, or no callers yet."""
    caller = json.loads((settings.data_dir / "sandbox" / "callers" / f"{SENDER}.json").read_text())
    cards = [json.loads(card) for card in sample(settings, min(lines, _CARDS))]
    data = path.with_name(path.name + ".part")
    digest, total = _write_data(data, cards, lines, encoding)
    header = {
        "format": FORMAT, "caller": SENDER, "batch_no": f"{dt.datetime.now(CHINA):%Y%m%d}-{secrets.token_hex(4)}",
        "count": lines, "sum_fen": total, "digest": digest, "key_id": caller["signing"]["kid"],
    }  # fmt: skip
    head = signed_head(header, caller["signing"])
    with data.open("rb") as stream, _to_write(path) as out:
        out.write(head)
        while block := stream.read(1 << 20):
            out.write(block)
    data.unlink()


def signed_head(header: dict[str, Any], signing: dict[str, str]) -> bytes:
    """The first two lines, signed by the SM2 key of a caller's file."""
    first = json.dumps(header, separators=(",", ":")).encode("ascii")
    key = PrivateKey(bytes.fromhex(signing["private_key_hex"]), bytes.fromhex(signing["public_key_hex"]))
    return first + b"\n" + base64.b64encode(key.sign(first)) + b"\n"


def _to_write(path: Path) -> BinaryIO:
    return gzip.open(path, "wb", compresslevel=1) if path.name.endswith(".gz") else path.open("wb")  # type: ignore[return-value]


def _write_data(path: Path, cards: list[dict[str, str]], lines: int, encoding: str) -> tuple[str, int]:
    """(digest, sum of the amounts)."""
    hasher, total = running("sm3"), 0
    with path.open("wb") as out:
        for use in _uses(cards, lines):
            raw = json.dumps(use, ensure_ascii=False, separators=(",", ":")).encode(encoding) + b"\n"
            hasher.update(raw)
            out.write(raw)
            total += use["amount_fen"]
    return "sm3:" + hasher.finalize().hex(), total


def _uses(cards: list[dict[str, str]], lines: int) -> Iterator[dict[str, Any]]:
    """Of yesterday, with a name for the terminal that is not ASCII, so that the encoding matters."""
    batch = secrets.token_hex(4)
    since = dt.datetime.combine(dt.datetime.now(CHINA).date() - dt.timedelta(days=1), dt.time(), CHINA)
    last: dict[str, Any] = {}
    for number in range(lines):
        at = since + dt.timedelta(seconds=random.randrange(6 * 3600, 22 * 3600))  # noqa: S311 - made up
        use = {"id": f"{batch}-{number:07}", "occurred_at": at.isoformat(), "result": "success"}
        if last and number % _REVERSED == _REVERSED - 1:
            yield last | use | {"reversal_of": last["id"]}
            last = {}
            continue
        last = random.choice(cards) | use | {  # noqa: S311
            "scene": random.choice(_SCENES), "terminal_id": f"终端{number % 300:03}",  # noqa: S311
            "amount_fen": random.randrange(100, 30_000), "discount_fen": random.randrange(100),  # noqa: S311
        }  # fmt: skip
        yield last
