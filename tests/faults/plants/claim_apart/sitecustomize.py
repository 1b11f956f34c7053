"""Planted bug: keys are claimed in a transaction of their own, before the work."""

from collections.abc import Sequence
from typing import Any

from gateway.flows.effects import Effect, Effects
from gateway.store import idempotency
from gateway.store.pool import Place

_real, _claim = Effects._transact, idempotency.claim
_claimed: dict[int, dict[idempotency.KeyOf, Place]] = {}


async def transact(self: Effects, connection: Any, batch: Sequence[Effect], *rest: Any) -> Any:
    keys, fingerprints = [effect.claim for effect in batch], [effect.fingerprint for effect in batch]
    _claimed[id(connection)] = await _claim(connection, keys, fingerprints)
    return await _real(self, connection, batch, *rest)


async def claim(connection: Any, keys: object, fingerprints: object) -> dict[idempotency.KeyOf, Place]:
    return _claimed[id(connection)]


setattr(Effects, "_transact", transact)  # noqa: B010
setattr(idempotency, "claim", claim)  # noqa: B010
