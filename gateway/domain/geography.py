"""Distances on the earth."""

from math import asin, cos, radians, sin, sqrt

_EARTH_KM = 6371.0


def great_circle_km(latitude: float, longitude: float, other_latitude: float, other_longitude: float) -> float:
    """As the crow flies; degrees. The haversine formula on a sphere: right to half a percent."""
    north = sin(radians(other_latitude - latitude) / 2) ** 2
    east = sin(radians(other_longitude - longitude) / 2) ** 2
    return 2 * _EARTH_KM * asin(sqrt(north + cos(radians(latitude)) * cos(radians(other_latitude)) * east))
