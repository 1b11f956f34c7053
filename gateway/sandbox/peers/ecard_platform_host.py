"""A simulated national e-card platform: the bytes of adapters/ecard_platform.py seen from the other side.

It knows the sandbox's county by its seed (county.json): a card number leads back to its citizen without a table. Like
the real platform it vouches for the codes it has shown and knows nothing of what the gateway has been told since; so
it shows a code for any card of the county, and whether that card is good is for the gateway to say.

    python -m gateway.sandbox.peers.ecard_platform_host --port … --control-port … --book … --data-dir …
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from cryptography.hazmat.primitives.padding import PKCS7

from gateway.crypto.key_files import write_private
from gateway.processes import leave_no_core
from gateway.sandbox.county import Citizen, County, read_county
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

PATH = "/CSB"
ACCESS_KEY = "sandbox-county-330424"
CHANNEL_NO = "3304240001"
ACCESS_NO = "3304240002"
SYSTEM_NAME = "yikatong-sandbox"
CODE_TTL_S = 60.0
"""[G] domain.md §2.3."""
CLOCK_SKEW_MAX_S = 300.0
CODES_MAX = 1_000_000
_BODY_MAX_BYTES = 65_536

OK, PENDING = "000000", "000001"
EXPIRED, REPLAYED, INVALID, NOT_FOUND, NAME_MISMATCH, REFUSED = (
    "100001", "100002", "100003", "100004", "100005", "100006"
)  # fmt: skip


class SharedKeys(NamedTuple):
    """What the platform gave the county: the secret of the signature, and the AES key of the bodies."""

    signing: bytes
    body: bytes


def shared_keys(folder: Path) -> SharedKeys:
    """As hex in `signing.key` and `body.key`; made at the first start, so that the gateway finds them there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in SharedKeys._fields:
        if not (folder / f"{name}.key").exists():
            write_private(folder / f"{name}.key", secrets.token_hex(16) + "\n")
    return SharedKeys(*(bytes.fromhex((folder / f"{name}.key").read_text()) for name in SharedKeys._fields))


Answer = tuple[str, Mapping[str, Any]]
"""msgCode, result."""


class Platform:
    """What the platform knows and does. Its book has every code by its digest, never the code itself."""

    def __init__(self, county: County, book: Book, now: Callable[[], float] = time.time) -> None:
        self._county = county
        self._book = book
        self._now = now
        self._apis: Mapping[str, Callable[[Mapping[str, str]], Answer]] = {
            "qrcode_valid_encrypt": self._verify,
            "sign_info": self._sign_info,
            "qrcode_channel_encrypt": self._scan_login,
            "qrcode_channel_query_encrypt": self._scan_login_state,
        }

    def answer(self, api: str, asked: Mapping[str, str]) -> Answer | None:
        """None for an API that it does not have. What it did is in the book when this returns."""
        handler = self._apis.get(api)
        return None if handler is None else handler(asked)

    def show(self, card_number: str) -> str | None:
        """A fresh code for a card of the county: what its holder's telephone would show."""
        citizen = self._county.by_card_number(card_number)
        return None if citizen is None else self._new_code("ecard_code", {"card_number": card_number})

    def scan(self, code: str, card_number: str, refuse: bool) -> bool:
        """A holder scans a shown login code and confirms it, or refuses."""
        line = self._book.find(_digest(code), "scan_login")
        citizen = self._county.by_card_number(card_number)
        if line is None or citizen is None or line.state != "shown" or self._is_late(line):
            return False
        self._turn(line, "refused" if refuse else "confirmed", card_number=card_number)
        return True

    def _verify(self, asked: Mapping[str, str]) -> Answer:
        line = self._book.find(_digest(asked.get("qrCode", "")), "ecard_code")
        if line is None:
            return INVALID, {}
        if line.state == "verified":
            self._turn(line, "verified", asked=line.facts["asked"] + 1)
            return REPLAYED, {}
        if self._is_late(line):
            self._turn(line, "expired", asked=line.facts["asked"] + 1)
            return EXPIRED, {}
        citizen = self._county.by_card_number(line.facts["card_number"])
        assert citizen is not None, "show() has found it"
        self._turn(line, "verified", asked=line.facts["asked"] + 1)
        return OK, _person(citizen) | {"aaz500": citizen.card_number, "aaz501": citizen.card_identifier}

    def _sign_info(self, asked: Mapping[str, str]) -> Answer:
        citizen = self._county.by_id_number(asked.get("aac002", ""))
        if citizen is None or citizen.ecard_level is None or citizen.region != asked.get("aab301"):
            return NOT_FOUND, {}
        if citizen.name != asked.get("aac003"):
            return NAME_MISMATCH, {}
        sign_no = hashlib.sha256(citizen.person_id + b"signNo").hexdigest()[:20]
        return OK, {"signNo": sign_no, "signLevel": str(citizen.ecard_level), "aab301": citizen.region}

    def _scan_login(self, asked: Mapping[str, str]) -> Answer:
        return OK, {"qrCode": self._new_code("scan_login", {"channel": asked.get("channelNo", "")})}

    def _scan_login_state(self, asked: Mapping[str, str]) -> Answer:
        line = self._book.find(_digest(asked.get("qrCode", "")), "scan_login")
        if line is None:
            return INVALID, {}
        if line.state in ("used", "refused"):
            return (REPLAYED if line.state == "used" else REFUSED), {}
        if self._is_late(line):
            return EXPIRED, {}
        if line.state == "shown":
            return PENDING, {}
        citizen = self._county.by_card_number(line.facts["card_number"])
        assert citizen is not None, "scan() has found it"
        self._turn(line, "used")
        return OK, _person(citizen) | {"esscNo": hashlib.sha256(citizen.person_id).hexdigest()[:20]}

    def _new_code(self, kind: str, facts: Mapping[str, Any]) -> str:
        assert len(self._book) < CODES_MAX, "a sandbox: start it anew"
        code = CHANNEL_NO + f"{secrets.randbelow(10**12):012}"
        known = {"expires_at": self._now() + CODE_TTL_S, "asked": 0, **facts}
        self._book.write(BookLine(_digest(code), kind, 0, "shown", known))
        return code

    def _turn(self, line: BookLine, state: str, **facts: Any) -> None:
        self._book.write(BookLine(line.reference, line.kind, line.amount_fen, state, line.facts | facts))

    def _is_late(self, line: BookLine) -> bool:
        late: bool = line.facts["expires_at"] <= self._now()
        return late


class Host:
    """The bus in front of it: signatures, ciphertexts, and what is set to go wrong on the wire."""

    def __init__(
        self, platform: Platform, keys: SharedKeys, faults: Faults, now: Callable[[], float] = time.time
    ) -> None:
        self._platform = platform
        self._keys = keys
        self._faults = faults
        self._now = now

    def application(self) -> web.Application:
        app = web.Application(client_max_size=_BODY_MAX_BYTES)
        app.router.add_post(PATH, under_faults(self._faults, self._act))
        return app

    async def _act(self, request: web.Request, body: bytes, met: Met) -> web.Response:
        asked = self._read(request, body)
        if isinstance(asked, str):
            return _bus_failure(asked)
        api = request.headers["_api_name"]
        found = (met["decline"].code, {}) if "decline" in met else self._platform.answer(api, asked)
        if found is None:
            return _bus_failure("no such API")
        # replies carry no signature: a wrong one is a result under a key that is not ours
        key = bytes(16) if "bad_signature" in met else self._keys.body
        return await deliver(request, _reply(found, key), {"Content-Type": "application/json"}, met)

    def _read(self, request: web.Request, body: bytes) -> dict[str, str] | str:
        """What is asked, or why the bus refuses it."""
        headers = request.headers
        signed = {name: headers.get(f"_api_{name}", "") for name in ("name", "version", "access_key", "timestamp")}
        message = "&".join(f"_api_{name}={signed[name]}" for name in sorted(signed)).encode()
        expected = base64.b64encode(hmac.digest(self._keys.signing, message, "sha1")).decode()
        if signed["access_key"] != ACCESS_KEY or not hmac.compare_digest(headers.get("_api_signature", ""), expected):
            return "the signature is wrong"
        if not signed["timestamp"].isdigit() or abs(int(signed["timestamp"]) / 1000 - self._now()) > CLOCK_SKEW_MAX_S:
            return "the time is wrong"
        try:
            asked = json.loads(_decrypt(self._keys.body, base64.b64decode(json.loads(body)["security"], validate=True)))
        except (ValueError, KeyError, TypeError, binascii.Error):
            return "the body cannot be read"
        if not isinstance(asked, dict) or not all(isinstance(value, str) for value in asked.values()):
            return "the body cannot be read"
        return asked


def control(platform: Platform, faults: Faults, book: Book) -> web.Application:
    """The control port, with `/show?card_number=[&card_number=…]` and `/scan?code=&card_number=[&refuse=1]`."""

    async def show(request: web.Request) -> web.Response:
        codes = [platform.show(number) for number in request.query.getall("card_number", [])]
        if not codes or None in codes:
            return web.json_response({"detail": "no card of the county has this number"}, status=404)
        return web.json_response({"code": codes[0], "codes": codes})

    async def scan(request: web.Request) -> web.Response:
        query = request.query
        done = platform.scan(query.get("code", ""), query.get("card_number", ""), "refuse" in query)
        return web.json_response({"scanned": done}, status=200 if done else 409)

    return control_application(faults, book, {"/show": show, "/scan": scan})


def _person(citizen: Citizen) -> dict[str, str]:
    return {"aac002": citizen.id_number, "aac003": citizen.name, "aab301": citizen.region}


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()


def _reply(found: Answer, key: bytes) -> bytes:
    code, result = found
    document: dict[str, Any] = {"msgCode": code, "msg": "ok" if code == OK else "refused"}
    if code == OK:
        plain = json.dumps(result, ensure_ascii=False).encode()
        document["result"] = {"encrypt": base64.b64encode(_encrypt(key, plain)).decode()}
    return json.dumps(document).encode()


def _encrypt(key: bytes, plain: bytes) -> bytes:
    padder, encryptor = PKCS7(128).padder(), Cipher(AES(key), ECB()).encryptor()  # noqa: S305 - as the platform does
    return encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()


def _decrypt(key: bytes, sealed: bytes) -> bytes:
    """Raises ValueError."""
    decryptor, unpadder = Cipher(AES(key), ECB()).decryptor(), PKCS7(128).unpadder()  # noqa: S305
    return unpadder.update(decryptor.update(sealed) + decryptor.finalize()) + unpadder.finalize()


def _bus_failure(message: str) -> web.Response:
    failure = {"code": 503, "csbCode": 503, "message": message, "requestId": secrets.token_hex(8)}
    return web.json_response(failure, status=503)


async def serve(port: int, control_port: int, book_file: Path, data_dir: Path, seed: int) -> None:
    """Until SIGTERM, on loopback. Writes a line when it is ready."""
    book, faults = Book(book_file), Faults(seed)
    platform = Platform(read_county(data_dir), book)
    host = Host(platform, shared_keys(data_dir / "sandbox" / "partners" / "ecard-platform"), faults)
    await serve_until_told(host.application(), port, control(platform, faults, book), control_port)
    book.close()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="the sandbox's: for its county and the keys")
    parser.add_argument("--seed", type=int, default=0, help="of the faults' chances")
    leave_no_core()
    given = started(parser)
    asyncio.run(serve(given.port, given.control_port, given.book, given.data_dir, given.seed))


if __name__ == "__main__":
    main()
