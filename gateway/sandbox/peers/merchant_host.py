"""Three simulated merchants in one process: a parking lot, a hotel, a restaurant, each with words of its own.

    python -m gateway.sandbox.peers.merchant_host --port 7301 --control-port 7302 --book <file> --keys <folder>

A port of 0 takes a free one; a line `ready <port> <control port>` says that it serves. It ends with its parent. The
keys folder is made at the first start. What it says is written down here, apart from the gateway's blocks: two readings
of one text. A lot's fee is 5 yuan for a plate or ticket that ends in an odd digit, 15 else; one that ends in `0` it
does not know.
"""

import asyncio
import base64
import datetime as dt
import hmac
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from aiohttp import web

from gateway.crypto import sm2
from gateway.crypto.ciphers import hmac_sm3
from gateway.crypto.key_files import write_private
from gateway.sandbox.peers.control import (
    Book,
    BookLine,
    Faults,
    Met,
    arguments,
    control_application,
    deliver,
    serve_until_told,
    started,
    under_faults,
)

BODY_MAX_BYTES = 65_536
LOT, HOTEL, RESTAURANT = "lot", "hotel", "restaurant"
_STALE_S = 300

Message = dict[str, Any]
Read = Callable[[Message], str]


class Seal(Protocol):
    """How a merchant signs."""

    def sign(self, message: bytes) -> str: ...
    def is_good(self, message: bytes, signature: str) -> bool: ...


class Hmac(NamedTuple):
    """With one key for both directions, in base64."""

    key: bytes

    def sign(self, message: bytes) -> str:
        return base64.b64encode(hmac_sm3(self.key, message)).decode()

    def is_good(self, message: bytes, signature: str) -> bool:
        return hmac.compare_digest(self.sign(message), signature)


class Sm2(NamedTuple):
    """Each with a pair of its own, in hex."""

    own: sm2.PrivateKey
    gateway: sm2.PublicKey

    def sign(self, message: bytes) -> str:
        return self.own.sign(message).hex().upper()

    def is_good(self, message: bytes, signature: str) -> bool:
        try:
            return self.gateway.verify(message, bytes.fromhex(signature))
        except ValueError:
            return False


class Words(NamedTuple):
    """How a merchant writes: its headers, where its reference is, its statuses."""

    at: str
    nonce: str
    signature: str
    reference: Read
    done: Any
    not_found: Any
    not_allowed: Any
    answer: Callable[[str, Any], Message]
    """Of a reference and a status."""


class Refused(Exception):
    """With a status of the merchant's."""

    def __init__(self, status: Any) -> None:
        super().__init__(str(status))
        self.status = status


_LOT = Words(
    "X-When", "X-Once", "X-Sign", lambda m: str(m["head"]["requestId"]), "0", "4", "7",
    lambda reference, status: {"head": {"requestId": reference}, "result": {"code": status}},
)  # fmt: skip
_HOTEL = Words(
    "X-Timestamp", "X-Nonce", "X-Signature", lambda m: str(m["serialNo"]), "OK", "NO_SUCH", "CLOSED",
    lambda reference, status: {"serialNo": reference, "state": status},
)  # fmt: skip
_RESTAURANT = Words(
    "Order-Time", "Order-Nonce", "Order-Sign", lambda m: str(m["order"]["id"]), 200, 404, 409,
    lambda reference, status: {"order": {"id": reference}, "status": status},
)  # fmt: skip


class Merchants:
    """`/lot`, `/hotel` and `/restaurant`; each of its methods runs without a pause."""

    def __init__(self, seals: dict[str, Seal], book: Book, faults: Faults) -> None:
        self._seals = seals
        self._book = book
        self._faults = faults
        self._words = {LOT: _LOT, HOTEL: _HOTEL, RESTAURANT: _RESTAURANT}
        self._services: dict[tuple[str, str], Callable[[Message, str], Message]] = {
            (LOT, "open"): self._open, (LOT, "fee"): self._fee, (HOTEL, "guests"): self._guest,
            (RESTAURANT, "bills"): self._bill,
        }  # fmt: skip

    def application(self) -> web.Application:
        app = web.Application(client_max_size=BODY_MAX_BYTES)
        app.router.add_post("/{merchant:lot|hotel|restaurant}/{service}", under_faults(self._faults, self._handle))
        return app

    async def _handle(self, request: web.Request, body: bytes, met: Met) -> web.Response:
        merchant, service = request.match_info["merchant"], request.match_info["service"]
        words, seal = self._words[merchant], self._seals[merchant]
        at, nonce, signature = (
            request.headers.get(name, "") for name in (words.at, words.nonce, words.signature)
        )  # fmt: skip
        signed = f"POST\n/{service}\n{at}\n{nonce}\n".encode() + body
        if not seal.is_good(signed, signature) or not _is_fresh(at):
            return web.Response(status=401)
        try:
            message = json.loads(body)
            reference = words.reference(message)
            answer = self._act(merchant, service, message, reference, met)
            if "duplicate" in met:  # the network brings the request twice, and the answer too
                answer = self._act(merchant, service, message, reference, met)
        except (ValueError, KeyError, TypeError, RecursionError):
            return web.Response(status=400)
        raw = json.dumps(answer, ensure_ascii=False).encode()
        forged = b" " if "bad_signature" in met else b""
        signature = seal.sign(f"{nonce}\n".encode() + raw + forged)
        return await deliver(request, raw, {words.signature: signature, "Content-Type": "application/json"}, met)

    def _act(self, merchant: str, service: str, message: Message, reference: str, met: Met) -> Message:
        """The answer; what it did is in the book when this returns."""
        words = self._words[merchant]
        try:
            if service == "state":
                return words.answer(reference, self._state(merchant, reference))
            if "decline" in met:
                raise Refused(_as_said(met["decline"].code, words))
            more = self._services[merchant, service](message, reference)
            return _merged(words.answer(reference, words.done), more)
        except Refused as refusal:
            return words.answer(reference, refusal.status)

    def _state(self, merchant: str, reference: str) -> Any:
        line = next((line for line in self._book.lines() if line.reference == reference), None)
        words = self._words[merchant]
        if line is None or line.facts["at"] != merchant:
            return words.not_found
        return words.done if line.state == "done" else words.not_allowed

    def _once(self, line: BookLine) -> None:
        """Written once for its reference: a repetition does nothing more."""
        if self._book.find(line.reference, line.kind) is None:
            self._book.write(line)

    def _open(self, message: Message, reference: str) -> Message:
        gate = message["gate"]
        _in_time(gate["until"], _LOT)
        facts = {"at": LOT, "gate": gate["no"], "way": {"1": "in", "2": "out"}[gate["direction"]]}
        self._once(BookLine(reference, "barrier", 0, "done", facts))
        return {}

    def _fee(self, message: Message, _: str) -> Message:
        gate = message["gate"]
        last = (gate.get("ticket") or gate.get("plate") or "0")[-1]
        if last == "0":
            raise Refused(_LOT.not_found)
        return {"result": {"toPay": 500 if last in "13579" else 1500}}

    def _guest(self, message: Message, reference: str) -> Message:
        _in_time(message["until"], _HOTEL)
        facts = {"at": HOTEL, "name": str(message["guestName"]), "rate": int(message["rate"])}
        if not message["bookingNo"]:
            raise Refused(_HOTEL.not_found)
        self._once(BookLine(reference, "check_in", 0, "done", facts))
        return {}

    def _bill(self, message: Message, reference: str) -> Message:
        bill = message["bill"]
        _in_time(bill["until"], _RESTAURANT)
        total, off = _fen(bill["total"]), _fen(bill["off"])
        if not 0 <= off <= total:
            raise ValueError
        self._once(BookLine(reference, "discount", off, "done", {"at": RESTAURANT, "bill": str(bill["no"])}))
        return {}


def _in_time(until: str, words: Words) -> None:
    """Raises Refused: another car may stand there by now, the guest have gone, the bill be paid."""
    if dt.datetime.fromisoformat(until) < dt.datetime.now(dt.UTC):
        raise Refused(words.not_allowed)


def _fen(yuan: str) -> int:
    """Raises ValueError."""
    whole, _, part = yuan.partition(".")
    if len(part) != 2:
        raise ValueError
    return int(whole) * 100 + int(part)


def _as_said(code: str, words: Words) -> Any:
    """In the merchant's own type; empty: not allowed."""
    return int(code) if code.isdecimal() and isinstance(words.done, int) else code or words.not_allowed


def _merged(answer: Message, more: Message) -> Message:
    return answer | {name: answer.get(name, {}) | part for name, part in more.items()}


def _is_fresh(at: str) -> bool:
    try:
        return abs((dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(at)).total_seconds()) < _STALE_S
    except (ValueError, TypeError):
        return False


def open_keys(folder: Path) -> dict[str, Seal]:
    """Make what is missing, and read: `lot.key`, `restaurant.key` (shared), `hotel.key` (its own), `hotel.pub` and
    `gateway.key` (the gateway's, for the hotel)."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in (LOT, RESTAURANT):
        if not (folder / f"{name}.key").exists():
            write_private(folder / f"{name}.key", secrets.token_hex(16) + "\n")
    for name in (HOTEL, "gateway"):
        if not (folder / f"{name}.key").exists():
            secret, point = sm2.generate()
            write_private(folder / f"{name}.key", f"{secret.hex()} {point.hex()}\n")
    hotel, gateway = (
        [bytes.fromhex(word) for word in (folder / f"{name}.key").read_text().split()] for name in (HOTEL, "gateway")
    )
    write_private(folder / "hotel.pub", hotel[1].hex() + "\n")
    lot, restaurant = (Hmac(bytes.fromhex((folder / f"{name}.key").read_text())) for name in (LOT, RESTAURANT))
    return {
        LOT: lot, RESTAURANT: restaurant,
        HOTEL: Sm2(sm2.PrivateKey(hotel[0], hotel[1]), sm2.PublicKey(gateway[1])),
    }  # fmt: skip


async def serve(port: int, control_port: int, book_file: Path, keys_folder: Path) -> None:
    """Until SIGTERM or SIGINT."""
    book, faults = Book(book_file), Faults()
    merchants = Merchants(open_keys(keys_folder), book, faults)
    await serve_until_told(merchants.application(), port, control_application(faults, book), control_port)
    book.close()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--keys", type=Path, required=True)
    given = started(parser)
    asyncio.run(serve(given.port, given.control_port, given.book, given.keys))


if __name__ == "__main__":
    main()
