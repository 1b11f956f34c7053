"""Clients that hold a connection without using it: headers are cut off after 15 s, bodies after 20 s (issue)."""

import asyncio
import json
import time
from typing import NamedTuple

from tests.registry import CARDS
from tests.running import Client, Running, request, verify_body

OK = CARDS[0]
PATH = "/v1/cards/verify"


class Slow(NamedTuple):
    """What a client sends, one piece a second, and what must have become of it."""

    pieces: list[bytes]
    within_s: float
    hears: bytes


async def seconds_until_closed(port: int, pieces: list[bytes]) -> tuple[float, bytes]:
    """How long the gateway kept the connection, and all that it said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began, received = time.monotonic(), b""

    async def drip() -> None:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(1)

    dripping = asyncio.create_task(drip())
    try:
        async with asyncio.timeout(35):
            while part := await reader.read(65_536):
                received += part
    except ConnectionError:
        pass
    finally:
        dripping.cancel()
        writer.close()
    return time.monotonic() - began, received


def clients(token: str) -> dict[str, Slow]:
    good = json.dumps(verify_body(OK.number, OK.identifier)).encode()
    authorization = f"Bearer {token}"
    head = request("POST", PATH, content_length="100", authorization=authorization)
    form = request("POST", "/oauth2/token", content_length="100", content_type="application/x-www-form-urlencoded")
    chunked = request("POST", PATH, content_length=None, transfer_encoding="chunked", authorization=authorization)
    whole, refused = request("POST", PATH, good, authorization=authorization), request("GET", "/v1/nothing")
    header_s, body_s = 15.5, 20.5  # half a second for a busy machine
    return {
        "silent": Slow([b""], header_s, b""),
        "half a request line": Slow([b"POST /v1/ca"], header_s, b""),
        "half a header block": Slow([head[:60]], header_s, b""),
        "a header byte now and then": Slow([head[:60], *[b"x"] * 30], header_s, b""),
        "a header line now and then": Slow([head[:-2], *[b"X-Note: y\r\n"] * 30], header_s, b""),
        "idle after a request": Slow([whole], header_s, b"200"),
        "half a header block after a verdict": Slow([whole, head[:60]], header_s + 1, b"200"),
        "half a header block after a refusal": Slow([refused, head[:60]], header_s + 1, b"404"),
        "a header byte now and then after a verdict": Slow([whole, head[:60], *[b"x"] * 30], header_s + 1, b"200"),
        "no body": Slow([head], body_s, b"408"),
        "half a body": Slow([head + good[:30]], body_s, b"408"),
        "a body byte now and then": Slow([head, *[b" "] * 30], body_s, b"408"),
        "a form byte now and then": Slow([form, *[b"a"] * 30], body_s, b"408"),
        "a chunk now and then": Slow([chunked, *[b"1\r\n \r\n"] * 30], body_s, b"408"),
    }


async def test_slow_headers_and_slow_bodies_are_cut_off_and_others_are_served(
    gateway: Running, merchant: Client
) -> None:
    """All at once, for it takes as long as the longest deadline."""
    slow = clients(await merchant.token())
    closing = asyncio.gather(*(seconds_until_closed(gateway.port, client.pieces) for client in slow.values()))
    honest = [(await merchant.verify(OK.number, OK.identifier))["reason"] for _ in range(100)]
    assert not closing.done() and set(honest) == {"ok"}
    wrong = {}
    for (name, client), (seconds, said) in zip(slow.items(), await closing, strict=True):
        heard = said.split(b" ", 2)[1] if said else b""
        told_why = client.hears != b"408" or b'"code":"receive_timeout"' in said
        if not 5 < seconds <= client.within_s or heard != client.hears or not told_why:
            wrong[name] = (round(seconds, 1), said[:200])
    assert wrong == {}
