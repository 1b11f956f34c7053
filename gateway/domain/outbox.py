"""The outward feed (domain.md §8): usage events are brought to subscribers, at least once, in order per card.

An event has twelve tries over 72 hours (reliability.md §1). What could not leave at all was no try: it waits. Nor
is it one while the subscriber takes nothing as new whatever it is sent.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar
from uuid import UUID

import msgspec

from gateway.domain.outcome import Approved, Outcome
from gateway.domain.usage import UsageEvent

T = TypeVar("T")

TRIES_MAX = 12
_SPAN = dt.timedelta(hours=72)
_FIRST_GAPS_S = (10, 30, 120, 600, 1800, 3600, 14_400, 28_800, 50_400, 72_000)
GAPS = (*(dt.timedelta(seconds=gap) for gap in _FIRST_GAPS_S), _SPAN - dt.timedelta(seconds=sum(_FIRST_GAPS_S)))
"""Between a try and the next: the last try is 72 hours after the first."""
SET_ASIDE_TRIES = 4
"""So often the first event of the feed is tried alone; then it waits aside for its next tries, and the feed goes on.

Behind several of that kind once is enough, if the subscriber takes another event as new meanwhile.
"""
_JITTER = 0.1

KNOCK_FIRST_S, KNOCK_MAX_S = 0.5, 30.0


class FeedItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event on its way: of two events of a card, the one with the lower (position, event.event_id) comes first."""

    position: int
    event: UsageEvent
    redelivery: bool = False
    """It may have arrived before."""
    replayed: bool = False
    """An operator sends it again after it was given up: later events of its card may have arrived."""


class Acknowledgement(NamedTuple):
    """What a subscriber said of each event of a batch: what is not refused is in its hands."""

    duplicates: int
    refused: Mapping[UUID, str]
    """Its code, by event."""

    def accepted(self, events: int) -> int:
        """How many of the batch's events it took as new. Nothing else shows that it is up.

        One that can no longer write still knows what it has, and what stands before it may refuse by itself.
        """
        return events - self.duplicates - len(self.refused)


def acknowledgement(outcome: Outcome) -> Acknowledgement | None:
    """None: the batch is not acknowledged."""
    if not isinstance(outcome, Approved):
        return None
    duplicates, refused = outcome.facts["duplicates"], outcome.facts["refused"]
    assert isinstance(duplicates, int) and isinstance(refused, list)
    return Acknowledgement(duplicates, {UUID(event_id): code for event_id, code in refused})


def next_try(tries: int, at: dt.datetime, chance: float) -> dt.datetime | None:
    """When an event that has failed `tries` times (1 or more) is tried again; None: never. `chance` is of 0 to 1."""
    if tries >= TRIES_MAX:
        return None
    return at + GAPS[tries - 1] * (1 + _JITTER * (2 * chance - 1))


def knock_s(knocks: int, chance: float) -> float:
    """How long to wait before a partner that was not reached is called again: doubled each time, with jitter."""
    doubled = KNOCK_FIRST_S * 2.0 ** min(knocks, 10)
    return min(doubled, KNOCK_MAX_S) * (0.5 + chance / 2)


def lanes(items: Sequence[tuple[UUID, T]], batch_max: int, lanes_max: int) -> list[list[list[T]]]:
    """Batches that may go at the same time (lanes), each followed by those that must come after it.

    Items come with their card, in order; all of a card are in one lane.
    """
    count = min(lanes_max, -(-len(items) // batch_max))
    spread: list[list[T]] = [[] for _ in range(count)]
    for card, item in items:
        spread[hash(card) % count].append(item)
    return [_cut(lane, batch_max) for lane in spread if lane]


def _cut(items: Sequence[T], size: int) -> list[list[T]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
