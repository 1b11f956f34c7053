"""How an exchange with a partner fails, by phase. Raised by the transports, turned into outcomes by call.py alone."""

from enum import StrEnum


class NotSentError(Exception):
    """Not a byte of the request has left: no connection, no TLS, a link that is down."""


class UnknownError(Exception):
    """At least one byte may have left, and no answer that can be read came back."""


class Why(StrEnum):
    """Why a call was not sent, or is unknown without its adapter having said so."""

    CANNOT_BUILD = "cannot_build"
    NO_PARTNER = "no_partner"
    """There is none of this name, it is switched off, or it is not asked for this operation."""
    BREAKER_OPEN = "breaker_open"
    NO_PLACE = "no_place"
    NO_CONNECTION = "no_connection"
    LATE = "late"
    NO_ANSWER = "no_answer"
    """Reset, cut short, malformed or larger than allowed."""
    ADAPTER_FAILED = "adapter_failed"
    """parse() raised, which it must not."""
