"""Planted bug: what a bank did not answer is not told again."""

from gateway.flows.resolve_notices import ResolveNotices


async def batch(self: ResolveNotices) -> int:
    return 0


setattr(ResolveNotices, "batch", batch)  # noqa: B010
