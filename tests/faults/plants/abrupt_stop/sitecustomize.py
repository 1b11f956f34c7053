"""Planted bug: a worker that is told to stop does so at once."""

import os

from gateway.api.server import HardenedRunner


async def cleanup(self: HardenedRunner) -> None:
    os._exit(0)


setattr(HardenedRunner, "cleanup", cleanup)  # noqa: B010
