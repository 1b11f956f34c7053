"""What is known of a caller's key beside its file."""

import datetime as dt
import re
from typing import Any, Literal, NamedTuple

from gateway.domain.callers import KeyPurpose

Source = Literal["jwks", "self", "file"]
"""Fetched from its URL, given by the caller itself, or a file's key that is out."""

SIGNING_KID = r"[!#-\[\]-~]{1,100}"
"""What a signature can say as its `keyid` (api/signatures.py): visible ASCII without `"` and `\\`, which would have
to be escaped there. A key with another kid could never sign."""
_WHAT_FITS = {
    KeyPurpose.SIGNING: '1 to 100 visible ASCII characters without " and \\',
    KeyPurpose.TOKEN: "1 to 100 printable characters",
}
_signing_kid = re.compile(SIGNING_KID).fullmatch


def unfit_kid(kid: Any, use: KeyPurpose) -> str | None:
    """What the kid of a key for this use has to be instead, whichever way it comes; None if it fits.

    That of a token key stands in the header of a JWT, where any text is right. Printable: it is asked of the database,
    and logged.
    """
    if use is KeyPurpose.SIGNING:
        fits = isinstance(kid, str) and _signing_kid(kid) is not None
    else:
        fits = isinstance(kid, str) and 1 <= len(kid) <= 100 and kid.isprintable()
    return None if fits else _WHAT_FITS[use]


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
