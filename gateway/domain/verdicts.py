"""Verdicts and their reasons: the gateway's answer to a presentation (contract: api.md, Verify).

The reason decides the verdict, so only the reason is stored with a usage event.
"""

from enum import StrEnum


class Verdict(StrEnum):
    VALID = "valid"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class Reason(StrEnum):
    OK = "ok"
    UNRECOGNISED = "unrecognised"
    NOT_ACTIVATED = "not_activated"
    LOCKED = "locked"
    LOST_TEMPORARY = "lost_temporary"
    LOST_FORMAL = "lost_formal"
    VOID = "void"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    PROOF_FAILED = "proof_failed"
    CODE_EXPIRED = "code_expired"
    CODE_REPLAYED = "code_replayed"
    CODE_INVALID = "code_invalid"
    SCENE_NOT_ALLOWED = "scene_not_allowed"
    STATUS_STALE = "status_stale"
    PLATFORM_UNAVAILABLE = "platform_unavailable"


_UNKNOWN = frozenset({Reason.STATUS_STALE, Reason.PLATFORM_UNAVAILABLE})

VERDICT_OF: dict[str, Verdict] = {
    reason: Verdict.VALID if reason is Reason.OK else Verdict.UNKNOWN if reason in _UNKNOWN else Verdict.REFUSED
    for reason in Reason
}
