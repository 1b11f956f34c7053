"""The verify statement: a batch of presentations in, reasons out, the events committed in between."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.domain.cards import STATUS_REASON, CardStatus

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

_SQL = (Path(__file__).parent / "verify.sql").read_text()
_SQL_WITH_REFS = _SQL.replace("--ref ", "      ")
"""The same for all that is presented: a batch of chip cards alone is spared a second look each and three columns."""
_SQL_WITH_CODES = _SQL_WITH_REFS.replace("--code ", "       ")
"""The same once more, which also claims codes: its reasons are in one place."""

_SEPARATOR = "\x1f"

_REASON_BY_STATUS = _SEPARATOR.join(
    STATUS_REASON[CardStatus(code)].value if code in set(CardStatus) else "void" for code in range(max(CardStatus) + 1)
)


class Presented(NamedTuple):
    """One presentation as the statement takes it, all as text without control characters, empty for NULL.

    At most one of chip_index and card_id is given; a preset without them goes before everything else.
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
    media: str
    """A number with bits 1, 2 and 3: whether the scene takes e-cards and the card generations from this caller."""
    preset: str
    """A reason found before the card was read."""
    medium: str
    """`ecard`; empty: that of the card which is found."""
    code_digest: str = ""
    """Hex: a code that is good once, to be claimed; who comes second is `code_replayed`."""


Judged = Sequence[Any]
"""A row of the statement: (reason, card_id, medium, region, status_as_of, holder_sealed).

status_as_of comes in seconds since 1970: a timestamp takes twice as long to decode, on the path of every verify.
"""


async def verify_batch(
    connection: "AnyConnection", batch: Sequence[Presented], status_max_age: dt.timedelta, timeout: float
) -> list[Judged]:
    """Judge and record a batch, in its order. The events are committed unless a transaction is open."""
    ids, chips, cards, *told, presets, mediums, codes = map(_SEPARATOR.join, zip(*batch, strict=True))
    arguments = [ids, chips, *told, _REASON_BY_STATUS, status_max_age]
    sql = _SQL
    if (cards + presets + mediums + codes).strip(_SEPARATOR):
        sql = _SQL_WITH_REFS
        arguments += cards, presets, mediums
    if codes.strip(_SEPARATOR):
        sql = _SQL_WITH_CODES
        arguments.append(codes)
    rows: list[Judged] = await connection.fetch(  # type: ignore[assignment]  # a Record is a sequence of its values
        sql, *arguments, timeout=timeout
    )
    assert len(rows) == len(batch), "one answer for each presentation"
    return rows
