"""GET /v1/usage-events: the bureau's feed."""

import re
from uuid import UUID

import msgspec

from gateway.api.middleware import Call, Requested
from gateway.api.payloads import UsagePage
from gateway.api.reply import JSON, Reply
from gateway.domain.cards import END
from gateway.domain.errors import FieldError, Problem, invalid
from gateway.flows.show_usage import shown
from gateway.store import usage_events
from gateway.store.usage_events import Cursor

LIMIT_DEFAULT = 100
LIMIT_MAX = 1000
CURSOR_PATTERN = f"^[0-7][0-9a-f]{{47}}{END}"

_CURSOR = re.compile(CURSOR_PATTERN)
_encode = msgspec.json.Encoder().encode
_FIRST = Cursor(0, UUID(int=0))


async def feed(call: Call) -> Reply:
    after, limit = _query(call.request)
    async with call.gateway.pool.acquire() as connection:
        rows = await usage_events.page(connection, after, limit)
        if not rows and await usage_events.is_ahead(connection, after):  # its reader would wait in silence
            raise Problem("cursor_ahead")
    items = [shown(row, call.gateway.pseudonyms, call.caller_id) for row in rows]
    last = Cursor(rows[-1].position, rows[-1].event_id) if rows else after
    return Reply(
        _encode(UsagePage(items, f"{last.position:016x}{last.event_id.hex}", len(rows) == limit)),
        headers={"Content-Type": JSON, "Cache-Control": "no-store"},
    )


def _query(request: Requested) -> tuple[Cursor, int]:
    query = request.query
    if set(query) - {"after", "limit"} or len(query) != len(set(query)):
        # a name may be a value in the wrong place: it is not repeated
        raise Problem("malformed_query", "only after and limit are known, each once")
    text = query.get("limit", str(LIMIT_DEFAULT))
    if not re.fullmatch("[0-9]{1,6}", text) or not 1 <= int(text) <= LIMIT_MAX:
        raise invalid("limit", f"must be a number from 1 to {LIMIT_MAX}")
    cursor = query.get("after")
    if cursor is None:
        return _FIRST, int(text)
    if not _CURSOR.match(cursor):
        raise Problem("malformed_cursor", errors=[FieldError("after", "is not a cursor of this feed")])
    return Cursor(int(cursor[:16], 16), UUID(cursor[16:])), int(text)
