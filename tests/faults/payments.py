"""Customers who pay, want it undone, hang up and ask again; and the check of what that left, here and at the banks."""

import asyncio
import contextlib
import json
import random
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import aiohttp
import asyncpg

from tests.faults.home import Home
from tests.running import Client
from tests.signing import Signing, signed_headers
from tests.simulated_banks import BANKS, HAIYAN, OPENING_FEN, Banks, Customer, Line

PATH = "/v1/payments"
_ANSWER_S = 60.0
"""For the answer to a key, its retries included; a gateway is started again meanwhile."""
_REST_S = 0.5
_AT_ONCE = 32
"""Requests under way."""
_FINAL_REFUSALS = frozenset({"payment_pending", "payment_state"})
_REFUSALS = _FINAL_REFUSALS | {"idempotency_key_in_use", "unavailable", "overloaded"}


class Effect:
    """One request with its key; a retry is signed anew."""

    def __init__(self, path: str, body: dict[str, Any]) -> None:
        self.path = path
        self.raw = json.dumps(body).encode()
        self.key = secrets.token_urlsafe(12)
        self.told: list[tuple[int, bytes]] = []
        """Answers of 200 and 202."""
        self.refused: Counter[str] = Counter()
        self.cut = 0
        """Connections that broke before an answer."""

    @property
    def answer(self) -> dict[str, Any]:
        return dict(json.loads(self.told[0][1]))

    @property
    def tales(self) -> set[bytes]:
        """Different answers; more than one is a lie, but that a 202 may be followed by what became of it."""
        references = {json.loads(body)["reference"].encode() for _, body in self.told}
        final = {body for status, body in self.told if status == 200}
        return references if len(references) > 1 else final

    @property
    def status(self) -> str:
        """What it was told to be; empty: it was refused."""
        return str(self.answer["status"]) if self.told else ""


class Sale:
    def __init__(self, customer: Customer, amount_fen: int) -> None:
        card = customer.card
        self.order_id = secrets.token_hex(8)
        presentation = {"type": "chip_card", "card_number": card.number, "card_identifier": card.identifier}
        self.payment = Effect(PATH, {
            "presentation": presentation, "scene": "market.till", "terminal_id": "T-1", "amount_fen": amount_fen,
            "merchant_order_id": self.order_id,
        })  # fmt: skip
        self.amount_fen = amount_fen
        self.reversal: Effect | None = None
        self.refund: Effect | None = None


class Shop:
    """A merchant whose customers are of both banks; it remembers what it was told."""

    def __init__(
        self, client: Client, session: aiohttp.ClientSession, token: str, customers: Sequence[Customer]
    ) -> None:
        self._session = session
        self._signing = Signing.of(client.file)
        self._host = f"127.0.0.1:{client.gateway.port}"
        self._token = token
        self._customers = customers
        self._dice = random.Random(330424)
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self.sales: list[Sale] = []

    @property
    def answered(self) -> int:
        return sum(bool(sale.payment.told) for sale in self.sales)

    async def sell(self, count: int) -> None:
        """All at once; so many that those who wait for a killed gateway's answers do not hold up the others."""
        await asyncio.gather(*(self._sell_one(self._customers[i % len(self._customers)]) for i in range(count)))

    async def _sell_one(self, customer: Customer) -> None:
        dice = self._dice
        amount_fen = dice.randint(1, 500) if dice.random() > 0.05 else 2 * OPENING_FEN  # more than there is
        sale = Sale(customer, amount_fen)
        self.sales.append(sale)
        await self.until_answered(sale.payment)
        reference, wish = sale.payment.answer["reference"], dice.random()
        if wish < 0.25:
            sale.reversal = Effect(f"{PATH}/{reference}/reversals", {"reason": "the customer left"})
            await self.until_answered(sale.reversal)
        elif wish < 0.5:
            sale.refund = Effect(f"{PATH}/{reference}/refunds", {"amount_fen": dice.randint(1, amount_fen)})
            await self.until_answered(sale.refund)
        elif wish < 0.6:
            await self.ask(sale.payment, 20)

    async def until_answered(self, effect: Effect) -> None:
        """With its key again and again, now and then after we have hung up ourselves."""
        ends = time.monotonic() + _ANSWER_S
        within_s = 20.0 if self._dice.random() > 0.2 else self._dice.uniform(0, 0.05)
        while not effect.told and not effect.refused.keys() & _FINAL_REFUSALS:
            assert time.monotonic() < ends, f"{effect.path} is not answered: {effect.refused}, {effect.cut} cut"
            await self.ask(effect, within_s)
            within_s = 20.0
            await asyncio.sleep(self._dice.uniform(0, _REST_S))

    async def ask(self, effect: Effect, within_s: float) -> None:
        async with self._gate:
            await self.send(effect, within_s)

    async def send(self, effect: Effect, within_s: float) -> None:
        headers = signed_headers(
            self._signing, "POST", self._host, effect.path, effect.raw, f"Bearer {self._token}", key=effect.key
        )
        try:
            async with (
                asyncio.timeout(within_s),
                self._session.post(effect.path, data=effect.raw, headers=headers) as answer,
            ):
                body = await answer.read()
        except (aiohttp.ClientError, OSError):
            effect.cut += 1
            return
        if answer.status in (200, 202):
            effect.told.append((answer.status, body))
        else:
            code = json.loads(body)["code"]
            assert code in _REFUSALS, f"{answer.status} {code} for {effect.path}"
            effect.refused[code] += 1


@contextlib.asynccontextmanager
async def shop_at(home: Home, customers: Sequence[Customer]) -> AsyncIterator[Shop]:
    """With a fresh token."""
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with (
        Client(home.running, "demo-merchant") as client,
        aiohttp.ClientSession(home.running.url, connector=connector) as session,
    ):
        yield Shop(client, session, await client.token(), customers)


class Row(NamedTuple):
    """A payment or refund as our table has it."""

    reference: UUID
    kind: str
    bank: str
    order_id: str
    amount_fen: int
    state: str


class Findings(NamedTuple):
    """What the check has found; the last five must be 0."""

    sales: int
    approved: int
    declined: int
    reversed: int
    refunds: int
    undecided: int
    """Refunds without an answer of a bank that cannot be asked: open, and said to be so."""
    fen: int
    """What the banks took, refunds taken off."""
    left_open: int
    unlike: int
    """References that are decided here, and whose money stands otherwise there."""
    unheard: int
    """Of the banks' book, and not in our table."""
    doubled: int
    """Orders that were paid twice."""
    belied: int
    """Sales that were told something which is not so, or two things."""

    @property
    def clean(self) -> bool:
        return not (self.left_open or self.unlike or self.unheard or self.doubled or self.belied)


_FITS: Mapping[str, frozenset[str]] = {
    "approved": frozenset({"approved"}),
    "reversed": frozenset({"reversed", "void", "declined", ""}),
    "declined": frozenset({"declined", ""}),
    "not_sent": frozenset({""}),
}
"""Our state, and the bank's that fit; empty: it has never heard of it."""


_OPEN = ("intent", "unknown", "reversing")


def is_undecidable(row: Row) -> bool:
    return (row.kind, row.bank, row.state) == ("refund", HAIYAN, "unknown")


def compare(rows: Sequence[Row], book: Mapping[str, Mapping[UUID, Line]], sales: Sequence[Sale]) -> Findings:
    counts = Counter((row.kind, row.state) for row in rows)
    undecided = sum(is_undecidable(row) for row in rows)
    left_open = sum(number for (_, state), number in counts.items() if state in _OPEN) - undecided
    unlike = fen_here = 0
    for row in rows:
        line = book.get(row.bank, {}).get(row.reference, Line(row.kind, row.amount_fen, ""))
        if row.state in _FITS:
            unlike += line.state not in _FITS[row.state] or line.amount_fen != row.amount_fen
        fen_here += _signed(row.kind, row.amount_fen, line.state if is_undecidable(row) else row.state)
    lines = [(reference, line) for bank in BANKS for reference, line in book[bank].items()]
    fen_there = sum(_signed(line.kind, line.amount_fen, line.state) for _, line in lines)
    ours = {row.reference: row for row in rows}
    charges = Counter(
        ours[reference].order_id
        for reference, line in lines
        if (line.kind, line.state) == ("purchase", "approved") and reference in ours
    )
    return Findings(
        sales=len(sales),
        approved=counts["payment", "approved"],
        declined=counts["payment", "declined"],
        reversed=counts["payment", "reversed"],
        refunds=counts["refund", "approved"],
        undecided=undecided,
        fen=fen_there,
        left_open=left_open,
        unlike=unlike + (not left_open and fen_here != fen_there),
        unheard=sum(reference not in ours for reference, _ in lines),
        doubled=sum(number > 1 for number in charges.values()),
        belied=_belied(rows, sales),
    )


def _signed(kind: str, amount_fen: int, state: str) -> int:
    if state != "approved":
        return 0
    return -amount_fen if kind == "refund" else amount_fen


def _belied(rows: Sequence[Row], sales: Sequence[Sale]) -> int:
    became = {str(row.reference): row.state for row in rows}
    paid: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.kind == "payment" and row.state != "not_sent":
            paid[row.order_id].append(row)
    found = 0
    for sale in sales:
        before = found
        effects = [effect for effect in (sale.payment, sale.reversal, sale.refund) if effect is not None]
        found += any(len(effect.tales) > 1 for effect in effects)
        found += len(paid[sale.order_id]) != 1 or paid[sale.order_id][0].amount_fen != sale.amount_fen
        state = became.get(str(sale.payment.answer["reference"]), "")
        wanted_back = sale.reversal is not None
        match sale.payment.status:
            case "approved":
                found += state not in (("approved", "reversed") if wanted_back else ("approved",))
            case "declined" | "reversed" as told:
                found += state != told
        if sale.reversal is not None and sale.reversal.status == "reversed":
            found += state != "reversed"
        if sale.refund is not None and sale.refund.status in ("approved", "declined"):
            found += became.get(str(sale.refund.answer["reference"])) != sale.refund.status
        if found > before:  # one in thousands: what it was is all there is to go by
            print("belied", sale.order_id, state, paid[sale.order_id], [effect.tales for effect in effects])
    return found


async def rows_of(home: Home) -> list[Row]:
    connection = await asyncpg.connect(home.dsn)
    try:
        found = await connection.fetch(
            "SELECT reference, kind, coalesce(bank, ''), merchant_order_id, amount_fen, state FROM payment"
            " WHERE kind <> 'reversal'"
        )
    finally:
        await connection.close()
    return [Row(*row) for row in found]


async def nothing_is_left(home: Home) -> bool:
    """But what a bank cannot be asked about."""
    try:
        connection = await asyncpg.connect(home.dsn)
    except (OSError, asyncpg.CannotConnectNowError):
        return False  # it is still being started again
    try:
        left: int = await connection.fetchval(
            "SELECT count(*) FROM payment WHERE next_try_at IS NOT NULL"
            " AND NOT (kind = 'refund' AND bank = $1 AND state = 'unknown')",
            HAIYAN,
        )
    finally:
        await connection.close()
    return left == 0


async def steps_of(home: Home) -> Counter[str]:
    """How often operations went through each state, by kind: `refund unknown`."""
    connection = await asyncpg.connect(home.dsn)
    try:
        found = await connection.fetch(
            "SELECT p.kind || ' ' || h.state, count(*) FROM payment_history h"
            " JOIN payment p USING (reference, created_at) GROUP BY 1"
        )
    finally:
        await connection.close()
    return Counter({row[0]: row[1] for row in found})


async def check(home: Home, banks: Banks, sales: Sequence[Sale]) -> Findings:
    """When nothing is left to do; our table read as its owner."""
    return compare(await rows_of(home), await banks.book(), sales)
