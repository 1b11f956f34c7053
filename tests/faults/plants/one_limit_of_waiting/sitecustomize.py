"""Planted bug: operations that wait for any bank count together."""

from gateway.flows import settle_payment
from gateway.flows.settle_payment import SettlePayment


def has_place(self: SettlePayment, bank: str) -> bool:
    return self._at_bank.total() < settle_payment._AT_BANK_MAX


setattr(SettlePayment, "has_place", has_place)  # noqa: B010
