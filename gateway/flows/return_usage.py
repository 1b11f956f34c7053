"""Take up usage that a caller returns: each id once for ever, each line by itself, within the caller's transaction.

Uses go first, then what takes uses back: within a bulk or a file their order does not matter.
"""

import asyncio
import contextlib
import datetime as dt
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from asyncpg.pgproto.pgproto import UUID

from gateway.domain.ids import uuid7
from gateway.domain.usage import Original, Reject, RejectCode, UsageResult, refusal_of_reversal
from gateway.flows.earn_points import EarnFigures, EarnPoints, Use
from gateway.flows.usage_lines import Given
from gateway.store import usage_return
from gateway.store.usage_return import Key, Known, NewEvent, Place, Rows, Used
from gateway.threads import breathing

if TYPE_CHECKING:
    from gateway.store.pool import Connection

T = TypeVar("T")

_TRIES = 3
_MEDIUM = {"2": "second_gen", "3": "third_gen"}
_LOOK_MAX = 2000
"""Lines of one look: what comes back is taken apart on the event loop, 1 µs a line."""


class Taken(NamedTuple):
    """What became of some lines: each is counted, or in `rejected`."""

    created: int
    duplicate: int
    rejected: list[Reject]
    points: EarnFigures
    """To be told when the transaction is committed."""


async def in_transaction(connection: "Connection", work: Callable[[], Awaitable[T]]) -> T:
    """What `work` gives, committed. Tried again, from its beginning, when it met another transaction at the same ids.

    Raises asyncpg.PostgresError.
    """
    for _ in range(_TRIES - 1):
        with contextlib.suppress(*usage_return.COLLIDED):
            async with connection.transaction():
                return await work()
    async with connection.transaction():
        return await work()


_Pair = tuple[Given, Known]


class _Prepared(NamedTuple):
    """What is written of some lines, and what is left of them."""

    events: list[NewEvent]
    rows: Rows
    repeated: list[_Pair]
    """Their ids were used before."""
    rejected: list[Reject]
    reversals: list[tuple[str, str]]
    """(use, reversal), both events."""
    earning: list[Use]


class ReturnUsage:
    """take() for the lines of a bulk, or a chunk of a file."""

    def __init__(self, earn_points: EarnPoints) -> None:
        self._earn_points = earn_points

    async def take(self, connection: "Connection", caller_id: str, given: Sequence[Given]) -> Taken:
        """Record the lines, in the open transaction of the connection.

        Raises one of store.usage_return.COLLIDED: then the whole transaction is to be tried again.
        """
        uses = [each for each in given if each.line.reversal_of is None]
        reversals = [each for each in given if each.line.reversal_of is not None]
        steps: list[_Prepared] = []
        if uses:
            steps.append(await self._take_uses(connection, caller_id, uses))
        if reversals:
            steps.append(await self._take_reversals(connection, caller_id, reversals, len(uses)))
        rejected = [each for step in steps for each in step.rejected]
        repeated = [pair for step in steps for pair in step.repeated]
        conflicts = await self._conflicts(connection, caller_id, repeated)
        # last: it locks the accounts that the whole county shares
        earned = await self._earn_points.earn(connection, [use for step in steps for use in step.earning])
        created = sum(len(step.events) for step in steps)
        return Taken(created, len(repeated) - len(conflicts), rejected + conflicts, earned)

    async def _take_uses(self, connection: "Connection", caller_id: str, given: Sequence[Given]) -> _Prepared:
        place, pairs = await _look(connection, caller_id, given)
        prepared = await asyncio.to_thread(_prepare, caller_id, place, pairs, 0)
        await usage_return.record(connection, prepared.rows)
        return prepared

    async def _take_reversals(
        self, connection: "Connection", caller_id: str, given: Sequence[Given], first: int
    ) -> _Prepared:
        place, pairs = await _look(connection, caller_id, given)
        named = list({each.line.reversal_of or "" for each in given})
        originals = await usage_return.originals(connection, caller_id, named)
        prepared = await asyncio.to_thread(_prepare, caller_id, place, pairs, first, originals)
        await usage_return.record(connection, prepared.rows)
        await usage_return.record_reversals(connection, prepared.reversals)
        return prepared

    async def _conflicts(self, connection: "Connection", caller_id: str, repeated: Sequence[_Pair]) -> list[Reject]:
        """Those whose id was used for something else."""
        if not repeated:
            return []
        used = await usage_return.used(connection, caller_id, list({given.line.id for given, _ in repeated}))
        return [
            Reject(given.number, given.line.id, RejectCode.CONFLICT)
            for given, known in repeated
            if used.get(given.line.id) != _used_for(given, known)
        ]


async def _look(connection: "Connection", caller_id: str, given: Sequence[Given]) -> tuple[Place, list[_Pair]]:
    pairs: list[_Pair] = []
    for start in range(0, len(given), _LOOK_MAX):
        some = given[start : start + _LOOK_MAX]
        keys = [Key(each.line.id, each.chip_index, each.card_id) for each in some]
        place, known = await usage_return.look(connection, caller_id, keys)
        pairs += zip(some, known, strict=True)
    return place, pairs


def _prepare(
    caller_id: str,
    place: Place,
    pairs: Sequence[_Pair],
    first: int,
    originals: dict[str, tuple[str, Original]] | None = None,
) -> _Prepared:
    """Decide over lines in their order, which in the feed begins with `first`.

    `originals` of those that take uses back; None: they are uses.
    """
    events: list[NewEvent] = []
    repeated: list[_Pair] = []
    rejected: list[Reject] = []
    reversals: list[tuple[str, str]] = []
    earning: list[Use] = []
    ids: set[str] = set()
    unix_ms, chance = int(place.recorded_at.timestamp() * 1000), os.urandom(8 * len(pairs))
    for number, (given, known) in enumerate(breathing(pairs)):
        line = given.line
        if known.id_is_used or line.id in ids:
            repeated.append((given, known))
            continue
        event_id = _event_id(unix_ms, first + number, chance[8 * number : 8 * number + 8])
        refusal = RejectCode.UNRECOGNISED if not known.card_id else None
        original_id = None
        if refusal is None and originals is not None and line.reversal_of is not None:
            original_id, original = originals.get(line.reversal_of, (None, None))
            refusal = refusal_of_reversal(line, known.card_id, original)
            if refusal is None and original_id is not None and original is not None:
                originals[line.reversal_of] = original_id, original._replace(is_reversed=True)
                reversals.append((original_id, event_id))
        if refusal is not None:
            rejected.append(Reject(given.number, line.id, refusal))
            continue
        ids.add(line.id)
        events.append(_event(event_id, given, known))
        if line.result is UsageResult.SUCCESS:
            earning.append(_earning(event_id, given, known, original_id))
    return _Prepared(events, usage_return.rows_of(caller_id, place, events), repeated, rejected, reversals, earning)


def _event(event_id: str, given: Given, known: Known) -> NewEvent:
    line = given.line
    moment = line.occurred_at.astimezone(dt.UTC)  # RFC 3339 has offsets up to 23:59, PostgreSQL's end at 15:59
    return NewEvent(
        event_id, moment.isoformat(), known.card_id, _MEDIUM[known.generation], known.region, line.scene,
        line.terminal_id, line.amount_fen, line.discount_fen, line.result, line.reversal_of, line.id,
    )  # fmt: skip


def _earning(event_id: str, given: Given, known: Known, original_id: str | None) -> Use:
    line = given.line
    reverses = None if original_id is None else UUID(original_id)
    card_id, person_id = UUID(known.card_id), UUID(known.person_id)
    return Use(UUID(event_id), card_id, person_id, line.scene, line.amount_fen or 0, line.occurred_at, reverses)


def _event_id(unix_ms: int, number: int, chance: bytes) -> str:
    """A UUIDv7 whose first random bits count: the feed shows the lines of one transaction in their order."""
    random = int.from_bytes(chance, "big") >> 4
    return uuid7(unix_ms, ((number >> 2 & 0xFFF) << 68 | (number & 3) << 60 | random).to_bytes(10, "big")).hex()


def _used_for(given: Given, known: Known) -> Used:
    line = given.line
    return Used(
        known.card_id, line.scene, line.terminal_id, line.occurred_at, line.amount_fen, line.discount_fen, line.result,
        line.reversal_of,
    )  # fmt: skip
