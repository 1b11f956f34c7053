"""Callers: the systems that call us, with their kinds, scopes and quota (design.md §1)."""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec


class CallerKind(StrEnum):
    MERCHANT = "merchant"
    BANK = "bank"
    TRANSIT = "transit"
    TALENT = "talent"
    KIOSK = "kiosk"
    BUREAU = "bureau"
    REGION = "region"


class Scope(StrEnum):
    """What a token may be used for (api.md, Getting in)."""

    CARDS_VERIFY = "cards:verify"
    CARDS_LOSS = "cards:loss"
    CARDS_ISSUE = "cards:issue"
    USAGE_WRITE = "usage:write"
    USAGE_READ = "usage:read"
    PAYMENTS_WRITE = "payments:write"
    POINTS_WRITE = "points:write"
    POINTS_READ = "points:read"
    TRANSIT_WRITE = "transit:write"
    TRANSIT_READ = "transit:read"
    TALENT_CHECK = "talent:check"
    INDICATORS_READ = "indicators:read"


class KeyPurpose(StrEnum):
    """What a caller's key is for."""

    TOKEN = "token"  # noqa: S105 - its client assertions
    SIGNING = "signing"  # its signatures under effects

    @property
    def other(self) -> "KeyPurpose":
        """What a key for this must not be for: each use has keys of its own (domain.md §5)."""
        return KeyPurpose.SIGNING if self is KeyPurpose.TOKEN else KeyPurpose.TOKEN


AnyScope = Literal["any"]
ANY_SCOPE: AnyScope = "any"
"""What every caller may do, whatever its token is for."""

CALLER_ID_PATTERN = r"^[a-z][a-z0-9-]{1,39}$"


_File = Annotated[str, msgspec.Meta(min_length=1, max_length=400)]
_Url = Annotated[str, msgspec.Meta(pattern=r"^https://[^\s]+$", max_length=400)]


class Caller(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One block of callers.toml."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=80)]
    kind: CallerKind
    scopes: tuple[Scope, ...]
    algorithm: Literal["EdDSA", "ES256"]
    """Of its client assertions (the keys that get tokens)."""
    keys_file: _File | None = None
    """A JWKS of public keys, at most two; a relative path starts at the data folder."""
    keys_url: _Url | None = None
    """Where the caller publishes that JWKS itself. One of keys_file and keys_url is needed."""
    signing_algorithm: Literal["ed25519", "ecdsa-p256-sha256", "sm2-sm3"] | None = None
    """Of its signatures under effects (RFC 9421); without it the caller cannot sign."""
    signing_keys_file: _File | None = None
    signing_keys_url: _Url | None = None
    signature: Literal["required", "optional"] = "required"
    """Whether an effect without a signature is refused. A signature that is there is always checked."""
    revoked_kids: tuple[str, ...] = ()
    """Keys that are out, wherever they came from, with the tokens they got."""
    quota_per_second: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    """Requests per second over all workers, bursts of one second; 0 is no quota."""
    enabled: bool = True

    def keys_url_of(self, purpose: KeyPurpose) -> str | None:
        return self.keys_url if purpose is KeyPurpose.TOKEN else self.signing_keys_url


def mistakes_of(caller: Caller | None) -> list[str]:
    """What is wrong between the fields of a block, each by its path; nothing of a block that is wrong in itself."""
    if caller is None:
        return []
    mistakes = []
    if caller.keys_file is None and caller.keys_url is None:
        mistakes.append("keys_file: missing (or keys_url)")
    elif caller.keys_file is not None and caller.keys_url is not None:
        mistakes.append("keys_url: not beside keys_file")
    signing = (caller.signing_keys_file is not None) + (caller.signing_keys_url is not None)
    if signing != (caller.signing_algorithm is not None):
        mistakes.append("signing_algorithm: goes with one of signing_keys_file and signing_keys_url")
    return mistakes
