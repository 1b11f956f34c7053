"""Fields that several messages share, and what is said of one that does not fit."""

import datetime as dt
import re
from collections.abc import Collection
from typing import Annotated

import msgspec

from gateway.domain.cards import END
from gateway.domain.errors import FieldError

NO_CONTROLS = f"^[^\\x00-\\x1f\\x7f]*{END}"

TerminalId = Annotated[
    str,
    msgspec.Meta(min_length=1, max_length=32, pattern=NO_CONTROLS, description="The caller's name of the terminal"),
]
Time = Annotated[dt.datetime, msgspec.Meta(tz=True, description="RFC 3339 with an offset")]
"""The offset is below 24 hours (RFC 3339 §5.6), so at the calendar's ends the moment may have no year in UTC: judge how
far it is from now before anything else is made of it."""

_AT = re.compile(r" - at `([^`]*)`$", re.DOTALL)
_SAFE = re.compile(
    r"(Expected `[a-z0-9| ]+`(, got `[a-z0-9]+`| of length [<>=]+ \d+| with a timezone component"
    r"| [<>=]+ -?\d+| matching regex '.*')?|Object missing required field `[a-z_]+`|Invalid RFC3339 encoded datetime)",
    re.DOTALL,
)
_PATH = re.compile(r"\$(\.[a-z_]+)*")
_NAMES = re.compile(r"\.([a-z_]+)")


def field_error(error: msgspec.ValidationError, known: Collection[str]) -> FieldError:
    """The field and what is wrong with it. msgspec's texts are passed on only where they hold nothing that was sent.

    A path may hold a name that the sender made up: only those of `known` are repeated.
    """
    text = str(error)
    place = _AT.search(text)
    path = place.group(1) if place else "$"
    text = text[: place.start()] if place else text
    if not set(_NAMES.findall(path)) <= set(known) or not _PATH.fullmatch(path):
        path = "$"
    if text.startswith("Object missing required field `"):
        path, text = f"{path}.{text.split('`')[1]}", "is missing"
    elif text.startswith("Object contains unknown field"):
        text = "has a field that the contract does not know"
    elif text.startswith("Invalid value") or text.startswith("Invalid enum value"):
        text = "is not one of the allowed values"
    elif not _SAFE.fullmatch(text):
        text = "is not valid"
    return FieldError(path, text)
