"""What is known of a caller's key beside its file."""

import datetime as dt
from typing import Literal, NamedTuple

from gateway.domain.callers import KeyPurpose

Source = Literal["jwks", "self", "file"]
"""Fetched from its URL, given by the caller itself, or a file's key that is out."""


class CallerKey(NamedTuple):
    """A row of caller_key."""

    caller: str
    use: KeyPurpose
    kid: str
    jwk: str | None
    """Public, in the canonical form of RFC 7638; None for a key of a file that is out."""
    source: Source
    added_at: dt.datetime
    retired: bool
