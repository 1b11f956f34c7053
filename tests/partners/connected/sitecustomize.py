"""Connects the workers of a gateway to the e-card platform by the tests' own client, and plants what ECARD_BUG says.

Python imports it before anything else (tests/faults/planted.py): the gateway's own code has no switch for it.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Any

from gateway import app
from gateway.flows import ask_ecard
from gateway.store import ecards, verify
from tests.partners.ecard_wire import Peer, keys_in

NAME = "ecard-platform"
peer = Peer(int(os.environ["ECARD_PORT"]), 0, keys_in(os.environ["ECARD_KEYS"]))
original: Any = app.Gateway.__init__


def connected(self: Any, *arguments: Any) -> None:
    original(self, *arguments, {NAME: peer.ask})


async def never_seen(*_: object) -> bool:
    return False


def no_claim() -> None:
    sql = verify._SQL_WITH_CODES.replace(
        "SELECT item FROM coded WHERE event_id NOT IN", "SELECT item FROM coded WHERE 0 IN"
    )
    verify._SQL_WITH_CODES = sql.replace("0 IN (SELECT event_id FROM claimed)", "false")


def claims_in_memory() -> None:
    """Each worker remembers for itself what it has seen."""
    no_claim()
    seen: set[str] = set()
    complete = ask_ecard.AskEcard.complete

    async def remember(self: Any, presented: Any, presentation: Any) -> Any:
        found = await complete(self, presented, presentation)
        if found.code_digest and found.code_digest in seen:
            return found._replace(card_id="", preset="code_replayed", code_digest="")
        seen.add(found.code_digest)
        return found

    setattr(ask_ecard.AskEcard, "complete", remember)  # noqa: B010
    setattr(ecards, "was_used", never_seen)  # noqa: B010


def no_deadline() -> None:
    far = 60.0
    ask = peer.ask

    async def patient(op: Any, deadline: float) -> Any:
        return await ask(op, deadline + far)

    setattr(peer, "ask", patient)  # noqa: B010
    timeout_at = asyncio.timeout_at
    setattr(asyncio, "timeout_at", lambda when: timeout_at(when + far))  # noqa: B010


BUGS: dict[str, Callable[[], None]] = {
    "": lambda: None, "no_claim": no_claim, "claims_in_memory": claims_in_memory, "no_deadline": no_deadline,
}  # fmt: skip
BUGS[os.environ.get("ECARD_BUG", "")]()
setattr(app.Gateway, "__init__", connected)  # noqa: B010
