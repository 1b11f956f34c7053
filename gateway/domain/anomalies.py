"""Usage monitoring (用卡监测): rules over the stream of usage events. Pure: no clock, no I/O; it blocks nobody.

A finding is stated when it begins, and again (restated) whenever it has doubled; what a reversal takes away is restated
as not standing. Its id follows from the event that brought it about: who sees the same events again states the same.
"""

from collections.abc import Mapping
from functools import partial
from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple

import msgspec

from gateway.domain.anomaly_rules import AnomalySettings, Places, RuleName
from gateway.domain.ids import uuid7
from gateway.domain.use_windows import MINUTE_US, Entry, Remembered, UseWindows, Volumes, fullest

EVENTS_SHOWN = 20
_ENTRIES_MAX = 50_000
"""Uses that a rule remembers; some megabytes."""
_FINDINGS_MAX = 5_000
_LATE_US = 60 * MINUTE_US
"""How long a use is remembered beyond its rule's window."""
_REFUSED, _TAKEN = b"r", b"t"


class Seen(NamedTuple):
    """What is looked at of a usage event. Times are microseconds since 1970."""

    event_id: bytes
    recorded_us: int
    occurred_us: int
    caller: str
    scene: str
    terminal_id: str
    card_id: bytes | None
    good: bool
    """A verdict `valid`, or a returned use that succeeded; no reversal."""
    refused: bool
    amount_fen: int | None = None
    returned_id: str | None = None
    """The caller's own id of a returned use."""
    reversal_of: str | None = None


class Subject(NamedTuple):
    """Whom a finding is about; some of it."""

    caller: str | None = None
    outlet: str | None = None
    terminal_id: str | None = None
    card_id: bytes | None = None


class Anomaly(NamedTuple):
    """Something for an operator to look at, with its evidence."""

    anomaly_id: bytes
    at_us: int
    """When the event was recorded that brought it about."""
    rule: RuleName
    subject: Subject
    from_us: int
    until_us: int
    weight: int
    """Uses, refusals, cards or impossible journeys: what the rule counts."""
    stands: bool
    """False: a reversal has taken the evidence away."""
    restates: bytes | None
    """The first anomaly of the same finding."""
    event_ids: tuple[bytes, ...]
    """The last EVENTS_SHOWN at most."""
    figures: Mapping[str, float]


class Finding(msgspec.Struct):
    """What was stated of a subject, while it goes on."""

    anomaly_id: bytes
    from_us: int
    until_us: int
    stated: int


class Memory(msgspec.Struct, frozen=True):
    """Everything that the rules know: what is kept over a restart."""

    sightings: list[Remembered]
    answers: list[Remembered]
    cards: list[Remembered]
    small_uses: list[Remembered]
    volumes: Volumes
    findings: dict[str, Finding]


class Detector:
    """see() every event once, in the order of the feed."""

    def __init__(self, settings: AnomalySettings, memory: Memory | None = None) -> None:
        self.settings = settings
        self._places = Places(settings)
        slot_minutes = settings.sudden_volume.slot_minutes
        if memory is None:
            memory = Memory([], [], [], [], Volumes(slot_minutes), {})
        self._sightings = _windows(settings.two_places.window_minutes, memory.sightings)
        self._answers = _windows(settings.refusals.window_minutes, memory.answers)
        self._cards = _windows(settings.many_cards.window_minutes, memory.cards)
        self._small_uses = _windows(settings.points_farming.window_minutes, memory.small_uses)
        self._volumes = memory.volumes if memory.volumes.slot_minutes == slot_minutes else Volumes(slot_minutes)
        self._findings = memory.findings

    def memory(self) -> Memory:
        return Memory(
            self._sightings.remembered(), self._answers.remembered(), self._cards.remembered(),
            self._small_uses.remembered(), self._volumes, self._findings,
        )  # fmt: skip

    def see(self, use: Seen) -> list[Anomaly]:
        """What this event brings about."""
        outlet = self._places.outlet_of(use.caller, use.terminal_id)
        found = [
            self._two_places(use, outlet),
            self._refusals(use),
            self._many_cards(use),
            self._sudden_volume(use, outlet),
            self._points_farming(use, outlet),
        ]
        return [anomaly for anomaly in found if anomaly is not None]

    def _two_places(self, use: Seen, outlet: str | None) -> Anomaly | None:
        rule = self.settings.two_places
        # a refused card is in a place too
        if not rule.enabled or outlet is None or use.card_id is None or not (use.good or use.refused):
            return None
        entry = (use.occurred_us, use.event_id, outlet.encode())
        entries = self._sightings.add(use.card_id.hex(), use.recorded_us, entry)
        if len(entries) < 2:
            return None
        _, near = fullest(entries, entry, rule.window_minutes * MINUTE_US, len)
        impossible = [pair for pair in pairwise(near) if self._impossible_kmh(*pair)]
        if not any(entry in pair for pair in impossible):
            return None
        first, last = max(impossible, key=lambda pair: self._impossible_kmh(*pair))
        figures = {
            "km": self._km(first, last), "minutes": (last[0] - first[0]) / MINUTE_US,
        }  # fmt: skip
        return self._state(
            RuleName.TWO_PLACES, Subject(card_id=use.card_id), use, rule.window_minutes,
            [each for pair in impossible for each in pair], len(impossible), figures,
        )  # fmt: skip

    def _km(self, one: Entry, other: Entry) -> float:
        return self._places.km(one[2].decode(), other[2].decode())

    def _impossible_kmh(self, one: Entry, other: Entry) -> float:
        """How fast somebody would have to be, if that is too fast; else 0."""
        rule, km = self.settings.two_places, self._km(one, other)
        hours = ((other[0] - one[0]) / MINUTE_US + rule.slack_minutes) / 60
        kmh = km / max(hours, 1 / 3600)
        return kmh if km >= rule.km_min and kmh > rule.kmh_max else 0.0

    def _refusals(self, use: Seen) -> Anomaly | None:
        rule = self.settings.refusals
        if not rule.enabled or not (use.good or use.refused):
            return None
        entry = (use.occurred_us, use.event_id, _REFUSED if use.refused else _TAKEN)
        entries = self._answers.add(f"{use.caller} {use.terminal_id}", use.recorded_us, entry)
        if not use.refused or len(entries) < rule.refused_min:
            return None
        refused, window = fullest(entries, entry, rule.window_minutes * MINUTE_US, _refused)
        if refused < rule.refused_min or refused * 100 < rule.percent_min * len(window):
            return None
        subject = Subject(caller=use.caller, terminal_id=use.terminal_id)
        figures = {"refused": refused, "answered": len(window)}
        return self._state(RuleName.REFUSALS, subject, use, rule.window_minutes, window, refused, figures)

    def _many_cards(self, use: Seen) -> Anomaly | None:
        rule = self.settings.many_cards
        cards_min = rule.cards_min.get(use.scene)
        if not rule.enabled or cards_min is None or use.card_id is None or not (use.good or use.refused):
            return None
        entry = (use.occurred_us, use.event_id, use.card_id)
        entries = self._cards.add(f"{use.caller} {use.terminal_id}", use.recorded_us, entry)
        if len(entries) < cards_min:
            return None
        subject, window_us = Subject(caller=use.caller, terminal_id=use.terminal_id), rule.window_minutes * MINUTE_US
        finding = self._findings.get(_key(RuleName.MANY_CARDS, subject))
        # what cannot double a finding that goes on need not be counted to the end
        counted = partial(_different_up_to, cards_min) if (
            finding is not None and finding.from_us <= entry[0] <= finding.until_us + window_us
            and len(entries) < 2 * finding.stated
        ) else _different  # fmt: skip
        cards, window = fullest(entries, entry, window_us, counted)
        if cards < cards_min:
            return None
        return self._state(RuleName.MANY_CARDS, subject, use, rule.window_minutes, window, cards, {"cards": cards})

    def _sudden_volume(self, use: Seen, outlet: str | None) -> Anomaly | None:
        rule = self.settings.sudden_volume
        if not rule.enabled or not use.good:
            return None
        subject = Subject(caller=use.caller) if outlet is None else Subject(outlet=outlet)
        slot, merchant = self._volumes.add(outlet or use.caller, use.occurred_us, use.event_id, rule.days)
        uses = merchant.slots.get(slot, 0)
        if uses < rule.uses_min:
            return None
        expected = self._volumes.expected(merchant, slot, rule.hours, rule.days)
        if expected is None or uses < rule.times * expected:
            return None
        slot_us = rule.slot_minutes * MINUTE_US
        window = [(slot * slot_us, event_id, b"") for of_slot, event_id in merchant.last_events if of_slot == slot]
        window[-1] = (use.occurred_us, use.event_id, b"")
        figures = {"uses": uses, "expected": expected}
        return self._state(RuleName.SUDDEN_VOLUME, subject, use, rule.slot_minutes, window, uses, figures)

    def _points_farming(self, use: Seen, outlet: str | None) -> Anomaly | None:
        rule = self.settings.points_farming
        if not rule.enabled or use.scene not in rule.scenes or use.card_id is None or use.returned_id is None:
            return None
        merchant = outlet or use.caller
        key = f"{use.card_id.hex()} {merchant}"
        subject = Subject(card_id=use.card_id, outlet=outlet, caller=use.caller if outlet is None else None)
        if use.reversal_of is not None:
            return self._reversed(key, subject, use)
        if not use.good or (use.amount_fen or 0) > rule.amount_max_fen:
            return None
        entry = (use.occurred_us, use.event_id, _mark(use.caller, use.returned_id))
        entries = self._small_uses.add(key, use.recorded_us, entry)
        uses, window = fullest(entries, entry, rule.window_minutes * MINUTE_US, len)
        if uses < rule.uses_min:
            return None
        figures = {"uses": uses}
        return self._state(RuleName.POINTS_FARMING, subject, use, rule.window_minutes, window, uses, figures)

    def _reversed(self, key: str, subject: Subject, use: Seen) -> Anomaly | None:
        """A use that was taken back is no evidence; if too little is left, the finding does not stand."""
        rule = self.settings.points_farming
        assert use.reversal_of is not None
        left = self._small_uses.take_out(key, _mark(use.caller, use.reversal_of))
        finding = self._findings.get(_key(RuleName.POINTS_FARMING, subject))
        if left is None or finding is None:
            return None
        uses = [entry for entry in left if finding.from_us <= entry[0] <= finding.until_us]
        if len(uses) >= rule.uses_min:
            return None
        del self._findings[_key(RuleName.POINTS_FARMING, subject)]
        return Anomaly(
            _id(use, RuleName.POINTS_FARMING, subject), use.recorded_us, RuleName.POINTS_FARMING, subject,
            finding.from_us, finding.until_us, len(uses), False, finding.anomaly_id, (use.event_id,),
            {"uses": len(uses)},
        )  # fmt: skip

    def _state(
        self, rule: RuleName, subject: Subject, use: Seen, window_minutes: int, evidence: list[Entry], count: int,
        figures: Mapping[str, float],
    ) -> Anomaly | None:  # fmt: skip
        """The anomaly, unless it was stated already and has not doubled since. The evidence is in order of time."""
        from_us, until_us = evidence[0][0], evidence[-1][0]
        anomaly_id, key, near_us = _id(use, rule, subject), _key(rule, subject), window_minutes * MINUTE_US
        finding = self._findings.get(key)
        restates = None
        if finding is not None and from_us <= finding.until_us + near_us and until_us >= finding.from_us - near_us:
            finding.from_us, finding.until_us = min(from_us, finding.from_us), max(until_us, finding.until_us)
            if count < 2 * finding.stated:
                return None
            finding.stated, restates = count, finding.anomaly_id
            from_us, until_us = finding.from_us, finding.until_us
        else:
            self._findings.pop(key, None)
            self._findings[key] = Finding(anomaly_id, from_us, until_us, count)
            while len(self._findings) > _FINDINGS_MAX:
                del self._findings[next(iter(self._findings))]
        shown = dict.fromkeys(entry[1] for entry in evidence)
        return Anomaly(
            anomaly_id, use.recorded_us, rule, subject, from_us, until_us, count, True, restates,
            tuple(shown)[-EVENTS_SHOWN:], {name: round(value, 1) for name, value in figures.items()},
        )  # fmt: skip


def _windows(window_minutes: int, remembered: list[Remembered]) -> UseWindows:
    return UseWindows(window_minutes * MINUTE_US + _LATE_US, _ENTRIES_MAX, remembered)


def _refused(entries: list[Entry]) -> int:
    return sum(mark == _REFUSED for _, _, mark in entries)


def _different(entries: list[Entry]) -> int:
    return len({mark for _, _, mark in entries})


def _different_up_to(most: int, entries: list[Entry]) -> int:
    different: set[bytes] = set()
    for _, _, mark in reversed(entries):
        different.add(mark)
        if len(different) >= most:
            break
    return len(different)


def _mark(caller: str, returned_id: str) -> bytes:
    return blake2b(f"{caller} {returned_id}".encode(), digest_size=8).digest()


def _key(rule: RuleName, subject: Subject) -> str:
    card = subject.card_id.hex() if subject.card_id else ""
    return "\x1f".join((rule, subject.caller or "", subject.outlet or "", subject.terminal_id or "", card))


def _id(use: Seen, rule: RuleName, subject: Subject) -> bytes:
    digest = blake2b(use.event_id + _key(rule, subject).encode(), digest_size=10).digest()
    return uuid7(use.recorded_us // 1000, digest)
