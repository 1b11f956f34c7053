"""A simulated subscriber of the usage feed (the bureau, the province) over signed HTTP on loopback.

    python -m gateway.sandbox.peers.usage_feed_host --port 7301 --control-port 7302 --book <file> --keys <folder>
        [--signature hmac]

A port of 0 takes a free one; a line `ready <port> <control port>` says that it serves. It ends with its parent. The
keys folder is made at the first start: `sign.key` and `partner.key` are what a gateway's config block names. It is
written from the text of adapters/usage_feed_http.py. `GET <control>/figures` counts what it received.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from gateway.crypto import sm2
from gateway.crypto.ciphers import hmac_sm3
from gateway.crypto.key_files import write_private
from gateway.sandbox.peers.control import (
    Faults,
    Met,
    arguments,
    control_application,
    deliver,
    serve_until_told,
    started,
    under_faults,
)
from gateway.sandbox.peers.usage_feed_book import Arrived, FeedBook

BODY_MAX_BYTES = 16 * 1024 * 1024
CLOCK_S = 300
_NONCE = re.compile("[0-9a-f]{32}")


class Keys(Protocol):
    def sign(self, message: bytes) -> bytes: ...
    def verify(self, message: bytes, signature: bytes) -> bool: ...


class Sm2Pair:
    """The subscriber's own key, and the gateway's public one."""

    def __init__(self, folder: Path) -> None:
        for name in ("subscriber", "sign"):
            if not (folder / f"{name}.key").exists():
                secret, point = sm2.generate()
                write_private(folder / f"{name}.key", f"{secret.hex()} {point.hex()}\n")
        own, gateway = (
            [bytes.fromhex(word) for word in (folder / f"{name}.key").read_text().split()]
            for name in ("subscriber", "sign")
        )
        write_private(folder / "partner.key", own[1].hex() + "\n")
        self._own, self._gateway = sm2.PrivateKey(own[0], own[1]), sm2.PublicKey(gateway[1])

    def sign(self, message: bytes) -> bytes:
        return self._own.sign(message)

    def verify(self, message: bytes, signature: bytes) -> bool:
        return self._gateway.verify(message, signature)


class SharedSecret:
    """HMAC-SM3 by one key of both."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "sign.key").exists():
            write_private(folder / "sign.key", secrets.token_hex(32) + "\n")
        text = (folder / "sign.key").read_text()
        write_private(folder / "partner.key", text)
        self._secret = bytes.fromhex(text)

    def sign(self, message: bytes) -> bytes:
        return hmac_sm3(self._secret, message)

    def verify(self, message: bytes, signature: bytes) -> bool:
        return hmac.compare_digest(self.sign(message), signature)


KEYS: dict[str, Callable[[Path], Keys]] = {"sm2": Sm2Pair, "hmac": SharedSecret}


def open_keys(folder: Path, kind: str) -> Keys:
    """Make what is missing, and read."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return KEYS[kind](folder)


class NotOurs(Exception):
    """A request that is not signed or shaped as it must be: nothing was taken."""


class Subscriber:
    def __init__(self, keys: Keys, book: FeedBook, faults: Faults) -> None:
        self._keys, self._book, self._faults = keys, book, faults

    def application(self) -> web.Application:
        app = web.Application(client_max_size=BODY_MAX_BYTES)
        app.router.add_post("/usage-events", under_faults(self._faults, self._act))
        return app

    async def _act(self, request: web.Request, body: bytes, met: Met) -> web.Response:
        try:
            nonce = self._check(request, body)
            head, events = _read(body)
        except NotOurs as refusal:
            return web.json_response({"detail": str(refusal)}, status=400)
        answer = self._take(head, events, met["decline"].code if "decline" in met else "")
        if "duplicate" in met:  # the network brings the request twice, and the answer too
            marked = [event._replace(redelivery=True) for event in events]
            answer = self._take(head, marked, "")
        sealed = json.dumps(answer).encode()
        message = f"{nonce}\n{_digest(sealed)}\n" + (" " if "bad_signature" in met else "")
        signature = base64.b64encode(self._keys.sign(message.encode())).decode()
        headers = {"Content-Type": "application/json", "X-Feed-Signature": signature}
        return await deliver(request, sealed, headers, met)

    def _check(self, request: web.Request, body: bytes) -> str:
        """The nonce. Raises NotOurs."""
        headers = request.headers
        nonce, timestamp = headers.get("X-Feed-Nonce", ""), headers.get("X-Feed-Timestamp", "")
        digest = headers.get("Content-Digest", "")
        if digest != f"sha-256=:{_digest(body)}:":
            raise NotOurs("the digest is not the body's")
        if not _NONCE.fullmatch(nonce) or not re.fullmatch("[0-9]{10}", timestamp):
            raise NotOurs("nonce or timestamp is missing")
        if abs(int(timestamp) - time.time()) > CLOCK_S:
            raise NotOurs("the timestamp is too far from now")
        message = f"POST\n{request.path}\n{timestamp}\n{nonce}\n{digest}\n".encode()
        try:
            signature = base64.b64decode(headers.get("X-Feed-Signature", ""), validate=True)
        except ValueError:
            raise NotOurs("the signature is not base64") from None
        if not self._keys.verify(message, signature):
            raise NotOurs("the signature is not the gateway's")
        return nonce

    def _take(self, head: Mapping[str, Any], events: list[Arrived], decline: str) -> dict[str, Any]:
        duplicates, refused = self._book.take(events, decline, time.time())
        return {
            "batch": head["batch"],
            "received": len(events),
            "accepted": len(events) - len(duplicates) - len(refused),
            "duplicates": duplicates,
            "refused": [{"event_id": event_id, "code": code} for event_id, code in refused.items()],
        }


def _read(body: bytes) -> tuple[Mapping[str, Any], list[Arrived]]:
    """(the head, the events). Raises NotOurs."""
    try:
        head, *lines = [json.loads(line) for line in body.splitlines()]
        events = [_arrived(line) for line in lines]
        if head["count"] != len(events) or not isinstance(head["batch"], str):
            raise NotOurs("the count is not that of the lines")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise NotOurs("the body is not a batch") from None
    return head, events


def _arrived(line: Mapping[str, Any]) -> Arrived:
    event = line["event"]
    return Arrived(
        event_id=event["event_id"],
        card=event.get("card_ref", event["event_id"]),
        position=line["position"],
        kind=event["kind"],
        amount_fen=event.get("amount_fen", 0),
        recorded_at=event["recorded_at"],
        redelivery=line.get("redelivery", False),
        replayed=line.get("replayed", False),
    )


def _digest(body: bytes) -> str:
    return base64.b64encode(hashlib.sha256(body).digest()).decode()


async def serve(port: int, control_port: int, book_file: Path, keys_folder: Path, kind: str) -> None:
    """Until SIGTERM or SIGINT."""
    book, faults = FeedBook(book_file), Faults()
    subscriber = Subscriber(open_keys(keys_folder, kind), book, faults)

    async def figures(_: web.Request) -> web.Response:
        return web.json_response(book.figures())

    await serve_until_told(
        subscriber.application(), port, control_application(faults, book, {"/figures": figures}), control_port
    )
    book.close()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--keys", type=Path, required=True)
    parser.add_argument("--signature", choices=KEYS, default="sm2")
    given = started(parser)
    asyncio.run(serve(given.port, given.control_port, given.book, given.keys, given.signature))


if __name__ == "__main__":
    main()
