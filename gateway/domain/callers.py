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


CALLER_ID_PATTERN = r"^[a-z][a-z0-9-]{1,39}$"


class Caller(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One block of callers.toml."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=80)]
    kind: CallerKind
    scopes: tuple[Scope, ...]
    algorithm: Literal["EdDSA", "ES256"]
    keys_file: Annotated[str, msgspec.Meta(min_length=1, max_length=400)]
    """A JWKS of public keys, at most two; a relative path starts at the data folder."""
    quota_per_second: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    """Requests per second over all workers, bursts of one second; 0 is no quota."""
    enabled: bool = True
