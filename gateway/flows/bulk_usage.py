"""Take up bulks of returned usage: one transaction each, in their turn, computed in a thread beside the requests."""

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from gateway.configuration import UsageReturn
from gateway.domain.errors import overloaded
from gateway.domain.usage import Reject
from gateway.flows.earn_points import EarnFigures
from gateway.flows.return_usage import ReturnUsage, Taken, in_transaction
from gateway.flows.usage_lines import Given, LineReader, ReadLines
from gateway.metrics import USAGE_LINES
from gateway.store.batch import Batcher
from gateway.store.pool import cut_off

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from gateway.store.pool import Connection


class Bulk(NamedTuple):
    """Lines of one request that fit the contract."""

    caller_id: str
    given: Sequence[Given]


class Receipt(NamedTuple):
    """What became of the lines of a request."""

    received: int
    created: int
    duplicate: int
    rejected: list[Reject]


class BulkUsage:
    """place() before the body is read, run() for its lines; serve() is the loop that writes them."""

    def __init__(
        self,
        connect: "Callable[[], Awaitable[Connection]]",
        reader: LineReader,
        return_usage: ReturnUsage,
        settings: UsageReturn,
    ) -> None:
        self._reader = reader
        self._return_usage = return_usage
        self._places = settings.bulks_max
        self._taken_by: Counter[str] = Counter()
        # one thread: a reader is not shared by two, and two would take the interpreter from the requests for longer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bulk-usage")
        self._batcher: Batcher[Bulk, Taken] = Batcher(
            connect,
            self._write,
            batch_max=1,
            queue_max=settings.bulks_max,
            deadline_s=settings.bulk_deadline_ms / 1000,
            on_batch=lambda _: None,
            # always: one computes its rows while another's are being written
            worth_a_second=1,
            quick_s=math.inf,
            not_known="it is not known whether this was written: send it again, ids that were are counted as duplicate",
        )
        self.serve = self._batcher.run

    @contextlib.contextmanager
    def place(self, caller_id: str) -> Iterator[None]:
        """A place for a bulk from its header on: its body takes memory. Raises Problem 503 if there is none."""
        if self._taken_by.total() >= self._places or self._taken_by[caller_id] >= max(self._places // 2, 1):
            raise overloaded("too many bulks at once")
        self._taken_by[caller_id] += 1
        try:
            yield
        finally:
            self._taken_by[caller_id] -= 1

    async def run(
        self, caller_id: str, split: Callable[[], Iterable[tuple[int, bytes]]], scenes: Container[str]
    ) -> Receipt:
        """Take up the lines that `split` finds. Raises Problem 503 (nothing was written), and what split raises."""
        read = await asyncio.get_running_loop().run_in_executor(self._thread, self._read, caller_id, split, scenes)
        rejected = read.rejected
        taken = await self._batcher.ask(Bulk(caller_id, read.given)) if read.given else _NOTHING
        rejected = sorted(rejected + taken.rejected)
        for result, count in Counter(reject.code.value for reject in rejected).items():
            USAGE_LINES.add(("bulk", result, caller_id), count)
        USAGE_LINES.add(("bulk", "created", caller_id), taken.created)
        USAGE_LINES.add(("bulk", "duplicate", caller_id), taken.duplicate)
        return Receipt(len(read.given) + len(read.rejected), taken.created, taken.duplicate, rejected)

    def _read(
        self, caller_id: str, split: Callable[[], Iterable[tuple[int, bytes]]], scenes: Container[str]
    ) -> ReadLines:
        return self._reader.read(caller_id, split(), scenes)

    async def _write(self, connection: "Connection", batch: Sequence[Bulk], timeout: float) -> Sequence[Taken]:
        (bulk,) = batch
        with cut_off(connection, timeout):
            taken = await in_transaction(
                connection, lambda: self._return_usage.take(connection, bulk.caller_id, bulk.given)
            )
        taken.points.tell()
        return [taken]

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


_NOTHING = Taken(0, 0, [], EarnFigures())
