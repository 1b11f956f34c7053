"""What is not well-formed HTTP, and what is unusual but well-formed, on raw sockets."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest

from tests.registry import CARDS
from tests.running import Client, Running, eventually, exchange, labelled, read_answer, request, send_raw, verify_body

PATH = "/v1/cards/verify"
MARK = b"110105194912310021"
GOOD = json.dumps(verify_body(CARDS[0].number, CARDS[0].identifier)).encode()
HOST = b"Host: gateway\r\n"

MALFORMED = {
    "no HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00" + MARK + b"\r\n\r\n",
    "words": b"hello " + MARK + b"\r\n\r\n",
    "no version": b"GET /" + MARK + b"\r\n" + HOST + b"\r\n",
    "version 9.9": b"GET / HTTP/9.9\r\n" + HOST + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a method nobody knows": b"B@D / HTTP/1.1\r\n" + HOST + b"\r\n",
    "blanks in the path": b"GET /a " + MARK + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "a NUL in the path": b"GET /\x00" + MARK + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "a NUL in a header": b"GET / HTTP/1.1\r\n" + HOST + b"X-Note: \x00" + MARK + b"\r\n\r\n",
    "a NUL in a header's name": b"GET / HTTP/1.1\r\n" + HOST + b"X\x00Note: " + MARK + b"\r\n\r\n",
    "a bare CR in a header": b"GET / HTTP/1.1\r\n" + HOST + b"X-Note: a\rb" + MARK + b"\r\n\r\n",
    "a header without a colon": b"GET / HTTP/1.1\r\n" + HOST + b"X-Note " + MARK + b"\r\n\r\n",
    "a blank before the colon": b"GET / HTTP/1.1\r\n" + HOST + b"X-Note : " + MARK + b"\r\n\r\n",
    "a header without a name": b"GET / HTTP/1.1\r\n" + HOST + b": " + MARK + b"\r\n\r\n",
    "a folded header": b"GET / HTTP/1.1\r\n" + HOST + b"X-Note: a\r\n " + MARK + b"\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "the same length twice": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
    "a list of lengths": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5, 5\r\n\r\nabcde",
    "a length and chunks": b"POST / HTTP/1.1\r\n" + HOST
    + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": b"POST / HTTP/1.1\r\n" + HOST
    + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "chunked, then gzip": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked twice": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "a negative length": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
    "a length with a sign": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +5\r\n\r\nabcde",
    "a length in hex": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 0x5\r\n\r\nabcde",
    "a length beyond 64 bits": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
    "an empty length": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: \r\n\r\n",
    "a huge request line": b"GET /" + MARK * 5000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "a huge header": b"GET / HTTP/1.1\r\n" + HOST + b"X-Note: " + MARK * 5000 + b"\r\n\r\n",
    "a huge header's name": b"GET / HTTP/1.1\r\n" + HOST + b"X" * 70_000 + b": " + MARK + b"\r\n\r\n",
    "ten thousand headers": b"GET / HTTP/1.1\r\n" + HOST
    + b"".join(b"X-%d: %s\r\n" % (number, MARK) for number in range(10_000)) + b"\r\n",
}  # fmt: skip

BAD_CHUNKS = {
    "a size that is no number": b"Z\r\n" + MARK + b"\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"f" * 20 + b"\r\n" + MARK + b"\r\n0\r\n\r\n",
    "a negative size": b"-1\r\n" + MARK + b"\r\n0\r\n\r\n",
    "a chunk longer than its size": b"1\r\n" + MARK + b"\r\n0\r\n\r\n",
    "a size ended by LF alone": b"12\n" + MARK + b"\r\n0\r\n\r\n",
}


def answers(received: bytes) -> list[int]:
    """The statuses of the answers, of which every one is ours."""
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] ([0-9]{3}) ", received)]


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_http_is_one_problem_and_the_end_of_the_connection(gateway: Running, name: str) -> None:
    before = len(gateway.log)
    received = await exchange(gateway.port, MALFORMED[name] + b"GET /docs HTTP/1.1\r\nHost: gateway\r\n\r\n")
    assert answers(received) == [400], received[:400]
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"Content-Type: application/problem+json" in head
    assert head.startswith(b"HTTP/1.0") or b"Connection: close" in head
    assert b"X-Request-Id: " in head and b"Server: yikatong" in head
    assert json.loads(body)["code"] == "malformed_request"
    assert MARK not in received and b"Traceback" not in received
    assert_quiet(gateway.log[before:])


def assert_quiet(logged: str) -> None:
    """No traceback, no bytes of the request, no error: it is the client's, and clients do this all day."""
    assert MARK.decode() not in logged and "Traceback" not in logged and "X-Note" not in logged
    assert not [line for line in logged.splitlines() if json.loads(line)["level"] in ("error", "critical")], logged


@pytest.mark.parametrize("name", BAD_CHUNKS)
async def test_a_malformed_chunk_is_refused_and_nothing_is_recorded(
    merchant: Client, bureau: Client, name: str
) -> None:
    before = len(merchant.gateway.log)
    head = request(
        "POST", PATH, content_length=None, transfer_encoding="chunked",
        authorization=f"Bearer {await merchant.token()}",
    )  # fmt: skip
    received = await exchange(merchant.gateway.port, head + BAD_CHUNKS[name])
    assert answers(received) == [400], received[:400]
    assert MARK not in received
    assert_quiet(merchant.gateway.log[before:])


@pytest.mark.parametrize("name", BAD_CHUNKS)
async def test_a_malformed_chunk_that_comes_late_is_refused_at_once(merchant: Client, name: str) -> None:
    """The handler waits for the body by then."""
    head = request(
        "POST", PATH, b"1\r\n{\r\n", content_length=None, transfer_encoding="chunked",
        authorization=f"Bearer {await merchant.token()}",
    )  # fmt: skip
    reader, writer = await asyncio.open_connection("127.0.0.1", merchant.gateway.port)
    async with asyncio.timeout(5):
        writer.write(head)
        await both_workers_have_looked(merchant.gateway)
        writer.write(BAD_CHUNKS[name])
        received = await reader.read()
    writer.close()
    assert answers(received) == [400], received[:400]
    assert b"Connection: close" in received and MARK not in received


async def test_what_comes_to_no_route_is_counted(gateway: Running) -> None:
    wanted = {("none", "400"), ("none", "404"), ("none", "405")}

    async def counted() -> dict[tuple[str, ...], float]:
        found = labelled(await gateway.metrics(), "yikatong_http_requests_total")
        return {labels: found.get(labels, 0) for labels in wanted}

    before = await counted()
    await send_raw(gateway.port, request("GET", "/v1/" + MARK.decode()))
    await send_raw(gateway.port, request("DELETE", PATH))
    await exchange(gateway.port, MALFORMED["words"])

    async def all_more() -> bool:
        after = await counted()
        return all(after[labels] > before[labels] for labels in wanted)

    await eventually(all_more, 5, "each is counted")


async def test_bytes_of_chance_are_no_request(gateway: Running) -> None:
    before = len(gateway.log)
    for _ in range(50):
        received = await exchange(gateway.port, os.urandom(200) + b"\r\n\r\n")
        assert set(answers(received)) <= {400}
    assert_quiet(gateway.log[before:])


async def signed(client: Client, number: int, body: bytes = GOOD, **headers: str | None) -> bytes:
    authorization = f"Bearer {await client.token()}"
    return request("POST", PATH, body, authorization=authorization, x_request_id=f"number-{number}", **headers)


@pytest.mark.parametrize("pieces", [1, 2, 50])
async def test_pipelined_requests_are_answered_in_their_order(merchant: Client, pieces: int) -> None:
    """Ordinary ones, refused ones and a slow one (with an idempotency key) by turns."""
    key = f"pipelined-{pieces}"
    sent = [
        await signed(merchant, 0), await signed(merchant, 1, b"{}"), await signed(merchant, 2, idempotency_key=key),
        await signed(merchant, 3), await signed(merchant, 4, b"[", content_type="text/plain"),
        request("GET", "/v1/nothing"), await signed(merchant, 6), await signed(merchant, 7, idempotency_key=key),
    ]  # fmt: skip
    raw = b"".join(sent)
    reader, writer = await asyncio.open_connection("127.0.0.1", merchant.gateway.port)
    size = -(-len(raw) // pieces)
    async with asyncio.timeout(10):
        for start in range(0, len(raw), size):
            writer.write(raw[start : start + size])
            await writer.drain()
            await asyncio.sleep(0)
        got = [await read_answer(reader) for _ in sent]
    writer.close()
    assert [answer.status for answer in got] == [200, 422, 200, 200, 415, 404, 200, 200]
    ids = [answer.header("X-Request-Id") for answer in got]
    assert [found for number, found in enumerate(ids) if number != 5] == [f"number-{n}" for n in range(8) if n != 5]


@asynccontextmanager
async def events_held(gateway: Running) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    """No event can be written meanwhile; gives a function that says whether one is waiting to be."""
    dsn = gateway.environment["DATABASE_URL"]
    holder, observer = await asyncpg.connect(dsn), await asyncpg.connect(dsn)

    async def waiting() -> bool:
        return bool(
            await observer.fetchval(
                "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database d ON d.oid = database"
                " WHERE NOT granted AND datname = current_database())"
            )
        )

    try:
        async with holder.transaction():
            await holder.execute("LOCK TABLE usage_event IN SHARE MODE")
            yield waiting
    finally:
        await holder.close()
        await observer.close()


async def both_workers_have_looked(gateway: Running) -> None:
    """What was sent before is read by now: each worker has since read and answered something else."""
    for _ in range(20):
        assert (await send_raw(gateway.port, request("GET", "/.well-known/jwks.json"))).status == 200


SECOND = {"a verdict": (GOOD, 200), "a refusal": (b"{}", 422), "another type": (GOOD, 415)}


@pytest.mark.parametrize("cut", [None, 20, -5], ids=["whole", "its head cut", "its body cut"])
@pytest.mark.parametrize("second", SECOND)
async def test_a_request_that_comes_while_the_first_is_judged_is_answered_next(
    merchant: Client, second: str, cut: int | None
) -> None:
    body, status = SECOND[second]
    content_type = "text/plain" if status == 415 else "application/json"
    first, after = await signed(merchant, 0), await signed(merchant, 1, body, content_type=content_type)
    reader, writer = await asyncio.open_connection("127.0.0.1", merchant.gateway.port)
    async with asyncio.timeout(10):
        async with events_held(merchant.gateway) as waiting:
            writer.write(first)
            assert await eventually(waiting, 0.8, "the first request's event waits to be written")
            writer.write(after[:cut])
            await both_workers_have_looked(merchant.gateway)
        answers = [await read_answer(reader)]
        writer.write(b"" if cut is None else after[cut:])
        answers.append(await read_answer(reader))
        writer.write(await signed(merchant, 2))
        answers.append(await read_answer(reader))
    writer.close()
    assert [answer.status for answer in answers] == [200, status, 200]
    assert [answer.header("X-Request-Id") for answer in answers] == ["number-0", "number-1", "number-2"]


async def test_one_connection_serves_many_requests(merchant: Client) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", merchant.gateway.port)
    async with asyncio.timeout(20):
        for number in range(100):
            writer.write(await signed(merchant, number, b"{" if number % 7 == 3 else GOOD))
            answer = await read_answer(reader)
            assert answer.status == (400 if number % 7 == 3 else 200)
            assert answer.header("X-Request-Id") == f"number-{number}"
    writer.close()


@pytest.mark.parametrize(
    ("version", "connection", "stays"),
    [("1.1", None, True), ("1.1", "close", False), ("1.0", None, False), ("1.0", "keep-alive", True)],
)
async def test_the_connection_stays_as_the_client_wishes(
    merchant: Client, version: str, connection: str | None, stays: bool
) -> None:
    sent = (await signed(merchant, 0, connection=connection)).replace(b"HTTP/1.1", f"HTTP/{version}".encode())
    reader, writer = await asyncio.open_connection("127.0.0.1", merchant.gateway.port)
    async with asyncio.timeout(10):
        writer.write(sent)
        assert (await read_answer(reader)).status == 200
        if stays:
            writer.write(sent)
            assert (await read_answer(reader)).status == 200
        else:
            assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize("half", [False, True], ids=["closes", "half-closes"])
async def test_a_client_that_hangs_up_loses_nothing_that_was_begun(
    merchant: Client, bureau: Client, half: bool
) -> None:
    """50 requests whose clients do not wait for the answer: each has its event."""
    terminal = f"P-hang-up-{half}"
    body = json.dumps(verify_body(CARDS[0].number, CARDS[0].identifier, terminal_id=terminal)).encode()
    writers = []
    for number in range(50):
        _, writer = await asyncio.open_connection("127.0.0.1", merchant.gateway.port)
        writer.write(await signed(merchant, number, body))
        await writer.drain()
        if half:
            writer.write_eof()
            writers.append(writer)
        else:
            writer.close()
            await writer.wait_closed()

    async def recorded() -> bool:
        return len(await bureau.events_at(terminal, merchant)) == 50

    assert await eventually(recorded, 10, "50 events")
    for writer in writers:
        writer.close()
