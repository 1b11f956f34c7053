"""Masking: what of a person may be shown, and a string type that does not show itself."""

from datetime import date
from typing import Final, Generic, TypeVar

T = TypeVar("T")


def mask_name(name: str) -> str:
    """`张三` -> `*三`: the surname masked (one of two styles seen, domain.md §5); long names keep two characters."""
    if len(name) <= 1:
        return "*"
    keep = 1 if len(name) < 4 else 2
    return "*" * (len(name) - keep) + name[-keep:]


def age_on(birth: date, today: date) -> int:
    return today.year - birth.year - ((today.month, today.day) < (birth.month, birth.day))


_BANDS: Final = ("0-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70-79", "80-89", "90+")


def age_band(age: int) -> str:
    """The decade of an age: `60-69`, the last `90+`."""
    decade = age // 10
    return _BANDS[0 if decade < 0 else 9 if decade > 9 else decade]


class Secret(Generic[T]):
    """A value that masks itself in repr, str and format, and goes into no JSON or pickle; only reveal() gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def reveal(self) -> T:
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not pickled")

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "Secret(***)"
