"""Planted bug: of a visit the whole signed request is kept, as of every other operation."""

from typing import Any

from gateway.api import visits
from gateway.api.effects import do_once


async def keep(call: Any, kind: Any, what: Any, keep_body: bool = True) -> Any:
    return await do_once(call, kind, what)


setattr(visits, "do_once", keep)  # noqa: B010
