"""The verify statement: a batch of presentations in, reasons out, the events committed in between."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.domain.cards import STATUS_REASON, CardStatus

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

_SQL = (Path(__file__).parent / "verify.sql").read_text()

_SEPARATOR = "\x1f"

_REASON_BY_STATUS = _SEPARATOR.join(
    STATUS_REASON[CardStatus(code)].value if code in set(CardStatus) else "void" for code in range(max(CardStatus) + 1)
)


class Presented(NamedTuple):
    """One presentation as the statement takes it, all as text without control characters, empty for NULL.

    Exactly one of chip_index and card_id is given, or none with a preset.
    """

    event_id: str
    chip_index: str
    """Hex."""
    card_id: str
    caller: str
    scene: str
    terminal_id: str
    occurred_us: str
    """Microseconds since 1970."""
    generations: str
    """A number with bits 2 and 3: the card generations that the scene takes from this caller."""
    preset: str
    """A reason found before the card was read."""
    medium: str


Judged = Sequence[Any]
"""A row of the statement: (reason, card_id, medium, region, status_as_of, holder_sealed)."""


async def verify_batch(
    connection: "AnyConnection", batch: Sequence[Presented], status_max_age: dt.timedelta, timeout: float
) -> list[Judged]:
    """Judge and record a batch, in its order. The events are committed unless a transaction is open."""
    rows: list[Judged] = await connection.fetch(  # type: ignore[assignment]  # a Record is a sequence of its values
        _SQL, *map(_SEPARATOR.join, zip(*batch, strict=True)), _REASON_BY_STATUS, status_max_age, timeout=timeout
    )
    assert len(rows) == len(batch), "one answer for each presentation"
    return rows
