"""Do something once for a caller's key, with its proof: the one way of every operation with effects.

Effects that arrive while the last batch is being committed wait together and become one transaction: the keys are
claimed (its first insert), each kind does its work for all of its effects, the operations are recorded with what proves
that they were asked for, and the answers are kept with the keys, sealed. Only what took effect is kept: an effect that
ends in a problem gives its key back.

An effect whose answer is not known at this commit (a bank has to be asked) ends it as Begun: intent, operation and
claim are kept, the key has no answer yet, and a repetition is told 409. Its kind's finish() then runs outside any
transaction and owes the key its answer; if this process dies, somebody else does.
"""

import asyncio
import datetime as dt
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable
from uuid import UUID

import asyncpg
import structlog
from asyncpg.pgproto import pgproto

from gateway.crypto.blind_index import BlindIndex
from gateway.crypto.digests import kept_digest
from gateway.crypto.key_store import KeyStoreError
from gateway.crypto.randomness import RandomBytes
from gateway.crypto.sealing import SealError, UnknownDataKey
from gateway.domain.errors import Problem, unavailable
from gateway.domain.ids import uuid7
from gateway.flows.data_keys import DataKeys
from gateway.flows.kept_answers import Answer as Answer
from gateway.flows.kept_answers import KeptAnswers
from gateway.log import describe
from gateway.metrics import EFFECTS
from gateway.store import idempotency, operations
from gateway.store.batch import Batcher, BatchFigures
from gateway.store.operations import Operation
from gateway.store.pool import GONE, Place, cut_off

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection, Connection

log = structlog.get_logger()

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
PROOF_COLUMN = b"operation.proof_sealed"
_AGAIN_MS = 10
"""How long an effect may wait for a lock when its batch has waited already: all of them within the deadline."""


def is_key(text: str) -> bool:
    """1 to 255 visible ASCII characters."""
    return _KEY.fullmatch(text) is not None


class Evidence(NamedTuple):
    """A checked signature under a request."""

    key_id: str
    algorithm: str
    created: int
    """Seconds since 1970."""
    base: bytes
    signature: bytes
    jwk: str
    body: bytes | None
    """None: it names what is not to be kept. `base` covers its digest."""


class Asked(NamedTuple):
    """What one effect is to do. `what` is its kind's own."""

    caller_id: str
    reference: UUID
    what: Any
    key: str = ""


class Done(NamedTuple):
    """What one effect did; `operation` is what is recorded of it, None if it keeps its record itself."""

    answer: Answer
    operation: Operation | None = None


class Begun(NamedTuple):
    """An intent is recorded; `what` is its kind's own, for finish()."""

    operation: Operation
    what: Any


class Kind(Protocol):
    """A kind of effect: its work for a batch, inside the transaction; a Problem is that of one effect alone."""

    @property
    def name(self) -> str: ...

    async def perform(
        self, connection: "AnyConnection", batch: Sequence[Asked]
    ) -> Sequence[Done | Problem] | Sequence[Done | Begun | Problem]: ...


@runtime_checkable
class TwoStep(Protocol):
    """A kind whose perform() may give Begun, and sees to it that not too many wait for any one partner."""

    async def finish(self, what: Any) -> Answer:
        """Outside any transaction. The answer is kept with the key. Raises Problem."""
        ...


class Unfit:
    """Kind of effect of a request that does not fit today's configuration; `what` is the Problem.

    It is told when the key was claimed: a repetition of a request that did fit has its answer, whatever changed since.
    """

    name = "unfit"

    async def perform(self, connection: "AnyConnection", batch: Sequence[Asked]) -> Sequence[Done | Problem]:
        return [asked.what for asked in batch]


class Effect(NamedTuple):
    """One request on its way."""

    kind: Kind
    asked: Asked
    claim: idempotency.KeyOf
    fingerprint: bytes
    evidence: Evidence | None


class Ended(NamedTuple):
    answer: Answer
    replayed: bool


class _KeyInUse(Exception):
    """Another process is at one of the keys of a batch."""


class Effects:
    """run() for one effect; serve() is the loop that carries them out."""

    def __init__(
        self,
        connect: "Callable[[], Awaitable[Connection]]",
        data_keys: DataKeys,
        index: BlindIndex,
        *,
        batch_max: int,
        queue_max: int,
        deadline_s: float,
        on_batch: Callable[[BatchFigures], None],
    ) -> None:
        self._data_keys = data_keys
        self._kept = KeptAnswers(data_keys)
        self._index = index
        self._random = RandomBytes(10)
        self._running: set[idempotency.KeyOf] = set()
        self._finishing: set[asyncio.Task[Answer]] = set()
        self._batcher: Batcher[Effect, Ended | Begun | Problem] = Batcher(
            connect,
            self._execute,
            batch_max=batch_max,
            queue_max=queue_max,
            deadline_s=deadline_s,
            on_batch=on_batch,
            worth_a_second=batch_max,  # six statements each: fewer and fuller transactions cost less for an effect
            not_known="it is not known whether this was done: ask again with the same Idempotency-Key",
        )
        self.serve = self._batcher.run

    def __len__(self) -> int:
        return len(self._batcher)

    async def run(
        self, kind: Kind, caller_id: str, key: str, request: bytes, what: Any, evidence: Evidence | None = None
    ) -> Ended:
        """The effect's answer, or that of its first use. `request` is all that makes two requests the same.

        Raises Problem 409 while the first use still runs, 422 for another request with the key, 503, and what the
        kind raises for this effect.
        """
        claim = (caller_id, key)
        if claim in self._running:
            raise Problem("idempotency_key_in_use", headers={"Retry-After": "1"})
        reference = pgproto.UUID(uuid7(time.time_ns() // 1_000_000, self._random.take()))
        effect = Effect(kind, Asked(caller_id, reference, what, key), claim, self._index.request(request), evidence)
        self._running.add(claim)
        try:
            # a caller that hangs up does not take its effect back: it is in the queue
            ended = await self._batcher.ask(effect)
            if isinstance(ended, Begun):
                ended = await self._finish(kind, ended)
        finally:
            self._running.discard(claim)
        if isinstance(ended, Problem):
            EFFECTS.add((kind.name, ended.code, caller_id))
            raise ended
        EFFECTS.add((kind.name, "replayed" if ended.replayed else "done", caller_id))
        return ended

    async def _finish(self, kind: Kind, begun: Begun) -> Ended | Problem:
        assert isinstance(kind, TwoStep), "a kind that begins can finish"
        task = asyncio.create_task(kind.finish(begun.what))
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        try:
            return Ended(await asyncio.shield(task), False)  # a caller that hangs up does not stop it
        except Problem as problem:
            return problem

    async def close(self) -> None:
        """Give up what is being finished: it is recorded, and taken up by the worker's loop."""
        for task in list(self._finishing):
            task.cancel()
        await asyncio.gather(*self._finishing, return_exceptions=True)

    async def _execute(
        self, connection: "Connection", batch: Sequence[Effect], timeout: float
    ) -> Sequence[Ended | Begun | Problem]:
        with cut_off(connection, timeout):
            try:
                keys = await self._data_keys.current(connection, ("answers", "operations"))
            except (KeyStoreError, SealError) as error:  # made by another machine under a KEK that is not here yet
                log.error("effects have no data key", error=str(error))
                return [unavailable("a key is missing") for _ in batch]
            ended: dict[idempotency.KeyOf, Ended | Begun | Problem] = {}
            # one kind a transaction: each locks in an order of its own, and two orders in one could cross
            for _, group in groupby(sorted(batch, key=_kind_of), key=_kind_of):
                effects = list(group)
                for effect, end in zip(effects, await self._attempt(connection, effects, keys), strict=True):
                    ended[effect.claim] = end
            return [ended[effect.claim] for effect in batch]

    async def _attempt(
        self, connection: "Connection", batch: Sequence[Effect], data_keys: dict[str, int], waited: bool = False
    ) -> Sequence[Ended | Begun | Problem]:
        try:
            return await self._transact(connection, batch, data_keys, waited)
        except Exception as error:
            if len(batch) == 1:
                return [_failure(error, batch[0])]
            if isinstance(error, GONE) and not isinstance(error, asyncpg.PostgresError):
                raise
            waited = waited or isinstance(error, (_KeyInUse, asyncpg.LockNotAvailableError))
        # one of them fails, or has to wait for another process: each by itself, so that it is the only one
        ended: list[Ended | Begun | Problem] = []
        for effect in batch:
            try:
                ended += await self._attempt(connection, [effect], data_keys, waited)
            except asyncpg.PostgresError as error:
                log.error("effect failed", kind=effect.kind.name, sqlstate=error.sqlstate)
                ended.append(unavailable("the effect could not be written"))
        return ended

    async def _transact(
        self, connection: "Connection", batch: Sequence[Effect], data_keys: dict[str, int], waited: bool = False
    ) -> list[Ended | Begun | Problem]:
        """One transaction for effects of one kind. `waited`: for locks, as a batch; now each hardly waits again."""
        effects = {effect.claim: effect for effect in batch}
        assert len(effects) == len(batch), "run() lets one use of a key in at a time"
        ended: dict[idempotency.KeyOf, Ended | Begun | Problem] = {}
        async with connection.transaction():
            if waited:
                await connection.execute(f"SET LOCAL lock_timeout = {_AGAIN_MS}")
            fingerprints = [effect.fingerprint for effect in effects.values()]
            try:
                claimed = await idempotency.claim(connection, list(effects), fingerprints)
            except asyncpg.LockNotAvailableError as error:
                raise _KeyInUse from error
            fresh = [effect for key, effect in effects.items() if key in claimed]
            done: dict[idempotency.KeyOf, Done | Begun | Problem] = {}
            if fresh:
                results = await fresh[0].kind.perform(connection, [effect.asked for effect in fresh])
                done = {effect.claim: each for effect, each in zip(fresh, results, strict=True)}
            ended |= {key: Ended(each.answer, False) if isinstance(each, Done) else each for key, each in done.items()}
            await self._keep(connection, effects, claimed, done, data_keys)
        if replays := [key for key in effects if key not in claimed]:
            found = await idempotency.stored(connection, replays)
            for key in replays:
                ended[key] = await self._replay(key, effects[key], found.get(key))
        return [ended[key] for key in effects]

    async def _keep(
        self,
        connection: "Connection",
        effects: dict[idempotency.KeyOf, Effect],
        claimed: dict[idempotency.KeyOf, Place],
        done: dict[idempotency.KeyOf, Done | Begun | Problem],
        data_keys: dict[str, int],
    ) -> None:
        """Operations with their proof, and the answers; the keys of what did not take effect are given back."""
        recorded = [
            self._proved(data_keys["operations"], each.operation, effects[key])
            for key, each in done.items()
            if not isinstance(each, Problem) and each.operation is not None
        ]
        answers = {
            claimed[key]: self._kept.seal(data_keys["answers"], key, each.answer)
            for key, each in done.items()
            if isinstance(each, Done)
        }
        if recorded or answers:
            await operations.record(connection, recorded, answers)
        if unused := [key for key, each in done.items() if isinstance(each, Problem)]:
            await idempotency.give_back(connection, unused)

    async def _replay(
        self, key: idempotency.KeyOf, effect: Effect, stored: idempotency.Stored | None
    ) -> Ended | Problem:
        if stored is None:  # swept since: seven days are over
            return Problem("idempotency_key_in_use", headers={"Retry-After": "1"})
        if stored.fingerprint != effect.fingerprint:
            return Problem("idempotency_key_reused")
        if stored.answer_sealed is None:  # begun, and not finished: its outcome is being found out
            return Problem("idempotency_key_in_use", headers={"Retry-After": "2"})
        try:
            return Ended(await self._kept.open(key, stored.answer_sealed), True)
        except Problem as problem:
            return problem
        except (KeyStoreError, SealError, UnknownDataKey) as error:  # that of this key alone: its mates are committed
            log.error("kept answer not opened", kind=effect.kind.name, error=type(error).__name__)
            return Problem("internal")

    def _proved(self, data_key_id: int, operation: Operation, effect: Effect) -> Operation:
        if (evidence := effect.evidence) is None:
            return operation
        body = b"" if evidence.body is None else b"\0" + evidence.body
        return operation._replace(
            key_id=evidence.key_id,
            algorithm=evidence.algorithm,
            signed_at=dt.datetime.fromtimestamp(evidence.created, dt.UTC),
            base_digest=kept_digest(evidence.base),
            signature=evidence.signature,
            public_jwk=evidence.jwk,
            proof_sealed=self._data_keys.sealer.seal(
                data_key_id,
                PROOF_COLUMN,
                operation.reference.bytes,
                facts_digest(operation) + evidence.base + body,
            ),
        )


def facts_digest(operation: Operation) -> bytes:
    """Of what an operation says was done, sealed with its proof: a row that was changed since does not match."""
    facts = (
        operation.kind, operation.caller, operation.card_id, operation.parent, operation.result, operation.reason,
        operation.card_status_before, operation.card_status_after,
    )  # fmt: skip
    return kept_digest("\x1f".join("" if fact is None else str(fact) for fact in facts).encode())


def _failure(error: Exception, effect: Effect) -> Problem:
    """What went wrong with one effect alone. Raises what is wrong with the database."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, _KeyInUse):
        return Problem("idempotency_key_in_use", headers={"Retry-After": "1"})
    if isinstance(error, asyncpg.LockNotAvailableError):
        return unavailable("another operation is at it")
    if isinstance(error, (asyncpg.PostgresError, *GONE)):
        raise error
    # a mistake of ours, perhaps called forth by what this effect asks for: it must not end the loop for all others
    log.error("effect failed", kind=effect.kind.name, exception=describe(type(error), error.__traceback__))
    return Problem("internal")


def _kind_of(effect: Effect) -> str:
    return effect.kind.name
