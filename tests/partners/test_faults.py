"""A partner that misbehaves costs a typed outcome, in time, with bounded memory, and nobody else anything."""

import asyncio
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from gateway.domain.outcome import Approved, NotSent, Outcome, Unknown
from gateway.partners.breaker import Breaker, State
from gateway.partners.bulkhead import RetryBudget
from gateway.partners.call import Partners
from gateway.partners.phases import Why
from gateway.partners.transport_http import HttpTransport
from tests.faults.waiting import until
from tests.partners.peers import Behaviour, Talk, approval, block, good, partners, peer, purchase
from tests.running import free_port
from tests.tls import make_certificates

_TIMEOUT_S = 0.4
_GRACE_S = 0.25
"""A busy machine of two cores."""
_MEMORY_MAX_BYTES = 8 << 20


async def black_hole(talk: Talk) -> None:
    await talk.request()
    await talk.for_ever()


async def drip(talk: Talk) -> None:
    """A good answer, a byte at a time, which would take half a minute."""
    body = approval(await talk.request())
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body:
        await talk.send(bytes([byte]))
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await talk.reader.read(1)


async def reset(talk: Talk) -> None:
    await talk.request()
    talk.reset()


async def close(talk: Talk) -> None:
    await talk.request()


async def garbage(talk: Talk) -> None:
    await talk.request()
    await talk.send(b"\x16\x03\x01 not http \xff\x00\r\n\r\n" * 50)
    await talk.for_ever()


async def huge(talk: Talk) -> None:
    """100 MB without a length."""
    await talk.request()
    await talk.send(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(1600):
        await talk.send(b"x" * 65_536)


async def huge_chunks(talk: Talk) -> None:
    await talk.request()
    await talk.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6400000\r\n")
    for _ in range(1600):
        await talk.send(b"x" * 65_536)


async def announced(talk: Talk) -> None:
    await talk.request()
    await talk.send(b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n{")
    await talk.for_ever()


async def endless_headers(talk: Talk) -> None:
    await talk.request()
    await talk.send(b"HTTP/1.1 200 OK\r\n")
    for number in range(2_000_000):
        await talk.send(b"X-%d: %s\r\n" % (number, b"y" * 900))


async def endless_line(talk: Talk) -> None:
    await talk.request()
    await talk.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
    for _ in range(1600):
        await talk.send(b"x" * 65_536)


async def endless_continues(talk: Talk) -> None:
    await talk.request()
    for _ in range(2_000_000):
        await talk.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 400)


async def too_long(talk: Talk) -> None:
    """Says more than it sends."""
    body = approval(await talk.request())
    await talk.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(body) + 5), body)


async def too_short(talk: Talk) -> None:
    """Says less than it sends."""
    body = approval(await talk.request())
    await talk.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(body) - 5), body)


async def no_number(talk: Talk) -> None:
    body = approval(await talk.request())
    await talk.send(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", body)


async def error_page(talk: Talk) -> None:
    while True:
        await talk.request()
        await talk.answer(b"<html>502</html>", 502)


async def zipped(talk: Talk) -> None:
    """An encoding that was not asked for, as a bomb comes."""
    await talk.request()
    await talk.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 20\r\n\r\n", b"\x1f\x8b" * 10)


async def other_charset(talk: Talk) -> None:
    body = approval(await talk.request()).decode().encode("utf-16")
    await talk.answer(body)


@contextmanager
def memory() -> Iterator[Callable[[], int]]:
    """The most bytes that were held at once inside, the peer's own buffers among them."""
    tracemalloc.start()
    try:
        yield lambda: peak
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


async def timed(made: Partners, name: str = "bad", seconds: float = 5.0) -> tuple[Outcome, float]:
    began = time.monotonic()
    outcome = await made.call(name, purchase(), began + seconds)
    return outcome, time.monotonic() - began


AFTER_THE_FIRST_BYTE: list[tuple[Behaviour, Why | None]] = [
    (black_hole, Why.LATE),
    (drip, Why.LATE),
    (reset, Why.NO_ANSWER),
    (close, Why.NO_ANSWER),
    (garbage, Why.NO_ANSWER),
    (huge, Why.NO_ANSWER),
    (huge_chunks, Why.NO_ANSWER),
    (announced, Why.NO_ANSWER),
    (endless_headers, Why.NO_ANSWER),
    (endless_line, Why.NO_ANSWER),
    (endless_continues, Why.NO_ANSWER),
    (too_long, Why.NO_ANSWER),
    (too_short, None),
    (no_number, Why.NO_ANSWER),
    (error_page, None),
    (zipped, Why.NO_ANSWER),
    (other_charset, None),
]


@pytest.mark.parametrize(("behaviour", "why"), AFTER_THE_FIRST_BYTE, ids=lambda item: getattr(item, "__name__", ""))
async def test_after_the_first_byte_all_is_unknown(behaviour: Behaviour, why: Why | None, tmp_path: Path) -> None:
    async with peer(behaviour) as bad, partners(tmp_path, block("bad", bad.port)) as made:
        with memory() as peak:
            outcome, seconds = await timed(made)
        assert isinstance(outcome, Unknown), outcome
        assert why is None or outcome.why == why
        assert seconds < _TIMEOUT_S + _GRACE_S
        assert peak() < _MEMORY_MAX_BYTES
        assert len(bad.requests) == 1, "what may have been done is not sent again"
        [entry] = made.transcript("bad")
        assert entry.outcome == "unknown"
        assert purchase().account.reveal() not in str(entry)


class Unbounded(HttpTransport):
    """The planted bug: reads whatever comes."""

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        return await response.read()


async def test_a_transport_without_a_bound_is_caught(tmp_path: Path) -> None:
    async with (
        peer(huge) as bad,
        partners(tmp_path, block("bad", bad.port, "timeout_ms = 5000").replace("timeout_ms = 400\n", "")) as made,
    ):
        working = made.registry.get("bad")
        assert working is not None and working.block.http is not None
        working.transport = Unbounded(working.block.http, tmp_path, 1, working.block.body_max_bytes)
        with memory() as peak:
            await timed(made)
        assert peak() > _MEMORY_MAX_BYTES


async def test_before_the_first_byte_nothing_was_sent(tmp_path: Path) -> None:
    async with partners(tmp_path, block("bad", free_port())) as made:
        outcome, seconds = await timed(made)
        assert outcome == NotSent(Why.NO_CONNECTION)
        assert seconds < _TIMEOUT_S + _GRACE_S
        attempts = [entry.attempt for entry in made.transcript("bad")]
        assert attempts == [1, 2], "what was not sent is tried again, within the budget"


async def test_a_handshake_that_never_ends_was_not_sent(tmp_path: Path) -> None:
    async def silent(talk: Talk) -> None:
        await talk.for_ever()

    async with peer(silent) as bad, partners(tmp_path, block("bad", bad.port, scheme="https")) as made:
        outcome, seconds = await timed(made)
        assert outcome == NotSent(Why.LATE)
        assert seconds < _TIMEOUT_S + _GRACE_S


@pytest.mark.parametrize("expired", [False, True], ids=["a stranger's certificate", "an expired one"])
async def test_a_partner_that_cannot_prove_itself_gets_nothing(tmp_path: Path, expired: bool) -> None:
    ca, context = make_certificates(tmp_path / "tls", expired=expired)
    bad_requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bad_requests.append(await reader.read(1))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    http = f'ca_file = "{ca}"' if expired else ""
    async with partners(tmp_path, block("bad", port, scheme="https", http=http)) as made:
        outcome, _ = await timed(made)
    server.close()
    assert outcome == NotSent(Why.NO_CONNECTION)
    assert not any(bad_requests)


async def test_half_of_the_answers_are_5xx(tmp_path: Path) -> None:
    async def half(talk: Talk) -> None:
        while True:
            request = await talk.request()
            if len(talk.peer.requests) % 2:
                await talk.answer(b"<html>503</html>", 503)
            else:
                await talk.answer(approval(request))

    async with peer(half) as bad, partners(tmp_path, block("bad", bad.port)) as made:
        outcomes = [(await timed(made))[0] for _ in range(20)]
    assert [type(outcome) for outcome in outcomes] == [Unknown, Approved] * 10
    assert len(bad.requests) == 20


async def test_the_breaker_opens_within_five_failures_and_probes_in_time(tmp_path: Path) -> None:
    now = 1000.0
    async with peer(close) as bad, partners(tmp_path, block("bad", bad.port)) as made:
        working = made.registry.get("bad")
        assert working is not None
        assert working.block.breaker.open_s <= 30
        working.breaker = Breaker(5, 30, lambda: now)
        outcomes = [(await timed(made))[0] for _ in range(50)]
        assert [type(outcome) for outcome in outcomes] == [Unknown] * 5 + [NotSent] * 45
        assert set(outcomes[5:]) == {NotSent(Why.BREAKER_OPEN)}
        assert len(bad.requests) == 5
        now += 30  # one probe, which fails
        outcomes = [(await timed(made))[0] for _ in range(10)]
        assert [type(outcome) for outcome in outcomes] == [Unknown] + [NotSent] * 9
        now += 30  # one probe, which is answered
        bad.behaviour = good
        outcomes = list(await asyncio.gather(*(made.call("bad", purchase(), time.monotonic() + 1) for _ in range(3))))
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Approved", "NotSent", "NotSent"]
        assert working.breaker.state is State.CLOSED
        assert isinstance((await timed(made))[0], Approved)


async def test_a_breaker_that_never_opens_is_caught(tmp_path: Path) -> None:
    async with peer(close) as bad, partners(tmp_path, block("bad", bad.port)) as made:
        working = made.registry.get("bad")
        assert working is not None
        working.breaker = Breaker(1_000_000, 30)
        for _ in range(20):
            await timed(made)
        assert len(bad.requests) > 5


async def connections_tried(tmp_path: Path, retries: RetryBudget | None = None) -> int:
    """Of 100 calls to a partner that never gets as far as a connection, with a breaker that does not open."""

    async def no_handshake(talk: Talk) -> None:
        talk.reset()

    async with peer(no_handshake) as bad, partners(tmp_path, block("bad", bad.port, scheme="https")) as made:
        working = made.registry.get("bad")
        assert working is not None
        working.breaker = Breaker(1_000_000, 30)
        working.retries = retries or working.retries
        for _ in range(100):
            assert isinstance((await timed(made))[0], NotSent)
        return bad.connections


async def test_retries_are_a_tenth_of_the_calls_at_most(tmp_path: Path) -> None:
    assert 100 < await connections_tried(tmp_path) <= 111, "one more is saved from the beginning"


async def test_a_budget_that_is_none_is_caught(tmp_path: Path) -> None:
    assert await connections_tried(tmp_path, RetryBudget(100)) > 111


async def test_the_callers_deadline_comes_first(tmp_path: Path) -> None:
    text = block("bad", 0).replace("timeout_ms = 400", "timeout_ms = 30_000")
    async with peer(black_hole) as bad, partners(tmp_path, text.replace(":0/", f":{bad.port}/")) as made:
        outcome, seconds = await timed(made, seconds=0.2)
        assert outcome == Unknown(Why.LATE)
        assert 0.15 < seconds < 0.2 + _GRACE_S
        outcome, seconds = await timed(made, seconds=-1)
        assert outcome == NotSent(Why.LATE)
        assert len(bad.requests) == 1


async def test_a_call_that_is_given_up_leaves_nothing_behind(tmp_path: Path) -> None:
    """Who gives a call up has not learnt anything of the partner, and holds no place."""
    async with peer(black_hole) as bad, partners(tmp_path, block("bad", bad.port)) as made:
        working = made.registry.get("bad")
        assert working is not None
        for _ in range(10):
            bad.requests.clear()
            task = asyncio.create_task(made.call("bad", purchase(), time.monotonic() + 5))
            await until(lambda: bool(bad.requests), 2, "the peer has the request")
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        assert working.bulkhead.in_flight == 0
        assert working.breaker.state is State.CLOSED


async def test_a_worker_that_stops_does_not_wait_for_a_partner(tmp_path: Path) -> None:
    text = block("bad", 0).replace("timeout_ms = 400", "timeout_ms = 30_000")
    async with peer(black_hole) as bad, partners(tmp_path, text.replace(":0/", f":{bad.port}/")) as made:
        running = asyncio.create_task(made.call("bad", purchase(), time.monotonic() + 30))
        await until(lambda: bool(bad.requests), 2, "the peer has the request")
        began = time.monotonic()
        await made.close()
        assert isinstance(await running, Unknown)
        assert time.monotonic() - began < 1 + 4 * _GRACE_S


async def hammered(made: Partners, calls: int = 40) -> tuple[list[float], int]:
    """Seconds of good calls while another partner is a black hole under load, and how many were answered."""
    background = [asyncio.create_task(made.call("bad", purchase(), time.monotonic() + 5)) for _ in range(100)]
    measured = [await timed(made, "good") for _ in range(calls)]
    await asyncio.gather(*background)
    return sorted(seconds for _, seconds in measured), sum(isinstance(outcome, Approved) for outcome, _ in measured)


_NO_BREAKER = "breaker = { failures = 5, open_s = 1 }\nconcurrency_max = 4\nwaiting_max = 8"


async def test_one_bad_partner_does_not_hurt_another(tmp_path: Path) -> None:
    async with peer(black_hole) as bad, peer() as well:
        blocks = (block("bad", bad.port, _NO_BREAKER), block("good", well.port, _NO_BREAKER))
        async with partners(tmp_path, *blocks) as made:
            seconds, answered = await hammered(made)
        assert answered == 40
        assert seconds[-2] < 0.1, seconds


async def test_a_shared_pool_is_caught(tmp_path: Path) -> None:
    """Control: one bulkhead for both, and the good partner's calls are hurt."""
    async with peer(black_hole) as bad, peer() as well:
        blocks = (block("bad", bad.port, _NO_BREAKER), block("good", well.port, _NO_BREAKER))
        async with partners(tmp_path, *blocks) as made:
            one, other = made.registry.get("bad"), made.registry.get("good")
            assert one is not None and other is not None
            one.bulkhead = other.bulkhead
            _, answered = await hammered(made)
        assert answered < 40
