"""The simulated bank's money, whatever it is asked in whatever order: none is made, none is lost, none forgotten."""

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.sandbox.peers.control import Book, BookLine
from gateway.sandbox.peers.open_bank_ledger import Ledger, Payment, Refused
from tests.partners.open_bank import ELSEWHERE, ID_NUMBER, NOWHERE, PAYEE, PAYER

OPENING_FEN = 1000
DAY = "20261123"
HOLDERS = (PAYER, PAYEE, ELSEWHERE)
ACCOUNTS = (*HOLDERS, NOWHERE)
_Deed = Callable[[Ledger], Any]

references = st.integers(0, 5).map(lambda number: str(UUID(int=number)))
amounts = st.integers(1, 700)
accounts = st.sampled_from(ACCOUNTS)


@st.composite
def deeds(draw: st.DrawFn) -> _Deed:
    """One request. References come again, with the same content or another."""
    reference, other, amount = draw(references), draw(references), draw(amounts)
    payer, payee, verb = draw(accounts), draw(accounts), draw(st.sampled_from("234"))
    decline = draw(st.sampled_from(["", "", "", "100008"]))
    lines = [{"line": 1, "account": payee, "amount_fen": amount}, {"line": 2, "account": NOWHERE, "amount_fen": 1}]
    asked: list[_Deed] = [
        lambda bank: bank.pay(Payment(reference, "purchase", DAY, payer, payee, amount), decline),
        lambda bank: bank.pay(Payment(reference, "transfer", DAY, payer, payee, amount), decline),
        lambda bank: bank.state(reference),
        lambda bank: bank.reverse(reference, other, DAY, decline),
        lambda bank: bank.refund(reference, other, amount, DAY, decline),
        lambda bank: bank.accept_batch(reference, other, payer, amount + 1, 2, lines, DAY, decline),
        lambda bank: bank.batch_state(reference, other),
        lambda bank: bank.notify_loss(reference, payer, ID_NUMBER, verb, DAY, decline),
    ]
    return draw(st.sampled_from(asked))


def on_the_way_fen(book: Book) -> int:
    """Taken from a payer, and with nobody yet."""
    return sum(line.amount_fen for line in book.lines() if line.state == "pending")


def keeps_its_money(kind: type[Ledger], asked: list[_Deed]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.closing(Book(Path(folder) / "book.ndjson")) as book:
            bank = kind(book, OPENING_FEN)
            for deed in asked:
                for _ in range(2):  # the second time it changes nothing of what is owned
                    with contextlib.suppress(Refused):
                        deed(bank)
                    owned = sum(bank.balance_fen(account) for account in HOLDERS)
                    assert owned + on_the_way_fen(book) == OPENING_FEN * len(HOLDERS)
            balances = [bank.balance_fen(account) for account in HOLDERS]
        reopened = Book(Path(folder) / "book.ndjson")
        again = kind(reopened, OPENING_FEN)
        reopened.close()
        assert [again.balance_fen(account) for account in HOLDERS] == balances
        assert again._lost == bank._lost


@settings(max_examples=200)
@given(asked=st.lists(deeds(), min_size=10, max_size=40))
def test_it_keeps_its_money(asked: list[_Deed]) -> None:
    keeps_its_money(Ledger, asked)


class Generous(Ledger):
    """Planted bug: what is undone stays with who was paid."""

    def _take_in(self, line: BookLine, sign: int) -> None:
        if sign > 0 or line.kind != "purchase":
            super()._take_in(line, sign)
        else:
            payer = line.facts["moves"][:1]
            super()._take_in(BookLine(line.reference, line.kind, 0, line.state, line.facts | {"moves": payer}), sign)


def test_control_a_bank_that_makes_money_is_noticed() -> None:
    pay, undo = str(UUID(int=1)), str(UUID(int=2))
    asked: list[_Deed] = [
        lambda bank: bank.pay(Payment(pay, "purchase", DAY, PAYER, PAYEE, 10), ""),
        lambda bank: bank.reverse(undo, pay, DAY, ""),
    ]
    keeps_its_money(Ledger, asked)
    with pytest.raises(AssertionError):
        keeps_its_money(Generous, asked)


def test_the_file_of_a_day_stays_as_it_was(tmp_path: Path) -> None:
    """What is reversed on a later day is a line of both: as it was, and as reversed."""
    paid, gone, other = (str(UUID(int=number)) for number in (1, 2, 3))
    with contextlib.closing(Book(tmp_path / "book.ndjson")) as book:
        bank = Ledger(book, OPENING_FEN)
        for reference in (paid, gone):
            bank.pay(Payment(reference, "purchase", DAY, PAYER, PAYEE, 10), "")
        bank.reverse(str(UUID(int=4)), gone, DAY, "")
        bank.pay(Payment(other, "purchase", "20261124", PAYER, PAYEE, 30), "")
        bank.reverse(str(UUID(int=5)), paid, "20261124", "")
        files = [bank.check_file(day, str).split("\n") for day in (DAY, "20261124", "20261125")]
    one, two, three = (f"{UUID(reference).hex}|{fen}" for reference, fen in ((paid, 10), (gone, 10), (other, 30)))
    assert files == [
        ["2|20", f"{one}|1", f"{two}|3", ""],
        ["2|40", f"{one}|3", f"{three}|1", ""],
        ["0|0", ""],
    ]
