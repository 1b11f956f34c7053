"""Planted bug: of requests that were sent in one go, the last is answered first."""

from gateway.api.server import Connection

_real = Connection.data_received


def data_received(self: Connection, data: bytes) -> None:
    _real(self, data)
    self._messages.reverse()


Connection.data_received = data_received  # type: ignore[method-assign]
