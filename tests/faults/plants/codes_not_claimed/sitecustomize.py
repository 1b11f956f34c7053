"""A code that the platform has approved is not claimed."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from gateway.store import ecards, verify

verify._SQL_WITH_CODES = verify._SQL_WITH_CODES.replace("event_id NOT IN (SELECT event_id FROM claimed)", "false")


async def claim(_: Any, codes: Mapping[UUID, bytes]) -> set[UUID]:
    return set(codes)


setattr(ecards, "claim", claim)  # noqa: B010
