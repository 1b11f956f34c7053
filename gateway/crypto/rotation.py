"""When each of our signing keys signs and is accepted: published first, then it signs, then its tokens run out."""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from gateway.crypto.key_store import OwnKey

CLOCK_SKEW_S = 30
"""How far the clocks of two of our hosts, or of a caller and us, may be apart."""


class State(StrEnum):
    NEXT = "next"  # published, does not sign yet
    CURRENT = "current"
    ACCEPTED = "accepted"  # signs no more, its tokens still open
    OUT = "retired"  # its last token has expired: neither published nor accepted


class Scheduled(NamedTuple):
    """A key in its time; Unix seconds, None where there is no end or the beginning is not known."""

    kid: str
    state: State
    since: float | None
    until: float | None


def signs(keys: Sequence[OwnKey], now: float) -> OwnKey:
    """The newest key (they are oldest first) whose time has come, or the oldest one."""
    return next((key for key in reversed(keys) if (_start(key) or 0) <= now), keys[0])


def schedule(keys: Sequence[OwnKey], now: float, lifetime_s: float) -> list[Scheduled]:
    """Every key with its state, oldest first. `lifetime_s`: of a token."""
    current = signs(keys, now).kid
    position = [key.kid for key in keys].index(current)
    found = []
    for number, key in enumerate(keys):
        successor = keys[number + 1] if number + 1 < len(keys) else None
        took_over = _start(successor) if successor else None
        until = None if took_over is None else took_over + lifetime_s + CLOCK_SKEW_S
        if number > position:
            state, until = State.NEXT, None
        elif number == position:
            state = State.CURRENT
        else:
            state = State.ACCEPTED if until is None or now < until else State.OUT
        found.append(Scheduled(key.kid, state, _start(key), until))
    return found


def _start(key: OwnKey) -> float | None:
    return None if key.active_from is None else key.active_from.timestamp()
