"""What a partner call came to (design.md §1). Named by phase: not sent, maybe done, declined, done."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from gateway.domain.masking import Secret


class DeclineCode(StrEnum):
    """Why a partner said no, in one vocabulary for all dialects."""

    DO_NOT_HONOUR = "do_not_honour"
    INVALID_CARD = "invalid_card"
    LOST_CARD = "lost_card"
    EXPIRED_CARD = "expired_card"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    LIMIT_EXCEEDED = "limit_exceeded"
    WRONG_PIN = "wrong_pin"
    PIN_TRIES_EXCEEDED = "pin_tries_exceeded"
    NOT_FOUND = "not_found"
    DUPLICATE = "duplicate"
    NAME_MISMATCH = "name_mismatch"
    CODE_EXPIRED = "code_expired"
    CODE_REPLAYED = "code_replayed"
    CODE_INVALID = "code_invalid"
    NOT_ALLOWED = "not_allowed"
    PARTNER_FAILURE = "partner_failure"
    """It says that it failed, and that nothing was done."""


class Approved(msgspec.Struct, frozen=True):
    """Done. `facts` are the operation's own results (balance_fen, partner_reference …), personal ones as Secret."""

    partner_reference: str = ""
    facts: Mapping[str, "int | str | Secret[str] | list[Any]"] = {}


class Declined(msgspec.Struct, frozen=True):
    """Not done, and it never will be."""

    code: DeclineCode


class Pending(msgspec.Struct, frozen=True):
    """The partner answered, and nothing is decided yet: ask again."""


class NotSent(msgspec.Struct, frozen=True):
    """Not a byte reached the partner (refused, no connection, breaker open, no place): may be tried again."""

    why: str


class Unknown(msgspec.Struct, frozen=True):
    """Anything after the first byte that is not a clear answer: may have been done. Never guessed."""

    why: str


Outcome = Approved | Declined | Pending | NotSent | Unknown
