"""POST /v1/usage-events: usage that callers return, in bulk."""

from collections.abc import Iterator
from functools import partial

import msgspec

from gateway.api.middleware import Call
from gateway.api.payloads import ProblemField, RejectedLine, UsageReceipt
from gateway.api.reply import JSON, Reply
from gateway.domain.errors import Problem, invalid
from gateway.domain.usage import BULK_LINES_MAX

_encode = msgspec.json.Encoder().encode
_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode


async def return_usage(call: Call) -> Reply:
    split = partial(split_array if call.request.content_type == JSON else split_lines, call.body)
    receipt = await call.gateway.bulk_usage.run(call.caller_id, split, call.gateway.directory.scenes)
    rejected = [
        RejectedLine(each.number, each.id, each.code, [ProblemField(*error) for error in each.errors])
        for each in receipt.rejected
    ]
    answer = UsageReceipt(receipt.received, receipt.created, receipt.duplicate, rejected)
    return Reply(_encode(answer))


def split_lines(body: bytes) -> Iterator[tuple[int, bytes]]:
    """NDJSON: the lines that are not blank, numbered from 0 with those that are; of blank ones there may be as many
    again. Raises Problem 422 at once."""
    if body.count(b"\n") > 2 * BULK_LINES_MAX:
        raise _wrong_number()
    stripped = [(number, line) for number, raw in enumerate(body.split(b"\n")) if (line := raw.strip())]
    if not 1 <= len(stripped) <= BULK_LINES_MAX:
        raise _wrong_number()
    return iter(stripped)


def split_array(body: bytes) -> Iterator[tuple[int, bytes]]:
    """The items of a JSON array, numbered from 0. Raises Problem 400 or 422 at once."""
    try:
        body.decode()  # all of it: what is inside an item is not looked at here
        items = _decode_array(body)
    except msgspec.ValidationError:
        raise invalid("$", "must be an array") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Problem("malformed_json") from None
    if not 1 <= len(items) <= BULK_LINES_MAX:
        raise _wrong_number()
    return ((number, bytes(item)) for number, item in enumerate(items))


def _wrong_number() -> Problem:
    return invalid("$", f"must have 1 to {BULK_LINES_MAX} lines")
