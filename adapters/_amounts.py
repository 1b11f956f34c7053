"""Money as partners write it; inside it is whole fen."""

import re
from enum import StrEnum

from gateway.partners.contract import CannotBuild

_FEN_MAX = 10**13 - 1


class Amounts(StrEnum):
    """How a dialect writes an amount."""

    YUAN = "yuan"  # "12.34"
    FEN = "fen"  # "1234"

    def text(self, fen: int) -> str:
        """Of more than nothing. Raises CannotBuild."""
        if not 0 < fen <= _FEN_MAX:
            raise CannotBuild("an amount is more than nothing and has at most 13 digits")
        return f"{fen // 100}.{fen % 100:02d}" if self is Amounts.YUAN else str(fen)

    def fen(self, text: str) -> int:
        """Negative ones too. Raises ValueError."""
        pattern = r"-?[0-9]{1,13}\.[0-9]{2}" if self is Amounts.YUAN else "-?[0-9]{1,15}"
        if not re.fullmatch(pattern, text):
            raise ValueError("not an amount")
        return int(text.replace(".", ""))
