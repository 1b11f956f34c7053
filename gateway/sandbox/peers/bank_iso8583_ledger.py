"""The books of the simulated ISO 8583 bank: accounts, purchases, reversals, refunds. No wire, no clock.

Balances are the opening ones and the book; a line is on disk before the answer leaves. Answers are codes of F39.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from gateway.crypto.digests import sm3
from gateway.sandbox.peers.control import Book, BookLine

OK = "00"
NOT_FOUND = "25"
NO_SUCH_CARD = "14"
NO_MONEY = "51"
TOO_MUCH = "61"
DUPLICATE = "94"


class Asked(NamedTuple):
    """One message with an effect, in the host's words."""

    reference: str
    """32 hex digits, the sender's."""
    original_reference: str
    """That of the purchase, in a reversal or a refund."""
    place_and_trace: str
    """F41, F42, F13, F11: by these a reversal finds its purchase."""
    day: str
    """MMDD"""
    account: str
    amount_fen: int


class Answer(NamedTuple):
    code: str
    retrieval: str = ""
    """F37 of what was done."""


class Totals(NamedTuple):
    debit_fen: int
    debits: int
    credit_fen: int
    credits: int


class Ledger:
    """Idempotent by reference: the same message again gets the same answer and changes nothing."""

    def __init__(self, book: Book, accounts: Mapping[str, int], opening_fen: int | None = None) -> None:
        """With `opening_fen` an account that is not listed is opened with it when it is first seen."""
        self._book = book
        self._opening_fen = opening_fen
        self._balances = {_digest(account): fen for account, fen in accounts.items()}
        self._purchases: dict[str, str] = {}
        self._refunded: dict[str, int] = {}
        for line in book.lines():
            self._remember(line)
            if line.state == "approved":
                self._change(line.facts["account"], -line.amount_fen if line.kind == "purchase" else line.amount_fen)

    def balance_fen(self, account: str) -> int | None:
        return self._balances.get(_digest(account), self._opening_fen)

    def purchase(self, asked: Asked) -> Answer:
        known = self._book.find(asked.reference, "purchase")
        if known is not None:
            same = known.amount_fen == asked.amount_fen and known.facts["account"] in ("", _digest(asked.account))
            return _again(known) if same else Answer(DUPLICATE)
        if asked.place_and_trace in self._purchases:
            return Answer(DUPLICATE)
        balance = self.balance_fen(asked.account)
        if balance is None:
            return self._write("purchase", asked, NO_SUCH_CARD)
        if balance < asked.amount_fen:
            return self._write("purchase", asked, NO_MONEY)
        answer = self._write("purchase", asked, OK)
        self._change(_digest(asked.account), -asked.amount_fen)
        return answer

    def decline(self, asked: Asked, code: str) -> Answer:
        """As a purchase that the bank will not have, for this code."""
        known = self._book.find(asked.reference, "purchase")
        return _again(known) if known is not None else self._write("purchase", asked, code)

    def reverse(self, asked: Asked) -> Answer:
        reference = self._purchases.get(asked.place_and_trace)
        line = self._book.find(reference, "purchase") if reference is not None else None
        if line is None:
            # it may come yet, by another way: then it must find itself undone
            facts = {"account": "", "place_and_trace": asked.place_and_trace, "code": DUPLICATE, "day": asked.day}
            self._keep(BookLine(asked.original_reference, "purchase", asked.amount_fen, "void", facts))
            return Answer(NOT_FOUND)
        if line.state == "approved":
            self._keep(BookLine(line.reference, "purchase", line.amount_fen, "reversed", line.facts))
            self._change(line.facts["account"], line.amount_fen)
        return Answer(OK, line.facts["retrieval"]) if line.state in ("approved", "reversed") else Answer(NOT_FOUND)

    def refund(self, asked: Asked) -> Answer:
        known = self._book.find(asked.reference, "refund")
        if known is not None:
            return _again(known) if known.amount_fen == asked.amount_fen else Answer(DUPLICATE)
        original = self._book.find(asked.original_reference, "purchase")
        if original is None or original.state != "approved":
            return self._write("refund", asked, NOT_FOUND)
        refunded = self._refunded.get(asked.original_reference, 0)
        if refunded + asked.amount_fen > original.amount_fen:
            return self._write("refund", asked, TOO_MUCH)
        answer = self._write("refund", asked, OK)
        self._change(_digest(asked.account), asked.amount_fen)
        return answer

    def totals(self, day: str) -> Totals:
        done = [line for line in self._book.lines() if line.state == "approved" and line.facts["day"] == day]
        debits = [line.amount_fen for line in done if line.kind == "purchase"]
        credits = [line.amount_fen for line in done if line.kind == "refund"]
        return Totals(sum(debits), len(debits), sum(credits), len(credits))

    def _write(self, kind: str, asked: Asked, code: str) -> Answer:
        retrieval = f"{len(self._book) + 1:012}" if code == OK else ""
        facts: dict[str, Any] = {
            "account": _digest(asked.account),
            "place_and_trace": asked.place_and_trace,
            "original": asked.original_reference,
            "code": code,
            "retrieval": retrieval,
            "day": asked.day,
        }
        self._keep(BookLine(asked.reference, kind, asked.amount_fen, "approved" if code == OK else "declined", facts))
        return Answer(code, retrieval)

    def _keep(self, line: BookLine) -> None:
        self._book.write(line)
        self._remember(line)

    def _remember(self, line: BookLine) -> None:
        if line.kind == "purchase":
            self._purchases[line.facts["place_and_trace"]] = line.reference
        elif line.state == "approved":
            original = line.facts["original"]
            self._refunded[original] = self._refunded.get(original, 0) + line.amount_fen

    def _change(self, account: str, fen: int) -> None:
        self._balances[account] = self._balances.get(account, self._opening_fen or 0) + fen


def _again(line: BookLine) -> Answer:
    """What was answered the first time; what has been undone since is a duplicate."""
    if line.state == "approved":
        return Answer(OK, line.facts["retrieval"])
    return Answer(line.facts["code"] if line.state == "declined" else DUPLICATE)


def _digest(account: str) -> str:
    """The book holds no account numbers."""
    return sm3(account.encode()).hex()[:32]
