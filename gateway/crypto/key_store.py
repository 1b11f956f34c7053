"""The seam for the gateway's own keys: what a store does with them, so that a hardware module can be one.

The first store is strict files (key_files.py). Making keys and noticing new ones is not part of the seam: files are
made by key_files.py and watched by key_watch.py; a module would bring its own ways, and be opened where they are.
"""

import datetime as dt
from collections.abc import Sequence
from enum import StrEnum
from typing import Literal, NamedTuple, Protocol

from gateway.crypto.signatures import Signer, VerifyKey
from gateway.domain.errors import CannotStart
from gateway.domain.masking import Secret


class KeyUse(StrEnum):
    KEK = "kek"  # wraps data keys
    INDEX = "index"  # blind index
    PSEUDONYM = "pseudonym"  # card_ref
    SIGN = "sign"  # access tokens
    CARD_PROOF = "card-proof"  # master key of the cards' authentication application


WorkingUse = Literal[KeyUse.INDEX, KeyUse.PSEUDONYM, KeyUse.CARD_PROOF]


class OwnKey(NamedTuple):
    """A key of ours as others may see it."""

    kid: str
    active_from: dt.datetime | None = None
    """When a key made by a rotation takes over (aware); None: it was there from the start."""


class Wrapped(NamedTuple):
    """A secret under a KEK. How a KEK wraps is the store's, for that KEK's life."""

    kek_id: str
    wrapped: bytes


class KeyStoreError(CannotStart):
    """A key is missing, malformed or readable by others; the text names it, or its file."""


class KeyStore(Protocol):
    """Our own keys: those that sign and those that wrap never leave it. The event loop waits for its calls."""

    def keys(self, use: KeyUse) -> Sequence[OwnKey]:
        """Every key of a use, oldest first: at least one. The newest makes new things, all of them open old ones."""

    def signer(self, kid: str) -> Signer:
        """Of a SIGN key, with an algorithm of JOSE. Raises KeyStoreError."""

    def public_key(self, kid: str) -> VerifyKey:
        """What the signatures of signer() are checked with. Raises KeyStoreError."""

    def wrap(self, secret: bytes) -> Wrapped:
        """A data key under the newest KEK."""

    def unwrap(self, kek_id: str, wrapped: bytes) -> bytes:
        """The data key. Raises KeyStoreError for a KEK that the store lacks, DoesNotOpen for one that is another."""

    def working_keys(self, use: WorkingUse) -> Sequence[Secret[bytes]]:
        """The secrets of a use that is on the path of every verify, oldest first: the store releases them.

        They work in the process's memory; a module would keep them wrapped and release them at the start.
        """
