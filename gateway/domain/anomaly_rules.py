"""What usage monitoring (用卡监测) looks for, as data: anomalies.toml. The rules themselves are in anomalies.py.

A rule points operators to something; it blocks nobody. Its numbers are guesses [G], tuned on the sandbox county.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

import msgspec

from gateway.domain.callers import Caller
from gateway.domain.geography import great_circle_km
from gateway.domain.scenes import Scene
from gateway.domain.use_windows import OF_ONE_MAX

OUTLET_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9-]{0,31}$"
_TERMINALS = re.compile(r"[!-)+-~]{1,32}\*?")
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=80)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
_OfOne = Annotated[int, msgspec.Meta(ge=1, le=OF_ONE_MAX)]
"""More uses of one subject are not remembered."""
_Minutes = Annotated[int, msgspec.Meta(ge=1, le=1440)]


class RuleName(StrEnum):
    TWO_PLACES = "two_places"
    SUDDEN_VOLUME = "sudden_volume"
    REFUSALS = "refusals"
    MANY_CARDS = "many_cards"
    POINTS_FARMING = "points_farming"


class TwoPlaces(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A card in two towns, sooner than anybody gets from the one to the other."""

    enabled: bool
    km_min: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    """Towns nearer than this are one place: coordinates are rough."""
    kmh_max: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    """As the crow flies; faster is not possible."""
    slack_minutes: Annotated[int, msgspec.Meta(ge=0, le=1440)]
    """By which two terminals' clocks may differ."""
    window_minutes: _Minutes


class SuddenVolume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A merchant with many times its usual uses: an outlet of this file, else all of a caller that has none here."""

    enabled: bool
    slot_minutes: Annotated[int, msgspec.Meta(ge=5, le=240)]
    uses_min: _Count
    times: Annotated[int, msgspec.Meta(ge=2, le=1000)]
    """Of what is usual: the mean of the same time on the last days, more if the last `hours` were busier than usual."""
    hours: Annotated[int, msgspec.Meta(ge=1, le=24)]
    days: Annotated[int, msgspec.Meta(ge=1, le=14)]
    """Remembered. Of its first day nothing is said: there is nothing to compare with."""


class Refusals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A terminal that refuses card after card."""

    enabled: bool
    refused_min: _OfOne
    percent_min: Annotated[int, msgspec.Meta(ge=1, le=100)]
    window_minutes: _Minutes


class ManyCards(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """More different cards at one till than people can step up to it."""

    enabled: bool
    window_minutes: _Minutes
    cards_min: Mapping[str, _OfOne]
    """By scene; what is not here is not looked at."""


class PointsFarming(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Many small uses of one card at one merchant (outlet or caller) that earn points. Reversed ones do not count."""

    enabled: bool
    uses_min: _OfOne
    amount_max_fen: Annotated[int, msgspec.Meta(ge=0, le=100_000_000)]
    window_minutes: _Minutes
    scenes: tuple[str, ...]


class Town(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    latitude: Annotated[float, msgspec.Meta(ge=-90, le=90)]
    longitude: Annotated[float, msgspec.Meta(ge=-180, le=180)]


class Outlet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A merchant's place. `terminals` are as those callers name them that verify or return uses there; `M-1-*` is all
    that begin so."""

    name: _Name
    town: str
    callers: tuple[str, ...]
    terminals: tuple[str, ...]


class AnomalySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """anomalies.toml."""

    two_places: TwoPlaces
    sudden_volume: SuddenVolume
    refusals: Refusals
    many_cards: ManyCards
    points_farming: PointsFarming
    towns: Mapping[str, Town]
    outlets: Mapping[str, Outlet]


class Places:
    """Which outlet a terminal belongs to, and how far towns are apart."""

    def __init__(self, settings: AnomalySettings) -> None:
        self._whole: dict[tuple[str, str], str] = {}
        self._begin: dict[tuple[str, str], str] = {}
        self._town_of = {outlet_id: settings.towns[outlet.town] for outlet_id, outlet in settings.outlets.items()}
        for outlet_id, outlet in settings.outlets.items():
            for caller in outlet.callers:
                for pattern in outlet.terminals:
                    names = self._begin if pattern.endswith("*") else self._whole
                    names[caller, pattern.removesuffix("*")] = outlet_id

    def outlet_of(self, caller: str, terminal_id: str) -> str | None:
        """By its whole name, else by the longest beginning; None: not known."""
        found = self._whole.get((caller, terminal_id))
        for end in range(len(terminal_id), 0, -1):
            if found is not None:
                break
            found = self._begin.get((caller, terminal_id[:end]))
        return found

    def km(self, outlet_id: str, other_id: str) -> float:
        """Between the towns of two outlets; 0 if one of them is not in the file any more."""
        one, other = self._town_of.get(outlet_id), self._town_of.get(other_id)
        if one is None or other is None:
            return 0.0
        return great_circle_km(one.latitude, one.longitude, other.latitude, other.longitude)


def mistakes_of(
    settings: AnomalySettings, callers: Mapping[str, Caller | None], scenes: Mapping[str, Scene | None]
) -> list[str]:
    """What is wrong between the blocks, each by its path."""
    mistakes: list[str] = []
    taken: dict[tuple[str, str], str] = {}
    for outlet_id, outlet in settings.outlets.items():
        path = f"outlets.{outlet_id}"
        if not re.fullmatch(OUTLET_PATTERN, outlet_id):
            mistakes.append(f"{path}: a key must match {OUTLET_PATTERN}")
        if outlet.town not in settings.towns:
            mistakes.append(f"{path}.town: no such town: {outlet.town}")
        if callers:  # none at all: the file cannot be read, which is said already
            mistakes += [
                f"{path}.callers: no such caller in callers.toml: {name}"
                for name in outlet.callers
                if name not in callers
            ]
        for pattern in outlet.terminals:
            if not _TERMINALS.fullmatch(pattern):
                mistakes.append(f"{path}.terminals: 1 to 32 visible characters, a * only at the end: {pattern}")
            for caller in outlet.callers:
                if taken.setdefault((caller, pattern), outlet_id) != outlet_id:
                    mistakes.append(f"{path}.terminals: also of outlets.{taken[caller, pattern]}: {pattern}")
    if scenes:
        named = (
            ("many_cards.cards_min", settings.many_cards.cards_min),
            ("points_farming.scenes", settings.points_farming.scenes),
        )
        mistakes += [
            f"{path}: no such scene in scenes.toml: {scene}"
            for path, some in named
            for scene in some
            if scene not in scenes
        ]
    if 1440 % settings.sudden_volume.slot_minutes:
        mistakes.append("sudden_volume.slot_minutes: a day must have a whole number of slots")
    return mistakes
