"""The bench's rows that call partners: payments at both simulated banks, and codes of the simulated e-card platform.

Payments are signed beforehand, like the other effects, each with an order id of its own and sent once. Codes are shown
by the platform just before a run, for they live 60 s.
"""

import http.client
import json
import os
import random
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from loadtests import wire
from loadtests.client import Caller, CallError, Session
from loadtests.measure import VERIFY, Load, Row, Server, drive
from loadtests.processes import CHECKOUT
from loadtests.signing import Maker, Signing

if TYPE_CHECKING:
    from loadtests.bench import Bench

PAYMENTS = "/v1/payments"
CALLER = "demo-merchant"
APPROVED = '"status":"approved"'
CARDS = 20_000
AHEAD = 1.3
"""So many times the requests that a run should need are made."""
WARMUP_S = 1.0
LEGS = 4
LEG_SECONDS_MAX = 280.0  # a signature is taken for 300 s
SHOWN_AT_ONCE = 200
SHOW_TIMEOUT_S = 10.0


class Bank(NamedTuple):
    """A row's bank; `expected` is the rate that its first run is prepared for."""

    key: str
    name: str
    bank: str
    expected: float


ISO8583 = Bank("payments-iso8583", "payment, ISO 8583", "bank-haiyan", 1500.0)
SIGNED = Bank("payments-signed", "payment, signed open bank", "bank-jiaxing", 800.0)
BANKS = (ISO8583, SIGNED)
ECARD_KEY, ECARD_EXPECTED = "ecard", 2500.0


class Payments:
    """The rows of one gateway with its simulated partners."""

    def __init__(self, bench: "Bench", gateway: Server, environment: dict[str, str]) -> None:
        self._bench = bench
        self._gateway = gateway
        self._environment = os.environ | environment
        self._folder = bench.work
        self._session = Session(gateway.url, Caller.read(bench.data_dir, CALLER))
        self._rates: dict[str, float] = {}
        self._orders = (f"bench-{secrets.token_hex(6)}-{number}" for number in count())
        self._cards = {bank.bank: self._sample("--bank", bank.bank) for bank in BANKS}
        self._ecards = self._sample("--ecard")

    def measure(self) -> None:
        """A round of both banks in turn."""
        for _ in range(self._bench.rounds):
            for bank in BANKS:
                self._run(bank.key, bank.name, self._payments(bank, self._needed(bank.key, bank.expected)))

    def measure_ecard(self) -> None:
        for _ in range(self._bench.rounds):
            self._run(ECARD_KEY, "verify by e-card code", self._codes(self._needed(ECARD_KEY, ECARD_EXPECTED)))

    def measure_memory(self, payments: int) -> dict[str, Any]:
        """The worker's resident memory after each quarter of so many payments, each quarter signed just before it."""
        running, marks, runs = self._gateway.running, [], []
        start = running.rss_mib()
        for leg in range(1, LEGS + 1):
            load = replace(self._payments(ISO8583, payments // LEGS), seconds=LEG_SECONDS_MAX, warmup=0.0)
            runs.append(drive(self._gateway, load))
            marks.append({"answers": leg * payments // LEGS, "mib": running.rss_mib()})
            self._bench.say(f"  {marks[-1]['answers']:,} payments: {marks[-1]['mib']:.1f} MiB")
        self._bench.rows["memory-payments"] = Row("payment, ISO 8583, to the last", runs)
        return {
            "what": "payments", "count": payments, "answers": sum(run.driver["answers"] for run in runs),
            "connections": load.connections, "start_mib": start, "marks": marks,
        }  # fmt: skip

    def _run(self, key: str, name: str, load: Load) -> None:
        found = self._bench.run(key, name, self._gateway, replace(load, warmup=WARMUP_S))
        self._rates[key] = max(found.per_second, self._rates.get(key, 0.0))

    def _needed(self, key: str, expected: float) -> int:
        return int(self._rates.get(key, expected) * AHEAD * (self._bench.load.seconds + WARMUP_S))

    def _sample(self, *which: str) -> list[dict[str, str]]:
        """Random normal cards, none twice."""
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "sample-cards", *which, "--count", str(CARDS)],
            cwd=CHECKOUT, env=self._environment, capture_output=True, check=True, timeout=300,
        )  # fmt: skip
        return [json.loads(line) for line in dict.fromkeys(done.stdout.splitlines())]

    def _payments(self, bank: Bank, number: int) -> Load:
        cards = random.choices(self._cards[bank.bank], k=number)
        asked = [(PAYMENTS, body) for body in map(_payment, cards, islice(self._orders, number))]
        requests = self._folder / "requests.bin"
        authority = urlsplit(self._gateway.url).netloc
        signing = Signing.read(self._bench.data_dir, CALLER)
        Maker(authority, self._session.authorization(fresh=True), signing).write(requests, asked)
        return replace(self._bench.load, requests=requests, expect=APPROVED)

    def _codes(self, number: int) -> Load:
        """Verifies of fresh codes of random cards."""
        partners = json.loads((self._bench.data_dir / "sandbox" / "partners.json").read_text())
        numbers = [card["card_number"] for card in random.choices(self._ecards, k=number)]
        bodies = [
            json.dumps(
                {"presentation": {"type": "ecard_code", "code": code}, "scene": "hotel.checkin", "terminal_id": "P-1"},
                separators=(",", ":"),
            ).encode()
            for code in shown_codes(partners["ecard-platform"]["control"], numbers)
        ]
        requests: Path = self._folder / "requests.bin"
        requests.touch(mode=0o600)  # it holds a token
        headers = {"Authorization": self._session.authorization(fresh=True), "Content-Type": "application/json"}
        whole = wire.build_requests("POST", self._gateway.url, VERIFY, headers, bodies)
        requests.write_bytes(b"".join(map(wire.packed, whole)))
        return replace(self._bench.load, requests=requests)


def _payment(card: dict[str, str], order: str) -> bytes:
    asked = {
        "presentation": {"type": "chip_card"} | card, "scene": "dining.till", "terminal_id": "T-0001",
        "amount_fen": 1, "merchant_order_id": order,
    }  # fmt: skip
    return json.dumps(asked, separators=(",", ":")).encode()


def shown_codes(control: str, card_numbers: list[str]) -> Iterator[str]:
    """A fresh code for each, from the platform's control port. Raises CallError."""
    connection = http.client.HTTPConnection(urlsplit(control).netloc, timeout=SHOW_TIMEOUT_S)
    try:
        for at in range(0, len(card_numbers), SHOWN_AT_ONCE):
            some = [("card_number", number) for number in card_numbers[at : at + SHOWN_AT_ONCE]]
            connection.request("GET", f"/show?{urlencode(some)}")
            answer = connection.getresponse()
            found = json.loads(answer.read())
            if answer.status != 200:
                raise CallError(f"the e-card platform shows no codes: {answer.status}")
            yield from found["codes"]
    except OSError as error:
        raise CallError(f"the e-card platform's control port: {type(error).__name__}") from None
    finally:
        connection.close()
