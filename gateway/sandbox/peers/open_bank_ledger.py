"""What the simulated open bank does with money: accounts, transfers, batches, loss notices, the daily check file.

Everything is in the book, so a killed bank knows its balances again: a balance is the opening one and the moves of all
lines. Accounts stand in the book under a digest; the book is for people and tests to look at.
"""

import hashlib
import re
from collections.abc import Callable
from typing import Any

import msgspec

from gateway.sandbox.peers.control import Book, BookLine

OK = "000000"
NO_ACCOUNT, LOST, OTHER_PERSON, NO_FUNDS, OVER_LIMIT, NOT_FOUND, NOT_ALLOWED, WRONG_SUMS = (
    f"10000{number}" for number in range(1, 9)
)
REUSED = "800003"
"""A message id or batch number that was used for something else."""

MONEY = ("purchase", "transfer", "refund")
OWN_ACCOUNTS = "6217"
"""Transfers to accounts that begin otherwise go to another bank: pending until asked after twice."""
DEAD_ACCOUNTS = "0000"
"""An account that ends so exists for nobody."""

Line = dict[str, Any]


class Refused(Exception):
    """With a dealCode, and nothing done or recorded."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Payment(msgspec.Struct, frozen=True):
    """A transfer or purchase as it was asked for."""

    reference: str
    kind: str
    day: str
    payer: str
    payee: str
    amount_fen: int


class Ledger:
    """Each of its methods runs without a pause, so requests do not meet half of another's work."""

    def __init__(self, book: Book, opening_fen: int) -> None:
        self._book = book
        self._opening_fen = opening_fen
        self._moved: dict[str, int] = {}
        self._lost: dict[str, str] = {}
        self._reversed: set[str] = set()
        self._refunded_fen: dict[str, int] = {}
        self._owners: dict[str, dict[str, str]] = {}
        for line in book.lines():
            self._take_in(line, 1)

    def pay(self, payment: Payment, decline: str) -> BookLine:
        """A transfer or purchase, once for its reference. `decline` is a dealCode to answer with, or empty."""
        asked = _digest(*msgspec.structs.astuple(payment))
        if (seen := self._seen(payment.reference, asked)) is not None:
            return seen
        payer, payee = _key(payment.payer), _key(payment.payee)
        code = decline or self._objection(payment.payer, payment.amount_fen) or self._voided(payment.reference)
        abroad = payment.kind == "transfer" and not payment.payee.startswith(OWN_ACCOUNTS)
        if not code and not abroad and not _exists(payment.payee):
            code = NO_ACCOUNT
        facts: Line = {"asked": asked, "day": payment.day, "payer": payer, "payee": payee, "code": code, "moves": []}
        if not code:
            facts["moves"] = [[payer, -payment.amount_fen]] + ([] if abroad else [[payee, payment.amount_fen]])
        if abroad:
            facts |= {"asks": 0, "arrives": _exists(payment.payee)}
        state = "declined" if code else "pending" if abroad else "approved"
        return self._put(BookLine(payment.reference, payment.kind, payment.amount_fen, state, facts))

    def state(self, reference: str) -> BookLine:
        """A payment or refund, after whatever being asked sets in motion. Raises Refused."""
        line = self._money(reference)
        if line is None:
            raise Refused(NOT_FOUND)
        if line.state != "pending":
            return line
        facts, asks = line.facts, line.facts["asks"] + 1
        if asks < 2:
            return self._put(_changed(line, "pending", asks=asks))
        if facts["arrives"]:
            return self._put(_changed(line, "approved", moves=[*facts["moves"], [facts["payee"], line.amount_fen]]))
        return self._put(_changed(line, "declined", moves=[], code=NO_ACCOUNT))

    def reverse(self, reference: str, original: str, day: str, decline: str) -> BookLine:
        """Undo a payment. One that was never seen is refused if it comes later. Raises Refused."""
        asked = _digest(reference, original)
        line = self._book.find(reference, "reverse")
        if line is None:
            if decline:
                raise Refused(decline)
            line = self._reverse(reference, original, day, asked)
        if line.facts["asked"] != asked:
            raise Refused(REUSED)
        if line.state == "declined":
            raise Refused(line.facts["code"])
        return line

    def _reverse(self, reference: str, original: str, day: str, asked: str) -> BookLine:
        paid = self._money(original)
        code = NOT_FOUND if paid is None else ""
        if paid is not None and (paid.kind == "refund" or self._refunded_fen.get(original, 0)):
            code = NOT_ALLOWED
        if paid is not None and not code and paid.state in ("approved", "pending"):
            self._put(_changed(paid, "reversed", moves=[], reversed_on=day, before=paid.state))
        facts: Line = {"asked": asked, "day": day, "original": original, "code": code, "moves": []}
        state = "declined" if code else "approved"
        return self._put(BookLine(reference, "reverse", paid.amount_fen if paid else 0, state, facts))

    def refund(self, reference: str, original: str, amount_fen: int, day: str, decline: str) -> BookLine:
        """Give back a part of an approved payment, once for its reference."""
        asked = _digest(reference, original, amount_fen)
        if (seen := self._seen(reference, asked)) is not None:
            return seen
        paid = self._money(original)
        code = decline
        if not code and (paid is None or paid.kind == "refund"):
            code = NOT_FOUND
        elif not code and paid is not None:
            rest = paid.amount_fen - self._refunded_fen.get(original, 0)
            code = NOT_ALLOWED if paid.state != "approved" else OVER_LIMIT if amount_fen > rest else ""
        facts: Line = {"asked": asked, "day": day, "original": original, "code": code, "moves": []}
        if not code and paid is not None:
            facts["moves"] = [[paid.facts["payee"], -amount_fen], [paid.facts["payer"], amount_fen]]
        return self._put(BookLine(reference, "refund", amount_fen, "declined" if code else "approved", facts))

    def accept_batch(
        self, reference: str, number: str, payer: str, total_fen: int, count: int, lines: list[Line], day: str,
        decline: str,
    ) -> BookLine:  # fmt: skip
        """Payroll: the sum is taken at once, the lines are paid when the batch is first asked after. Raises Refused.

        A line is `{"line", "account", "amount_fen"}`.
        """
        asked = _digest(reference, number, payer, total_fen, *(tuple(line.values()) for line in lines))
        line = self._book.find(reference, "batch")
        if line is not None:
            if line.facts["asked"] != asked:
                raise Refused(REUSED)
            return line
        if any(one.kind == "batch" and one.facts["number"] == number for one in self._book.lines()):
            raise Refused(REUSED)
        code = decline or self._objection(payer, total_fen)
        if not code and (len(lines) != count or sum(one["amount_fen"] for one in lines) != total_fen):
            code = WRONG_SUMS
        accepted = [
            {"line": one["line"], "payee": _key(one["account"]), "amount_fen": one["amount_fen"], "state": "pending",
             "code": "" if _exists(one["account"]) else NO_ACCOUNT}
            for one in lines
        ]  # fmt: skip
        facts: Line = {"asked": asked, "day": day, "number": number, "payer": _key(payer), "code": code, "moves": []}
        if not code:
            facts |= {"lines": accepted, "moves": [[_key(payer), -total_fen]]}
        return self._put(BookLine(reference, "batch", total_fen, "declined" if code else "pending", facts))

    def batch_state(self, reference: str, number: str) -> BookLine:
        """A batch, processed. Raises Refused."""
        line = self._book.find(reference, "batch")
        if line is None or line.facts["number"] != number:
            raise Refused(NOT_FOUND)
        if line.state != "pending":
            return line
        lines, moves = [], list(line.facts["moves"])
        for one in line.facts["lines"]:
            code = one["code"] or (LOST if one["payee"] in self._lost else "")
            lines.append(one | {"state": "declined" if code else "approved", "code": code})
            moves.append([line.facts["payer"] if code else one["payee"], one["amount_fen"]])
        return self._put(_changed(line, "approved", lines=lines, moves=moves))

    def notify_loss(self, reference: str, account: str, person: str, verb: str, day: str, decline: str) -> BookLine:
        """Verbs 2 temporary, 3 formal, 4 release; a formal loss is not weakened by a temporary one. Raises Refused."""
        asked = _digest(reference, account, person, verb)
        line = self._book.find(reference, "loss")
        if line is None:
            code = decline or ("" if _exists(account) else NO_ACCOUNT) or self._stranger(account, id_number=person)
            facts: Line = {"asked": asked, "day": day, "account": _key(account), "verb": verb, "code": code}
            line = self._put(BookLine(reference, "loss", 0, "declined" if code else "approved", facts))
        if line.facts["asked"] != asked:
            raise Refused(REUSED)
        return line

    def loss_state(self, reference: str) -> BookLine:
        line = self._book.find(reference, "loss")
        if line is None:
            raise Refused(NOT_FOUND)
        return line

    def check_owner(self, account: str, name: str, person: str) -> None:
        """Raises Refused. Who asks first tells whose an account is; that is forgotten when the bank ends."""
        code = "" if _exists(account) else NO_ACCOUNT
        if code := code or self._stranger(account, name=name, id_number=person):
            raise Refused(code)

    def balance_fen(self, account: str) -> int:
        """Raises Refused."""
        if not _exists(account):
            raise Refused(NO_ACCOUNT)
        return self._opening_fen + self._moved.get(_key(account), 0)

    def check_file(self, day: str, amount: Callable[[int], str]) -> str:
        """`count|sum`, then `reference|amount|state` of a day (0 pending, 1 done, 2 failed, 3 reversed).

        What was reversed on another day than its own is a line of both: as it was, and as reversed.
        """
        lines = [(line, state) for line in self._book.lines() if (state := _state_on(line, day))]
        texts = [f"{line.reference.replace('-', '')}|{amount(line.amount_fen)}|{code}" for line, code in lines]
        return "\n".join([f"{len(lines)}|{amount(sum(line.amount_fen for line, _ in lines))}", *texts, ""])

    def _money(self, reference: str) -> BookLine | None:
        found = (self._book.find(reference, kind) for kind in MONEY)
        return next((line for line in found if line is not None), None)

    def _seen(self, reference: str, asked: str) -> BookLine | None:
        """What the reference did before. Raises Refused if it was for something else."""
        line = self._money(reference)
        if line is not None and line.facts["asked"] != asked:
            raise Refused(REUSED)
        return line

    def _objection(self, payer: str, amount_fen: int) -> str:
        if not _exists(payer):
            return NO_ACCOUNT
        if _key(payer) in self._lost:
            return LOST
        return NO_FUNDS if amount_fen > self.balance_fen(payer) else ""

    def _voided(self, reference: str) -> str:
        return NOT_ALLOWED if reference in self._reversed else ""

    def _stranger(self, account: str, **person: str) -> str:
        known = self._owners.setdefault(_key(account), {})
        return OTHER_PERSON if any(known.setdefault(name, text) != text for name, text in person.items()) else ""

    def _put(self, line: BookLine) -> BookLine:
        """The line is on disk when this returns."""
        old = self._book.find(line.reference, line.kind)
        self._book.write(line)
        if old is not None:
            self._take_in(old, -1)
        self._take_in(line, 1)
        return line

    def _take_in(self, line: BookLine, sign: int) -> None:
        for account, moved in line.facts.get("moves", ()):
            self._moved[account] = self._moved.get(account, 0) + sign * moved
        if line.kind == "reverse":
            self._reversed.add(line.facts["original"])
        if line.kind == "refund" and line.state == "approved":
            original = line.facts["original"]
            self._refunded_fen[original] = self._refunded_fen.get(original, 0) + sign * line.amount_fen
        if line.kind == "loss" and line.state == "approved":
            if line.facts["verb"] == "4":
                self._lost.pop(line.facts["account"], None)
            elif self._lost.get(line.facts["account"]) != "3":
                self._lost[line.facts["account"]] = line.facts["verb"]


FILE_STATES = {"pending": "0", "approved": "1", "declined": "2", "reversed": "3"}


def _state_on(line: BookLine, day: str) -> str:
    """Its code in the file of a day; empty: it is not in it."""
    reversed_on = line.facts.get("reversed_on", day)
    if line.kind not in (*MONEY, "batch") or day not in (line.facts["day"], line.facts.get("reversed_on")):
        return ""
    return FILE_STATES[line.state if reversed_on == day else line.facts["before"]]


def _changed(line: BookLine, state: str, **facts: Any) -> BookLine:
    return msgspec.structs.replace(line, state=state, facts=line.facts | facts)


def _exists(account: str) -> bool:
    return re.fullmatch("[0-9]{16,19}", account) is not None and not account.endswith(DEAD_ACCOUNTS)


def _key(account: str) -> str:
    return _digest(account)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
