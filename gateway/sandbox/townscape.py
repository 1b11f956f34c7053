"""Where cards are used in the synthetic county: outlets with their terminals, and how long it takes from town to town.

config/anomalies.toml tells operators the same of these terminals. Buses are on the road: nobody says where they are.
"""

from typing import NamedTuple

from gateway.domain.geography import great_circle_km

DOOR_TO_DOOR_KMH = 35
SAME_TOWN_S = 240

TOWNS: dict[str, tuple[str, float, float]] = {
    "武原": ("WY", 30.53, 120.94),
    "西塘桥": ("XT", 30.59, 120.98),
    "元通": ("YT", 30.56, 120.90),
    "秦山": ("QS", 30.46, 120.92),
    "沈荡": ("SD", 30.57, 120.81),
    "百步": ("BB", 30.55, 120.75),
    "于城": ("YC", 30.59, 120.85),
    "澉浦": ("GP", 30.40, 120.89),
    "通元": ("TY", 30.46, 120.83),
}
"""Code, latitude and longitude; roughly [G]."""
CITIES: dict[str, tuple[str, float, float]] = {
    "嘉兴": ("JX", 30.75, 120.75),
    "杭州": ("HZ", 30.27, 120.16),
    "上海": ("SH", 31.23, 121.47),
}
"""Where the county's people use their cards elsewhere in the 长三角."""
_PLACES = TOWNS | CITIES

_MERCHANT, _TRANSIT, _KIOSK, _REGION = "demo-merchant", "demo-transit", "demo-kiosk", "demo-region"
_EVERYWHERE = (("MK", "market.till", _MERCHANT, 6), ("DN", "dining.till", _MERCHANT, 8),
               ("MD", "medical.window", _KIOSK, 2), ("KS", "kiosk.service", _KIOSK, 1))  # fmt: skip
_SOMEWHERE = {
    "武原": (("MK2", "market.till", _MERCHANT, 10), ("DN2", "dining.till", _MERCHANT, 12),
           ("HS", "medical.window", _KIOSK, 8), ("PK", "parking.exit", _MERCHANT, 4),
           ("HT", "hotel.checkin", _MERCHANT, 1), ("LB", "library.loan", _KIOSK, 2)),
    "西塘桥": (("PK", "parking.exit", _MERCHANT, 3), ("DN2", "dining.till", _MERCHANT, 6)),
    "澉浦": (("SC", "scenic.entry", _REGION, 2), ("HT", "hotel.checkin", _MERCHANT, 1)),
}  # fmt: skip
_LINES = 24
_BUSES_OF_A_LINE = 4


class Outlet(NamedTuple):
    """A shop, a hospital, a library: its terminals stand in one town."""

    id: str
    town: str
    scene: str
    caller: str
    """The system that verifies cards there."""
    terminals: int

    def terminal(self, draw: float) -> str:
        """One of them; `draw` is of [0, 1)."""
        return f"{self.id}-{int(draw * self.terminals) + 1}"


def _outlets() -> dict[tuple[str, str], list[Outlet]]:
    found: dict[tuple[str, str], list[Outlet]] = {}
    for town, (code, _, _) in TOWNS.items():
        for kind, scene, caller, terminals in (*_EVERYWHERE, *_SOMEWHERE.get(town, ())):
            found.setdefault((town, scene), []).append(Outlet(f"{code}-{kind}", town, scene, caller, terminals))
    for city, (code, _, _) in CITIES.items():
        found[city, "region.visit"] = [Outlet(f"{code}-RV", city, "region.visit", _REGION, 4)]
    return found


OUTLETS = _outlets()
"""By town and scene; a town without one has people who go elsewhere."""


def bus(town: str, draw: float) -> str:
    """The gate of a bus that calls at a town."""
    line = (list(TOWNS).index(town) * 7 + int(draw * 64)) % _LINES + 1
    return f"BUS-{line:02}-{int(draw * 640) % _BUSES_OF_A_LINE + 1}"


def km_between(town: str, other: str) -> float:
    """As the crow flies."""
    _, latitude, longitude = _PLACES[town]
    _, other_latitude, other_longitude = _PLACES[other]
    return great_circle_km(latitude, longitude, other_latitude, other_longitude)


def journey_s(town: str, other: str) -> int:
    """From the one to the other, by bus or car, with waiting."""
    if town == other:
        return SAME_TOWN_S
    return 300 + int(km_between(town, other) * 1.3 / DOOR_TO_DOOR_KMH * 3600)
