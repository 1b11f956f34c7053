"""The edge of e-card codes: one way for all that a card may be presented for."""

from gateway.api.middleware import Call
from gateway.domain.presentations import EcardCode, Presentation
from gateway.flows.ask_ecard import Shown


async def ask_platform(call: Call, presentation: Presentation, shown: Shown) -> Shown:
    """With the national platform's word if an e-card's code is presented and a platform is connected; else as it is.

    Also as it is where the call's Idempotency-Key was used before: do_once() has its answer. Raises Problem 503.
    """
    platform = call.gateway.ask_ecard
    if type(presentation) is not EcardCode or platform is None:
        return shown
    key = None if call.idempotency_key is None else (call.caller_id, call.idempotency_key)
    return await platform.complete(shown, presentation, key)
