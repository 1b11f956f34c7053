"""Planted bug: who finds out later replaces the answer that is kept with a key."""

from collections.abc import Mapping
from typing import Any

from gateway.store import idempotency


async def keep(connection: Any, answers: Mapping[idempotency.KeyOf, bytes]) -> None:
    for (caller, key), answer in answers.items():
        await connection.execute(
            "UPDATE idempotency_key SET answer_sealed = $3 WHERE caller = $1 AND key = $2", caller, key, answer
        )


setattr(idempotency, "keep", keep)  # noqa: B010
