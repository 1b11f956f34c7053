"""Lines of returned usage, and how a bank sends them."""

import datetime as dt
import io
import json
import secrets
from collections.abc import Sequence
from typing import Any

from gateway.crypto.digests import sm3
from gateway.sandbox.usage_file import signed_head
from tests.registry import CARDS, TestCard
from tests.running import Client

PATH = "/v1/usage-events"


def line(card: TestCard = CARDS[0], **more: Any) -> dict[str, Any]:
    """A use of a minute ago with an id of its own. A field that is None is left out."""
    given = {
        "id": secrets.token_hex(8), "card_number": card.number, "card_identifier": card.identifier,
        "scene": "market.till", "terminal_id": "T-0001", "occurred_at": ago(minutes=1), "amount_fen": 1250,
        "discount_fen": 50, "result": "success",
    } | more  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


def reversal(of: dict[str, Any], **more: Any) -> dict[str, Any]:
    return of | {"id": secrets.token_hex(8), "reversal_of": of["id"], "occurred_at": ago()} | more


def ago(**much: float) -> str:
    return (dt.datetime.now(dt.UTC) - dt.timedelta(**much)).isoformat()


def ndjson(lines: Sequence[dict[str, Any] | bytes]) -> bytes:
    return b"".join((each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in lines)


async def send(
    client: Client, lines: Sequence[dict[str, Any] | bytes] | bytes, form: str = "x-ndjson", **headers: str
) -> tuple[int, dict[str, Any]]:
    """(status, answer) of a bulk; bytes go as they are."""
    body = lines if isinstance(lines, bytes) else ndjson(lines)
    if form == "json" and not isinstance(lines, bytes):
        body = json.dumps(lines).encode()
    sent = await client.authorization() | {"Content-Type": f"application/{form}"} | headers
    async with client.session.post(PATH, data=io.BytesIO(body), headers=sent) as answer:
        return answer.status, await answer.json()


async def returned(client: Client, *lines: dict[str, Any] | bytes) -> tuple[int, int, list[tuple[int, str]]]:
    """(created, duplicate, [(index, code) of the rejected]) of a bulk that is answered 200."""
    status, answer = await send(client, lines)
    assert status == 200, answer
    assert answer["received"] == answer["created"] + answer["duplicate"] + len(answer["rejected"])
    return answer["created"], answer["duplicate"], [(each["index"], each["code"]) for each in answer["rejected"]]


def day_file(
    signing: dict[str, str], lines: Sequence[dict[str, Any] | bytes], encoding: str = "utf-8", **changes: Any
) -> bytes:
    """A daily file of demo-bank as it should be; `changes` of its header are signed."""
    raw = [each if isinstance(each, bytes) else json.dumps(each, ensure_ascii=False).encode(encoding) for each in lines]
    data = b"".join(each + b"\n" for each in raw)
    amounts = [each.get("amount_fen", 0) for each in lines if isinstance(each, dict)]
    header = {
        "format": "yikatong-usage-1", "caller": "demo-bank", "batch_no": secrets.token_hex(8), "count": len(lines),
        "sum_fen": sum(amount for amount in amounts if isinstance(amount, int)), "digest": "sm3:" + sm3(data).hex(),
        "key_id": signing["kid"],
    } | changes  # fmt: skip
    return signed_head(header, signing) + data
