"""Scenes: where a card is used. A row of scenes.toml, never code (design.md §1)."""

from typing import Annotated

import msgspec

from gateway.domain.callers import CallerKind
from gateway.domain.cards import Medium

_GENERATION_BIT = {Medium.SECOND_GEN: 1 << 2, Medium.THIRD_GEN: 1 << 3, Medium.ECARD: 0}

SCENE_PATTERN = r"^[a-z][a-z0-9_]{0,30}\.[a-z][a-z0-9_]{0,30}$"


class Scene(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One block of scenes.toml: who may verify a card there, and with which media."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=40)]
    field: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
    """The field of use that metrics and indicators count by: parking, transit, library …"""
    callers: tuple[CallerKind, ...]
    media: tuple[Medium, ...] = (Medium.SECOND_GEN, Medium.THIRD_GEN, Medium.ECARD)

    def generations(self, kind: CallerKind) -> int:
        """The card generations that the scene takes from a kind of caller, as bits 2 and 3; 0 for none."""
        return sum(_GENERATION_BIT[medium] for medium in self.media) if kind in self.callers else 0
