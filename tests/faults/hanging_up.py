"""What many a server does when a client hangs up: it cancels what was begun for it. Planted bugs begin here."""

from typing import Any

from gateway.api.server import Connection, HardenedServer


def cancels_what_was_begun() -> None:
    """From now on the server does so, on either way past or through aiohttp's request cycle."""
    init, connection_lost = HardenedServer.__init__, Connection.connection_lost

    def cancelling(self: HardenedServer, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.handler_cancellation = True

    def lost(self: Connection, exc: BaseException | None) -> None:
        connection_lost(self, exc)
        for task in self._hot_lane._tasks:
            frame = getattr(task.get_coro(), "cr_frame", None)
            if frame is not None and frame.f_locals["connection"] is self:
                task.cancel()

    HardenedServer.__init__ = cancelling  # type: ignore[method-assign]
    Connection.connection_lost = lost  # type: ignore[assignment]
