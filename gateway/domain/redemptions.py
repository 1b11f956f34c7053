"""Redemption of points at 社银合作点 (plan.md 专栏8-01): the outlets, their items, and what may follow what.

Points are given out for goods and services alone, never for money: an old person who is talked into "cashing" them has
nothing to be cheated of (domain.md §7). So there is no kind of item that is money.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

import msgspec

from gateway.domain.callers import Caller, Scope
from gateway.domain.points import REDEEMED, merchant_account
from gateway.domain.scenes import Scene

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{1,31}$"
"""Of an outlet or an item."""
INSUFFICIENT_POINTS = "insufficient_points"
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=80)]


class RedemptionState(StrEnum):
    """Reserved, then one of the other three, once; or refused from the beginning."""

    RESERVED = "reserved"
    COMMITTED = "committed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REFUSED = "refused"


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What points are given for."""

    name: _Name
    kind: Literal["goods", "service"]
    points: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]


class Outlet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where: it belongs to one caller, and nobody else redeems there."""

    name: _Name
    caller: str
    items: tuple[str, ...]
    goods_of: Literal["issuer", "outlet"] = "issuer"
    """Whose goods they are: the points go back to the issuer, or to the caller's account, which the issuer settles."""

    @property
    def credit(self) -> UUID:
        """The account that gets the points."""
        return REDEEMED if self.goods_of == "issuer" else merchant_account(self.caller)


class PointsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """points.toml."""

    valid_months: Annotated[int, msgspec.Meta(ge=1, le=120)]
    """Points expire at the end of the month so many months after the use that earned them."""
    scene: str
    """Of scenes.toml: where the usage event of a redemption counts."""
    reserved_for_s: Annotated[int, msgspec.Meta(ge=1, le=86_400)]
    """A reservation that is neither committed nor cancelled by then expires."""
    items: Mapping[str, Item]
    outlets: Mapping[str, Outlet]


def mistakes_of(
    settings: PointsSettings, callers: Mapping[str, Caller | None], scenes: Mapping[str, Scene | None]
) -> list[str]:
    """What is wrong between the blocks, each by its path. A caller that is wrong in itself is None."""
    mistakes = [
        f"{table}.{name}: a key must match {NAME_PATTERN}"
        for table, names in (("items", settings.items), ("outlets", settings.outlets))
        for name in names
        if not re.fullmatch(NAME_PATTERN, name)
    ]
    if scenes and settings.scene not in scenes:  # none at all: the file cannot be read, which is said already
        mistakes.append("scene: no such scene in scenes.toml")
    scene = scenes.get(settings.scene)
    for name, outlet in settings.outlets.items():
        mistakes += [
            f"outlets.{name}.items: no such item: {item}" for item in outlet.items if item not in settings.items
        ]
        caller = callers.get(outlet.caller)
        if callers and outlet.caller not in callers:
            mistakes.append(f"outlets.{name}.caller: no such caller in callers.toml")
        elif caller is not None and Scope.POINTS_WRITE not in caller.scopes:
            mistakes.append(f"outlets.{name}.caller: callers.{outlet.caller}.scopes lacks {Scope.POINTS_WRITE}")
        elif caller is not None and scene is not None and caller.kind not in scene.callers:
            mistakes.append(f"outlets.{name}.caller: scenes.{settings.scene}.callers lacks {caller.kind}")
    return mistakes
