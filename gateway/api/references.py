"""References in paths."""

from uuid import UUID

from gateway.domain.errors import Problem


def reference_of(text: str) -> UUID:
    """Our own form of a UUIDv7 alone. Raises Problem 404."""
    try:
        reference = UUID(text)
    except ValueError:
        raise Problem("not_found") from None
    if str(reference) != text or reference.version != 7:
        raise Problem("not_found")
    return reference
