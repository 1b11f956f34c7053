"""Every problem a caller can be told, by code (RFC 9457; `urn:yikatong:problem:<code>`)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class CannotStart(Exception):
    """Why a process does not start, in words for its operator."""


class PortRefused(CannotStart):
    """The system does not give us a port that we were told to listen on; `variable` is what sets another one."""

    def __init__(self, variable: str, host: str, port: int, error: OSError) -> None:
        super().__init__(f"{host}:{port}: {error.strerror}; set {variable} to another port")


class LoopFailed(Exception):
    """One of the loops that a process lives by has ended; the log has said which, and why."""


class FieldError(NamedTuple):
    field: str
    message: str


PROBLEMS: dict[str, tuple[int, str]] = {
    "malformed_json": (400, "The body is not JSON"),
    "malformed_request": (400, "The request is not well-formed HTTP"),
    "malformed_cursor": (400, "The cursor was not issued by this gateway"),
    "malformed_query": (400, "The query string is not well-formed"),
    "missing_idempotency_key": (400, "An operation with effects needs an Idempotency-Key"),
    "malformed_idempotency_key": (400, "The Idempotency-Key is not 1 to 255 visible ASCII characters"),
    "idempotency_key_refused": (400, "This operation takes no Idempotency-Key: the ids of its lines do that work"),
    "unauthorised": (401, "A valid access token is required"),
    "invalid_signature": (401, "A valid signature of the caller is required (RFC 9421)"),
    "insufficient_scope": (403, "The access token lacks the scope for this"),
    "not_found": (404, "No such resource"),
    "method_not_allowed": (405, "The resource does not support this method"),
    "receive_timeout": (408, "The request did not arrive in time"),
    "idempotency_key_in_use": (409, "A request with this Idempotency-Key is still running"),
    "too_many_keys": (409, "No further key can be added"),
    "key_exists": (409, "This key or its kid is, or was, already there"),
    "cursor_ahead": (
        409,
        "The cursor is ahead of this database: it was damaged, or the database restored",
    ),
    "order_id_used": (409, "This merchant_order_id was used before: an order is paid once"),
    "payment_pending": (409, "What became of the payment, or of its reversal, is not known yet; try again"),
    "payment_state": (409, "The payment is in a state that does not allow this"),
    "refund_too_large": (409, "The refunds would be more than the payment"),
    "visit_state": (409, "The visit is in a state that does not allow this, or its fee stands no longer"),
    "payment_too_small": (409, "The payment, less what was given back of it, is less than what is due"),
    "payment_used": (409, "Another visit was paid by this payment"),
    "redemption_state": (409, "The redemption is in a state that does not allow this"),
    "last_key": (409, "The last key in force cannot be retired"),
    "keys_by_url": (409, "These keys are published by the caller itself; change them there"),
    "body_too_large": (413, "The body is larger than allowed"),
    "unsupported_media_type": (415, "The body has a type or encoding that is not accepted"),
    "validation_failed": (422, "The request does not fit the contract"),
    "not_at_this_bank": (422, "The card's bank does not take this from this merchant or terminal, or not any more"),
    "idempotency_key_reused": (422, "This Idempotency-Key was used for another request"),
    "unknown_key": (422, "The caller has no such key in force"),
    "expectation_failed": (417, "The Expect header asks for something unsupported"),
    "quota_exceeded": (429, "The caller's quota is used up"),
    "internal": (500, "The gateway failed; the request id leads to the log"),
    "overloaded": (503, "The gateway is at its limit; try again"),
    "unavailable": (503, "A part the gateway needs is unavailable; try again"),
}


class Problem(Exception):
    """An answer that is not the wished one: a code of PROBLEMS, a detail, field errors; never a submitted value."""

    def __init__(
        self,
        code: str,
        detail: str = "",
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code)
        self.code = code
        self.status, self.title = PROBLEMS[code]
        self.detail = detail
        self.errors = errors
        self.headers = headers or {}


def invalid(field: str, message: str) -> Problem:
    """What is wrong with one field of a request that has the right form. `message` holds no value of it."""
    return Problem("validation_failed", errors=[FieldError(field, message)])


def overloaded(detail: str) -> Problem:
    return Problem("overloaded", detail)


def unavailable(detail: str) -> Problem:
    return Problem("unavailable", detail)
