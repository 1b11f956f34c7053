"""Scenes: where a card is used. A row of scenes.toml, never code (design.md §1)."""

from enum import StrEnum
from typing import Annotated

import msgspec

from gateway.domain.callers import CallerKind
from gateway.domain.cards import Medium
from gateway.domain.points import PointsRule

_BIT = {Medium.ECARD: 1 << 1, Medium.SECOND_GEN: 1 << 2, Medium.THIRD_GEN: 1 << 3}
"""A chip card's is that of its generation, as verify.sql reads it."""

SCENE_PATTERN = r"^[a-z][a-z0-9_]{0,30}\.[a-z][a-z0-9_]{0,30}$"


class VisitKind(StrEnum):
    """What a merchant's own system does in a scene (domain/visits.py)."""

    ENTRY = "entry"
    EXIT = "exit"
    CHECK_IN = "check_in"
    BILL = "bill"


class Scene(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One block of scenes.toml: who may verify a card there, with which media, and whether to pay with it."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=40)]
    field: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
    """The field of use that metrics and indicators count by: parking, transit, library …"""
    callers: tuple[CallerKind, ...]
    media: tuple[Medium, ...] = (Medium.SECOND_GEN, Medium.THIRD_GEN, Medium.ECARD)
    points: PointsRule | None = None
    """What a use earns; None: nothing."""
    money: bool = False
    """Whether money moves there: only then can a card be paid with."""
    visit: VisitKind | None = None
    """What a merchant's own system does there, if it is connected; None: nothing."""

    def media_bits(self, kind: CallerKind) -> int:
        """What it takes from a kind of caller: e-cards as bit 1, card generations as bits 2 and 3; 0 for none."""
        return sum(_BIT[medium] for medium in self.media) if kind in self.callers else 0
