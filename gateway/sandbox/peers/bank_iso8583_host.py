"""A simulated bank that speaks ISO 8583 on a real socket, with its own field table and macs.

Knows nothing of the gateway's adapter: both follow domain.md §4.2. Loopback only; ends with its parent. When it
listens it prints a line `ready <port> <control port>`.
"""

import argparse
import asyncio
import json
import random
import signal
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import iso8583
from aiohttp import web
from iso8583 import specs

from gateway.crypto.shared_keys import SharedKey, read_key
from gateway.domain.partners import PartnerKey
from gateway.sandbox.peers.bank_iso8583_ledger import Answer, Asked, Ledger
from gateway.sandbox.peers.control import Book, Fault, Faults, arguments, control_application, started

_WAITING_MAX = 10_000
"""Answers held back at once (delay, late)."""
_MESSAGE_MAX = 9_999
_DIGITS = ("t", "2", "3", "4", "11", "12", "13", "14", "15", "22", "25", "35", "60", "61", "90")
"""Packed two to a byte in the BCD form."""
_ECHOED = ("3", "4", "11", "12", "13", "15", "41", "42", "49", "59", "60")


def _spec(numbers: str) -> dict[str, Any]:
    spec: dict[str, Any] = deepcopy(specs.default)  # all in ASCII
    if numbers == "bcd":
        for key, field in spec.items():
            if key in _DIGITS:
                field |= {"data_enc": "b", "len_count": "nibbles", "right_pad": "0"}
            if field["len_type"]:
                field |= {"len_enc": "bcd", "len_type": (field["len_type"] + 1) // 2}
    return spec


class Host:
    """One bank for any number of connections."""

    def __init__(self, ledger: Ledger, faults: Faults, mac: SharedKey, *, numbers: str, framing: str) -> None:
        self._ledger = ledger
        self._faults = faults
        self._mac = mac
        self._spec = _spec(numbers)
        self._length_bytes = 2 if framing == "length2" else 4
        self._held: set[asyncio.Task[None]] = set()
        self._noise = random.Random(1)  # noqa: S311 - garbage of a simulation

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, iso8583.DecodeError, ValueError, KeyError):
            while True:
                prefix = await reader.readexactly(self._length_bytes)
                length = int.from_bytes(prefix, "big") if self._length_bytes == 2 else int(prefix)
                if not 0 < length <= _MESSAGE_MAX or len(self._held) >= _WAITING_MAX:
                    break
                self._take(await reader.readexactly(length), writer)
                await writer.drain()
        writer.close()

    def _take(self, message: bytes, writer: asyncio.StreamWriter) -> None:
        fields, _ = iso8583.decode(message, self._spec)
        # the link's own messages are spared: a fault is of an operation
        faults = {} if fields["t"] in ("0800", "0820") else self._faults.drawn()
        if "drop_before" in faults:
            return
        if "delay" in faults:
            self._hold(self._later(faults["delay"].ms, message, fields, faults, writer))
        else:
            self._act(message, fields, faults, writer)

    def _hold(self, waiting: Any) -> None:
        task = asyncio.ensure_future(waiting)
        self._held.add(task)
        task.add_done_callback(self._held.discard)

    async def _later(
        self, ms: int, message: bytes, fields: dict[str, str], faults: Mapping[str, Fault], writer: asyncio.StreamWriter
    ) -> None:
        await asyncio.sleep(ms / 1000)
        self._act(message, fields, faults, writer)

    def _act(
        self, message: bytes, fields: dict[str, str], faults: Mapping[str, Fault], writer: asyncio.StreamWriter
    ) -> None:
        answer = self._framed(self._answer(message, fields, faults))
        if "drop_after" in faults:
            return
        if "half_close" in faults:
            if not writer.is_closing():
                writer.write_eof()
            return
        if "garbage" in faults:
            answer = self._framed(self._noise.randbytes(len(answer)))
        elif "bad_signature" in faults:
            answer = answer[:-1] + bytes([answer[-1] ^ 1])
        if "duplicate" in faults:
            answer += answer
        if "late" in faults:
            self._hold(self._send_later(faults["late"].ms, answer, writer))
        else:
            _write(answer, writer)

    async def _send_later(self, ms: int, answer: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(ms / 1000)
        _write(answer, writer)

    def _answer(self, message: bytes, fields: dict[str, str], faults: Mapping[str, Fault]) -> bytes:
        kind = fields["t"]
        reply = {"t": f"{kind[:2]}{int(kind[2]) + 1}0"} | {n: fields[n] for n in _ECHOED if n in fields}
        if kind in ("0800", "0820"):
            return self._packed(reply | {"39": "00"})
        if not self._mac.verify(message[:-8], message[-8:]):
            return self._sealed(reply | {"39": "A0"})
        if kind == "0200" and fields["3"] == "310000":
            return self._sealed(reply | self._balance(fields))
        if kind == "0500":
            return self._sealed(reply | self._totals(fields))
        answer = self._do(kind, fields, faults)
        if answer.code == "00":
            reply |= {"37": answer.retrieval, "38": answer.retrieval[-6:]}
        return self._sealed(reply | {"39": answer.code})

    def _do(self, kind: str, fields: dict[str, str], faults: Mapping[str, Fault]) -> Answer:
        asked = Asked(
            fields["59"][:32], fields["59"][32:], "/".join(fields[n] for n in ("41", "42", "13", "11")),
            fields["13"], fields["2"], int(fields["4"]),
        )  # fmt: skip
        if kind == "0200" and "decline" in faults:
            return self._ledger.decline(asked, faults["decline"].code)
        if kind == "0200":
            return self._ledger.purchase(asked)
        if kind in ("0400", "0420", "0421"):
            return self._ledger.reverse(asked)
        if kind in ("0220", "0221"):
            return self._ledger.refund(asked)
        return Answer("30")

    def _balance(self, fields: dict[str, str]) -> dict[str, str]:
        fen = self._ledger.balance_fen(fields["2"])
        if fen is None:
            return {"39": "14"}
        return {"39": "00", "37": "0" * 12, "54": "".join(f"10{kind}156C{fen:012}" for kind in ("01", "02"))}

    def _totals(self, fields: dict[str, str]) -> dict[str, str]:
        ours = self._ledger.totals(fields["15"])
        text = f"{ours.debit_fen:012}{ours.debits:03}{ours.credit_fen:012}{ours.credits:03}"
        return {"39": "00", "48": text + ("1" if fields["48"].startswith(text) else "2") + "0" * 31}

    def _sealed(self, fields: dict[str, str]) -> bytes:
        unsealed = self._packed(fields | {"64": "0" * 16})[:-8]
        return unsealed + self._mac.mac(unsealed)[:8]

    def _packed(self, fields: dict[str, str]) -> bytes:
        packed, _ = iso8583.encode(fields, self._spec)
        return bytes(packed)

    def _framed(self, message: bytes) -> bytes:
        if self._length_bytes == 2:
            return len(message).to_bytes(2, "big") + message
        return b"%04d" % len(message) + message


def _write(answer: bytes, writer: asyncio.StreamWriter) -> None:
    if not writer.is_closing():
        with suppress(RuntimeError):  # half closed since
            writer.write(answer)


def _arguments() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--mac-key-file", type=Path, required=True, help="hex, 16 bytes")
    parser.add_argument("--mac-kind", choices=("mac-sm4", "mac-3des"), default="mac-sm4")
    parser.add_argument("--accounts", type=Path, help='JSON: {"<account>": fen}')
    parser.add_argument("--opening-fen", type=int, help="accounts that are not listed are opened with this")
    parser.add_argument("--numbers", choices=("bcd", "ascii"), default="bcd")
    parser.add_argument("--framing", choices=("length2", "length4_ascii"), default="length2")
    parser.add_argument("--seed", type=int, default=0)
    return started(parser)


async def _main(given: argparse.Namespace) -> None:
    book, faults = Book(given.book), Faults(given.seed)
    accounts = json.loads(given.accounts.read_text()) if given.accounts else {}
    mac = read_key(PartnerKey(kind=given.mac_kind), given.mac_key_file.read_text())
    ledger = Ledger(book, accounts, given.opening_fen)
    host = Host(ledger, faults, mac, numbers=given.numbers, framing=given.framing)
    server = await asyncio.start_server(host.serve, "127.0.0.1", given.port)
    control = web.AppRunner(control_application(faults, book))
    await control.setup()
    site = web.TCPSite(control, "127.0.0.1", given.control_port)
    await site.start()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    print("ready", server.sockets[0].getsockname()[1], control.addresses[0][1], flush=True)  # noqa: T201 - waited for
    await stopped.wait()
    server.close()
    await control.cleanup()
    book.close()


if __name__ == "__main__":
    asyncio.run(_main(_arguments()))
