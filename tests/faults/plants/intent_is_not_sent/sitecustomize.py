"""Planted bug: an intent that nobody has finished is taken for one that was never sent.

With a place to stand, as in stands_still.
"""

from gateway.domain.outcome import Outcome
from gateway.domain.payments import PaymentState
from gateway.flows.settle_payment import SettlePayment
from gateway.store.payments import Payment
from tests.faults.plants.stands_still import sitecustomize

_write = sitecustomize.write  # which stands


async def write(
    self: SettlePayment, payment: Payment, before: tuple[PaymentState, ...], state: PaymentState,
    outcome: Outcome | None,
) -> Payment:  # fmt: skip
    if state is PaymentState.UNKNOWN and outcome is None:
        state = PaymentState.NOT_SENT
    return await _write(self, payment, before, state, outcome)


setattr(SettlePayment, "_write", write)  # noqa: B010
