"""A long-lived link: many calls at once, each with its own reply; whatever breaks, each ends in time as what it is."""

import asyncio
import socket
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.partners.framing import BadFrame, FrameReader, Framing, with_length
from gateway.partners.transport_iso8583 import Link, LinkSettings, pause_max_s
from tests.faults.waiting import until
from tests.partners.iso_bank import Late
from tests.partners.plain_peer import Peer, ask, framed, link_to, ready

IN_FLIGHT = 500


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = await Peer().start()
    yield peer
    await peer.stop()


async def in_flight(link: Link, peer: Peer, count: int, within_s: float = 5.0) -> list[asyncio.Task[str]]:
    """So many calls of which the peer has every byte."""
    tasks = [asyncio.create_task(ask(link, f"k{number}", within_s)) for number in range(count)]
    await until(lambda: len(peer.asked) >= count, 5, "the peer has the calls")
    return tasks


async def test_500_calls_in_flight_get_their_own_replies_in_any_order(peer: Peer) -> None:
    link = await ready(link_to(peer))
    tasks = await in_flight(link, peer, IN_FLIGHT)
    assert link.in_flight == IN_FLIGHT
    for key in reversed(peer.asked):
        peer.answer(key)
    assert await asyncio.gather(*tasks) == ["done"] * IN_FLIGHT
    assert link.in_flight == 0
    assert peer.connections == 1
    await link.close()


async def test_a_key_in_flight_is_refused(peer: Peer) -> None:
    link = await ready(link_to(peer))
    (first,) = await in_flight(link, peer, 1)
    assert await ask(link, "k0") == "not sent: a call of this key is in flight"
    assert link.counts.duplicates_refused == 1
    peer.answer("k0")
    assert await first == "done"
    peer.on_call = peer.answer
    assert await ask(link, "k0") == "done"
    await link.close()


async def test_its_own_messages_have_traces_that_no_payment_has(peer: Peer) -> None:
    for chance in (0.0, 0.5, 0.999_999):
        await (await ready(link_to(peer, chance=lambda chance=chance: chance))).close()  # type: ignore[misc]
    assert peer.link_traces == [900_000, 900_001, 950_000, 950_001, 999_999, 900_000], "and begin apart"


class _TakesDuplicates(Link):
    def _admit(self, key: str, left_s: float) -> None:
        """Planted: no look at the keys in flight."""


async def test_control_a_second_call_of_a_key_would_take_the_reply_of_the_first(peer: Peer) -> None:
    link = await ready(link_to(peer, kind=_TakesDuplicates))
    (first,) = await in_flight(link, peer, 1, within_s=0.3)
    second = asyncio.create_task(ask(link, "k0"))
    await until(lambda: len(peer.asked) == 2, 2, "the peer has the second")
    peer.answer("k0")  # to the first
    assert await second == "done"
    assert (await first).startswith("unknown")
    await link.close()


async def _cut_with_some_queued(peer: Peer, link: Link) -> dict[str, str]:
    """Calls until the connection takes no more and some are queued; then the peer reads what came, and hangs up."""
    await ready(link)
    peer.reading.clear()
    tasks: dict[str, asyncio.Task[str]] = {}
    while len(tasks) < 3000 and not (link._queue and len(link._queue) >= 20):
        key = f"k{len(tasks)}"
        tasks[key] = asyncio.create_task(ask(link, key, filler=4_000))
        await asyncio.sleep(0)
    assert len(link._queue) >= 20
    peer.on_call = lambda key: peer.hang_up() if len(peer.asked) == 30 else None
    peer.reading.set()
    return {key: await task for key, task in tasks.items()}


def misnamed(peer: Peer, outcomes: dict[str, str]) -> list[str]:
    """Calls said to be not sent whose message the peer has."""
    return [key for key in peer.asked if outcomes[key].startswith("not sent")]


SLOW_PEER: dict[str, Any] = {
    "write_buffer_max_bytes": 1000,
    "in_flight_max": 5000,
    "queued_max": 20,
    "frame_max_bytes": 5000,
}


async def test_a_broken_link_ends_what_left_as_unknown_and_the_queued_as_not_sent(peer: Peer) -> None:
    link = link_to(peer, **SLOW_PEER)
    began = asyncio.get_running_loop().time()
    outcomes = await _cut_with_some_queued(peer, link)
    assert asyncio.get_running_loop().time() - began < 4  # none waited for its deadline of 5 s
    assert len(peer.asked) >= 30
    assert misnamed(peer, outcomes) == []
    assert {outcome.partition(":")[0] for outcome in outcomes.values()} == {"unknown", "not sent"}
    await link.close()


class _SaysNotSent(Link):
    """Planted: what was in flight when the connection broke counts as not sent."""

    def connection_ended(self, wire: object, why: str) -> None:
        for call in self._calls.values():
            call.sent = False
        super().connection_ended(wire, why)  # type: ignore[arg-type]


async def test_control_a_wrong_not_sent_would_be_found(peer: Peer) -> None:
    link = link_to(peer, kind=_SaysNotSent, **SLOW_PEER)
    assert misnamed(peer, await _cut_with_some_queued(peer, link)) != []
    await link.close()


async def test_the_queue_is_bounded_and_its_calls_end_at_their_deadlines(peer: Peer) -> None:
    link = await ready(link_to(peer, **SLOW_PEER))
    peer.reading.clear()
    tasks = list[asyncio.Task[str]]()
    while len(link._queue) < 20:
        tasks.append(asyncio.create_task(ask(link, f"k{len(tasks)}", 1.5, filler=4_000)))
        await asyncio.sleep(0)
    assert await ask(link, "one-more", 0.3) == "not sent: the link's queue is full"
    outcomes = await asyncio.gather(*tasks)
    assert {outcome.partition(":")[0] for outcome in outcomes[:-20]} == {"unknown"}
    assert set(outcomes[-20:]) == {"not sent: the deadline has passed"}
    assert link.in_flight == len(link._queue) == 0
    peer.reading.set()
    await link.close()


async def test_a_full_link_and_an_over_long_message_are_not_sent(peer: Peer) -> None:
    link = await ready(link_to(peer, in_flight_max=1, frame_max_bytes=100))
    assert await ask(link, "long", filler=100) == "not sent: an empty or over-long message"
    (first,) = await in_flight(link, peer, 1)
    assert await ask(link, "second") == "not sent: the link is full"
    peer.answer("k0")
    assert await first == "done"
    assert await ask(link, "late", within_s=0) == "not sent: no time left"
    await link.close()


async def test_a_late_reply_is_handed_on(peer: Peer) -> None:
    late = Late()
    link = await ready(link_to(peer, late))
    (early,) = await in_flight(link, peer, 1, within_s=0.05)
    assert await early == "unknown: the deadline has passed"
    peer.answer("k0")
    await until(lambda: late.messages == [b"! k0 done"], 2, "the late reply is handed on")
    cancelled = asyncio.create_task(ask(link, "k1"))
    await until(lambda: "k1" in peer.asked, 2, "the peer has it")
    cancelled.cancel()
    await asyncio.wait({cancelled})
    peer.answer("k1")
    await until(lambda: link.counts.late == 2, 2, "so is that of a cancelled call")
    peer.on_call = peer.answer
    assert await ask(link, "k2") == "done"
    await link.close()


async def test_what_goes_wrong_with_a_late_reply_breaks_nothing(peer: Peer) -> None:
    link = await ready(link_to(peer))
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    try:
        link._on_late = lambda message: [][0]
        peer.answer("nobodys")
        await until(lambda: len(told) == 1, 2, "the loop is told")
    finally:
        asyncio.get_running_loop().set_exception_handler(None)
    peer.on_call = peer.answer
    assert await ask(link, "k") == "done"
    assert (link.counts.late, peer.connections) == (1, 1)
    await link.close()


async def test_requests_of_the_peers_own_are_counted(peer: Peer) -> None:
    link = await ready(link_to(peer))
    peer.send(framed(b"? theirs"))
    await until(lambda: link.counts.unasked == 1, 2, "counted")
    assert link.state == "ready"
    await link.close()


@pytest.mark.parametrize(
    "raw", [framed(b"what"), b"\x00\x00", b"\xff\xff", framed(b"! k1 x") + b"\x7f\xff\x00"],
    ids=["unreadable", "empty", "over-long", "after-a-good-one"],
)  # fmt: skip
async def test_garbage_closes_the_link_and_ends_what_is_in_flight_at_once(peer: Peer, raw: bytes) -> None:
    link = await ready(link_to(peer))
    (lost,) = await in_flight(link, peer, 1)
    began = asyncio.get_running_loop().time()
    peer.send(raw)
    assert (await lost).startswith("unknown: an ")
    assert asyncio.get_running_loop().time() - began < 1
    await until(lambda: link.state == "ready" and peer.connections == 2, 5, "the link comes back")
    peer.on_call = peer.answer
    assert await ask(link, "again") == "done"
    assert (link.counts.lost, link.counts.opened) == (1, 2)
    await link.close()


async def test_calls_wait_for_a_link_that_opens_and_are_refused_by_one_that_is_down(peer: Peer) -> None:
    del peer.answers["sign_on"]
    link = link_to(peer, answer_s=0.2, backoff_first_s=30, backoff_cap_s=30)
    link._chance = lambda: 1.0
    await link.open()
    assert await ask(link, "waits") == "not sent: no reply to the sign_on"
    assert link.state == "down"
    assert await ask(link, "refused") == "not sent: the link is down"
    assert peer.asked == []
    await link.close()


async def test_a_refused_sign_on_is_tried_again(peer: Peer) -> None:
    peer.answers["sign_on"] = b"no"
    link = link_to(peer)
    await link.open()
    await until(lambda: link.counts.failed_to_open >= 2, 5, "tried again")
    peer.answers["sign_on"] = b"yes"
    peer.on_call = peer.answer
    await ready(link)
    assert await ask(link, "k") == "done"
    await link.close()


async def test_connecting_has_a_deadline() -> None:
    with socket.socket() as full, socket.socket() as waiting:  # its backlog is full: further connections hang
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting.connect(full.getsockname())
        peer = Peer()
        peer.port = full.getsockname()[1]
        link = link_to(peer, connect_s=0.2)
        await link.open()
        began = asyncio.get_running_loop().time()
        assert await ask(link, "k") == "not sent: cannot connect"
        assert 0.1 < asyncio.get_running_loop().time() - began < 1
        await link.close()


async def _hang_ups_met(peer: Peer, chance: float) -> int:
    """How often in 0.5 s a link returns to a peer that takes the sign-on and hangs up."""
    peer.hangs_up = True
    link = link_to(peer, backoff_first_s=0.05, backoff_cap_s=5)
    link._chance = lambda: chance
    await link.open()
    ends = asyncio.get_running_loop().time() + 0.5
    await until(lambda: asyncio.get_running_loop().time() > ends, 2, "the time is over")
    assert link.counts.lost >= 2
    await link.close()
    return peer.connections


async def test_a_peer_that_hangs_up_again_and_again_is_asked_ever_less(peer: Peer) -> None:
    assert 2 <= await _hang_ups_met(peer, 1.0) <= 5  # after 0.05, 0.15, 0.35 s


async def test_control_without_the_pause_it_would_be_hammered(peer: Peer) -> None:
    assert await _hang_ups_met(peer, 0.0) > 20


def test_pauses_double_up_to_the_cap() -> None:
    settings = LinkSettings(host="h", port=1, backoff_first_s=0.2, backoff_cap_s=30)
    pauses = [pause_max_s(settings, failures) for failures in range(2000)]
    assert pauses[:4] == [0.2, 0.4, 0.8, 1.6]
    assert all(a <= b for a, b in pairwise(pauses))
    assert pauses[-1] == 30


async def test_an_idle_link_is_echoed_and_dropped_when_the_echo_is_not_answered(peer: Peer) -> None:
    link = await ready(link_to(peer, echo_after_s=0.05, answer_s=0.1))
    await until(lambda: peer.link_asked.count("echo") >= 3, 5, "echoes")
    assert (link.state, peer.connections) == ("ready", 1)
    (stuck,) = await in_flight(link, peer, 1)
    del peer.answers["echo"]
    assert await stuck == "unknown: the echo was not answered"
    await until(lambda: peer.connections >= 2, 5, "the link comes back")
    await link.close()


async def test_closing_waits_for_what_is_in_flight_and_signs_off(peer: Peer) -> None:
    link = await ready(link_to(peer))
    tasks = await in_flight(link, peer, 3)
    closing = asyncio.create_task(link.close())
    await until(lambda: link.state == "closing", 1, "closing")
    assert await ask(link, "new") == "not sent: the link is closing"
    assert not closing.done()
    for key in peer.asked:
        peer.answer(key)
    await closing
    assert [await task for task in tasks] == ["done"] * 3
    assert peer.link_asked == ["sign_on", "sign_off"]


async def test_what_is_not_answered_by_the_end_of_the_drain_is_unknown(peer: Peer) -> None:
    link = await ready(link_to(peer, drain_s=0.1))
    (stuck,) = await in_flight(link, peer, 1)
    began = asyncio.get_running_loop().time()
    await link.close()
    assert await stuck == "unknown: the link was closed before the reply"
    assert asyncio.get_running_loop().time() - began < 1
    assert peer.link_asked[-1] == "sign_off"


class _NoDrain(Link):
    async def close(self) -> None:
        """Planted: no wait."""
        self._end_calls("closed")
        await super().close()


async def test_control_without_a_drain_answers_would_be_lost(peer: Peer) -> None:
    link = await ready(link_to(peer, kind=_NoDrain))
    (cut,) = await in_flight(link, peer, 1)
    closing = asyncio.create_task(link.close())
    await until(lambda: link.in_flight == 0, 1, "closed")
    assert (await cut).startswith("unknown")
    await closing


@pytest.mark.parametrize("state", ["before start", "opening", "down"])
async def test_a_link_closes_in_any_state(peer: Peer, state: str) -> None:
    del peer.answers["sign_on"]
    link = link_to(peer, answer_s=0.05 if state == "down" else 2)
    if state != "before start":
        await link.open()
        await until(lambda: link.state == state and peer.connections > 0, 2, state)
    await link.close()
    assert await ask(link, "k") == "not sent: the link is closing"


@given(
    st.lists(st.binary(min_size=1, max_size=60), max_size=8),
    st.lists(st.integers(1, 30), max_size=40),
    st.sampled_from(["length2", "length4_ascii"]),
)
def test_messages_come_out_as_they_went_in_however_the_stream_is_cut(
    messages: list[bytes], cuts: list[int], framing: Framing
) -> None:
    stream = b"".join(with_length(framing, message, 60) for message in messages)
    reader, found, at = FrameReader(framing, 60), list[bytes](), 0
    for cut in [*cuts, len(stream) + 1]:
        found += reader.feed(stream[at : at + cut])
        at += cut
    assert found == messages


@given(st.binary(max_size=300), st.sampled_from(["length2", "length4_ascii"]))
def test_a_reader_of_anything_holds_one_message_at_most(stream: bytes, framing: Framing) -> None:
    reader = FrameReader(framing, 60)
    try:
        assert all(0 < len(message) <= 60 for message in reader.feed(stream))
    except BadFrame:
        return
    assert len(reader._held) < 64
