"""What usage monitoring remembers: recent uses by subject, and how busy merchants were. Bounded, and the same after the
same events in the same order, so that a reader may stop and go on anywhere.

Remembered by when a use was recorded, looked at by when it occurred: a file of yesterday's uses is judged by
yesterday's clock, among itself.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

MINUTE_US = 60_000_000
_DAY_MINUTES = 1440
_LAST = b"\xff" * 17
OF_ONE_MAX = 500
"""Uses of one subject that are remembered, its last: every use looks at all that are near it, and a terminal that is
hammered must not take the time of the others."""
_EVENTS_KEPT = 20

Entry = tuple[int, bytes, bytes]
"""occurred_us, event_id, a mark: what a rule needs of a use."""
Remembered = tuple[int, str, Entry]
"""recorded_us, subject, entry."""


class UseWindows:
    """The last uses of each subject (a card, a terminal), in the order in which they occurred."""

    def __init__(self, keep_us: int, entries_max: int, remembered: Sequence[Remembered] = ()) -> None:
        self._keep_us = keep_us
        self._entries_max = entries_max
        self._order: deque[Remembered] = deque()
        self._of: dict[str, list[Entry]] = {}
        self._recorded: dict[str, list[Entry]] = {}
        """Those of `_of` (and those taken out since) in the order in which they were recorded."""
        for recorded_us, subject, entry in remembered:
            self.add(subject, recorded_us, entry)

    def add(self, subject: str, recorded_us: int, entry: Entry) -> list[Entry]:
        """The subject's entries, this one among them; what is too old or too much is forgotten first."""
        while self._order and (
            self._order[0][0] < recorded_us - self._keep_us or len(self._order) >= self._entries_max
        ):
            _, oldest, gone = self._order.popleft()
            if self._recorded.get(oldest, [None])[0] == gone:
                self._forget_first(oldest)
        entries, recorded = self._of.setdefault(subject, []), self._recorded.setdefault(subject, [])
        insort(entries, entry)
        recorded.append(entry)
        self._order.append((recorded_us, subject, entry))
        if len(recorded) > OF_ONE_MAX:
            self._forget_first(subject)
        return entries

    def take_out(self, subject: str, mark: bytes) -> list[Entry] | None:
        """The subject's entries without the one of a mark; None: there was none."""
        for entry in self._of.get(subject, ()):
            if entry[2] == mark:
                self._remove(subject, entry)
                return self._of.get(subject, [])
        return None

    def remembered(self) -> list[Remembered]:
        return [each for each in self._order if self._holds(each[1], each[2])]

    def _holds(self, subject: str, entry: Entry) -> bool:
        entries = self._of.get(subject, [])
        place = bisect_left(entries, entry)
        return place < len(entries) and entries[place] == entry

    def _forget_first(self, subject: str) -> None:
        recorded = self._recorded[subject]
        self._remove(subject, recorded.pop(0))
        if not recorded:
            del self._recorded[subject]

    def _remove(self, subject: str, entry: Entry) -> None:
        if not self._holds(subject, entry):  # it was taken out
            return
        entries = self._of[subject]
        del entries[bisect_left(entries, entry)]
        if not entries:
            del self._of[subject]


def fullest(
    entries: list[Entry], entry: Entry, window_us: int, weight: Callable[[list[Entry]], int]
) -> tuple[int, list[Entry]]:
    """(weight, entries) of the window around an entry that weighs most: the one that ends at it, and for a use that
    came late also those that begin at it or are centred on it."""
    ends = [entry[0]] if entry == entries[-1] else [entry[0], entry[0] + window_us - 1, entry[0] + window_us // 2]
    best: tuple[int, list[Entry]] = (-1, [])
    for end_us in ends:
        some = entries[bisect_left(entries, (end_us - window_us + 1,)) : bisect_right(entries, (end_us, _LAST))]
        if (weighs := weight(some)) > best[0]:
            best = weighs, some
    return best


class Merchant(msgspec.Struct):
    """How busy one was, by slot of time."""

    since: int
    slots: dict[int, int]
    last_events: list[tuple[int, bytes]] = []


class Volumes(msgspec.Struct):
    """Of all merchants; there are as many as are configured."""

    slot_minutes: int
    merchants: dict[str, Merchant] = {}

    def add(self, name: str, occurred_us: int, event_id: bytes, days: int) -> tuple[int, Merchant]:
        """(slot, the merchant with this use counted)."""
        slot = occurred_us // (self.slot_minutes * MINUTE_US)
        merchant = self.merchants.get(name)
        if merchant is None:
            merchant = self.merchants[name] = Merchant(slot, {})
        merchant.slots[slot] = merchant.slots.get(slot, 0) + 1
        merchant.last_events = [*merchant.last_events[1 - _EVENTS_KEPT :], (slot, event_id)]
        while len(merchant.slots) > (days + 1) * (_DAY_MINUTES // self.slot_minutes):
            del merchant.slots[min(merchant.slots)]
        return slot, merchant

    def expected(self, merchant: Merchant, slot: int, hours: int, days: int) -> float | None:
        """The mean of this time (the slot and those beside it) on the last days; more by as much as the last hours were
        busier than usual. None: too soon to say."""
        per_day = _DAY_MINUTES // self.slot_minutes
        counts = merchant.slots
        earlier = [day * per_day for day in range(1, days + 1) if slot - day * per_day >= merchant.since]
        if not earlier:
            return None

        def usual(of_slot: int) -> float:
            near = [counts.get(of_slot + beside - ago, 0) for beside in (-1, 0, 1) for ago in earlier]
            return sum(near) / len(near)

        last = range(slot - max(1, hours * 60 // self.slot_minutes), slot)
        busy, usually_busy = sum(counts.get(each, 0) for each in last), sum(map(usual, last))
        return usual(slot) * max(1.0, (busy + 1) / (usually_busy + 1))
