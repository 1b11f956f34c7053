"""Planted bug: the outward feed's cursor moves when a page is sent, not when it is acknowledged."""

from gateway.flows.deliver_usage import DeliverPages, _Page, _place, _Sent
from gateway.store import outbox

_deliver = DeliverPages._deliver


async def deliver(self: DeliverPages, page: _Page) -> list[_Sent]:
    async with self._delivery.transaction() as (connection, _):
        await outbox.acknowledged(connection, self._name, _place(page.rows[-1]))
    return await _deliver(self, page)


DeliverPages._deliver = deliver  # type: ignore[method-assign]
