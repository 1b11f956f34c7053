"""A bank on a TCP port with a book of its own, that can be told what goes wrong; and who speaks to it.

One JSON line a connection, one back. Its words are nobody's dialect: what is tried is the gateway's own part.
"""

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from gateway.crypto.key_store import KeyStore
from gateway.crypto.sealing import Sealer, new_data_key
from gateway.domain.masking import Secret
from gateway.domain.operations import CheckFile, Operation, Purchase, QueryStatus, Refund, Reverse
from gateway.domain.outcome import Approved, DeclineCode, Declined, NotSent, Outcome, Pending, Unknown
from gateway.flows.data_keys import DataKeys
from gateway.flows.resolve_payments import ResolvePayments
from gateway.flows.settle_payment import ACCOUNT_COLUMN, Ask, Banks, SettlePayment
from gateway.flows.write_outcomes import WriteOutcomes
from gateway.partners.phases import Why
from gateway.sandbox.peers.control import Book, BookLine
from gateway.settings import Settings
from gateway.store import data_keys
from gateway.store.pool import FOR_EFFECTS, Pool, connect
from tests.registry import TODAY

ACCOUNT = "9999990000000000017"
"""Begins with digits that no bank has been given."""
NO_TERMINAL = "T-2"
"""This bank knows no such terminal: no message can be built."""


class Hold(NamedTuple):
    """The bank has the message and waits: `arrived` is set, it goes on when `go` is, and sets `done`."""

    arrived: asyncio.Event
    go: asyncio.Event
    done: asyncio.Event

    @classmethod
    def new(cls) -> "Hold":
        return cls(asyncio.Event(), asyncio.Event(), asyncio.Event())


Fault = str | Hold
"""`drop_before`, `drop_after`, `garbage`, `decline:<code>`, `pending`, or a Hold (before it acts)."""


class Bank:
    """`faults[op]` are met one after the other; `chance`, if given, draws one for each message."""

    def __init__(self, file: Path, *, remembers_reversals: bool = True) -> None:
        self._book = Book(file)
        self._remembers = remembers_reversals
        self._voided: set[str] = set()
        self._server: asyncio.Server | None = None
        self.faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self.chance: Callable[[str], Fault | None] = lambda op: None
        self.messages: list[tuple[str, str]] = []
        """(operation, reference) of all that arrived."""
        self.port = 0

    async def open(self) -> "Bank":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self._book.close()

    def lines(self) -> dict[str, BookLine]:
        """What it did, by reference."""
        return {line.reference: line for line in self._book.lines()}

    def charged_fen(self) -> int:
        """What all payments come to, refunds taken off."""
        signs = {"purchase": 1, "refund": -1}
        return sum(signs[line.kind] * line.amount_fen for line in self._book.lines() if line.state == "approved")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            message = json.loads(await reader.readline())
            fault = self._fault(message["op"])
            self.messages.append((message["op"], message["reference"]))
            if isinstance(fault, Hold):
                fault.arrived.set()
                await fault.go.wait()
            if fault == "drop_before":
                return
            answer = self._act(message, fault)
            if isinstance(fault, Hold):
                fault.done.set()
            if fault != "drop_after":
                writer.write(b"\xff\n" if fault == "garbage" else json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):
            pass
        finally:
            writer.transport.abort() if writer.is_closing() else writer.close()

    def _fault(self, op: str) -> Fault | None:
        return self.faults[op].popleft() if self.faults[op] else self.chance(op)

    def _act(self, message: dict[str, Any], fault: Fault | None) -> dict[str, Any]:
        if isinstance(fault, str) and fault.startswith("decline:"):
            return {"declined": fault.partition(":")[2]}
        if fault == "pending":
            return {"pending": True}
        reference, original = message["reference"], message.get("original", "")
        acts = {"purchase": self._purchase, "refund": self._refund}
        match message["op"]:
            case "query":
                line = self.lines().get(original)
                return self._said(line) if line else {"declined": "not_found"}
            case "reverse":
                return self._reverse(original)
            case "check_file":
                return {"lines": [
                    {"reference": line.reference, "amount_fen": line.amount_fen, "state": line.state}
                    for line in self._book.lines()
                ]}  # fmt: skip
            case op:
                seen = self.lines().get(reference)
                return self._said(seen) if seen else acts[op](message)

    def _purchase(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["reference"] in self._voided:
            return {"declined": "not_allowed"}
        self._book.write(BookLine(message["reference"], "purchase", message["amount_fen"], "approved"))
        return {"approved": True}

    def _refund(self, message: dict[str, Any]) -> dict[str, Any]:
        original = self.lines().get(message["original"])
        if original is None or original.state != "approved":
            return {"declined": "not_found"}
        self._book.write(BookLine(message["reference"], "refund", message["amount_fen"], "approved"))
        return {"approved": True}

    def _reverse(self, original: str) -> dict[str, Any]:
        line = self.lines().get(original)
        if line is None:
            if self._remembers:
                self._voided.add(original)
            return {"declined": "not_found"}
        self._book.write(BookLine(line.reference, line.kind, line.amount_fen, "reversed"))
        return {"approved": True}

    @staticmethod
    def _said(line: BookLine) -> dict[str, Any]:
        return {"approved": True} if line.state == "approved" else {"declined": "do_not_honour"}


def ask_over(port: int) -> Ask:
    """Speaks to the bank as the engine does: not a byte gone is NotSent, no clear answer is Unknown."""

    async def ask(name: str, operation: Operation, deadline_s: float) -> Outcome:
        assert name in ("bank-haiyan", "bank-jiaxing")
        if isinstance(operation, Purchase) and operation.terminal_id == NO_TERMINAL:
            return NotSent(Why.CANNOT_BUILD)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return NotSent("refused")
        try:
            async with asyncio.timeout(deadline_s):
                writer.write(json.dumps(_message(operation)).encode() + b"\n")
                return _outcome(json.loads(await reader.readline()))
        except (OSError, TimeoutError, ValueError):
            return Unknown("no clear answer")
        finally:
            writer.close()

    return ask


def _message(operation: Operation) -> dict[str, Any]:
    message: dict[str, Any] = {"reference": str(operation.reference)}
    match operation:
        case Purchase():
            assert operation.account.reveal() == ACCOUNT
            return message | {"op": "purchase", "amount_fen": operation.amount_fen, "trace": operation.trace}
        case Refund():
            original = str(operation.original.reference)
            return message | {"op": "refund", "amount_fen": operation.amount_fen, "original": original}
        case Reverse():
            return message | {"op": "reverse", "original": str(operation.original.reference)}
        case QueryStatus():
            return message | {"op": "query", "original": str(operation.original.reference)}
        case CheckFile():
            return message | {"op": "check_file"}
    raise AssertionError(operation)


def _outcome(answer: dict[str, Any]) -> Outcome:
    match answer:
        case {"approved": True}:
            return Approved()
        case {"declined": code}:
            return Declined(DeclineCode(code))
        case {"lines": lines}:
            return Approved(facts={"lines": lines})
    return Pending()


def banks(port: int, can_query: bool = True) -> Banks:
    return Banks(ask_over(port), lambda name, kind: can_query or kind is not QueryStatus)


async def give_account(
    dsn: str, keys: KeyStore, card_id: UUID, bank: str = "bank-jiaxing", account: str = ACCOUNT
) -> None:
    connection, sealer = await asyncpg.connect(dsn), Sealer()
    try:
        key_id = await data_keys.for_month(connection, "registry", TODAY, new_data_key(keys))
        sealer.add(await data_keys.load(connection), keys)
        sealed = sealer.seal(key_id, ACCOUNT_COLUMN, card_id.bytes, account.encode())
        await connection.execute(
            "UPDATE card SET bank = $2, account_sealed = $3 WHERE card_id = $1", card_id, bank, sealed
        )
    finally:
        await connection.close()


class Resolver:
    """The worker's loop in the test's own process: a turn is taken when the test says so."""

    def __init__(self, settings: Settings, dsn: str, reached: Banks) -> None:
        from gateway.crypto.key_watch import KeyWatch

        config = settings.gateway
        self._dsn = dsn
        self.pool = Pool(Secret(dsn), config.database, "test resolver")
        keys = DataKeys(self.pool, KeyWatch(settings.keys_dir, lambda _: None), config.sealing.algorithm)
        connected = partial(connect, Secret(dsn), config.database, "test outcomes", FOR_EFFECTS)
        self._outcomes = WriteOutcomes(connected, keys)
        self.settle = SettlePayment(self.pool, keys, self._outcomes, reached, config.payments)
        self.resolve = ResolvePayments(self.pool, self.settle, config.payments)

    async def open(self) -> "Resolver":
        await self.pool.open()
        self._writing = asyncio.create_task(self._outcomes.serve())
        return self

    async def close(self) -> None:
        self._writing.cancel()
        await asyncio.gather(self._writing, return_exceptions=True)
        await self.pool.close()

    __aenter__ = open

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def make_due(self) -> int:
        """All that is waiting for its time, leases too; returns how many."""
        connection = await asyncpg.connect(self._dsn)
        try:
            done = await connection.execute("UPDATE payment SET next_try_at = now() WHERE next_try_at IS NOT NULL")
        finally:
            await connection.close()
        return int(done.split()[1])

    async def until_nothing_is_left(self, turns_max: int = 60) -> int:
        """The turns that it took."""
        for turn in range(turns_max):
            if not await self.make_due():
                return turn
            await self.resolve.turn()
        raise AssertionError(f"not resolved in {turns_max} turns")
