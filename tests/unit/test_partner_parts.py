"""The small parts of the partner engine by themselves: breaker, bulkhead, retry budget, keys."""

import asyncio
import hashlib
import hmac
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.crypto.shared_keys import SharedKey, read_key
from gateway.domain.partners import PartnerKey
from gateway.partners.breaker import Breaker, State
from gateway.partners.bulkhead import Bulkhead, RetryBudget
from gateway.partners.contract import CryptoRefused
from gateway.partners.keys import Keys
from tests.contract.case import SM2_OURS


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_only_failures_in_a_row_open_it() -> None:
    breaker = Breaker(5, 10, Clock())
    for good in (False, False, False, False, True, False, False, None, False, False):
        ticket = breaker.enter()
        assert ticket is not None
        breaker.report(ticket, good)
    last = breaker.enter()
    assert last is not None, "it was never five in a row"
    breaker.report(last, False)
    assert breaker.state is State.OPEN
    assert breaker.enter() is None


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(1, 10, clock)
    breaker.report(breaker.enter() or object(), False)
    return breaker


def test_a_probe_that_was_given_up_leaves_room_for_the_next() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now = 10
    probe = breaker.enter()
    assert probe is not None
    assert breaker.enter() is None, "one probe at a time"
    breaker.report(probe, None)
    assert breaker.enter() is not None


def test_a_try_from_before_does_not_close_it() -> None:
    clock = Clock()
    breaker = Breaker(1, 10, clock)
    early, other = breaker.enter(), breaker.enter()
    breaker.report(other or object(), False)
    breaker.report(early or object(), True)
    assert breaker.state is State.OPEN


@given(st.integers(0, 2**32))
def test_whatever_happens_the_partner_is_spared_and_found_again(seed: int) -> None:
    """An hour of calls to a partner that comes and goes: 5 failures, a pause, a probe; never out for good."""
    chance, clock = random.Random(seed), Clock()
    breaker = Breaker(5, 10, clock)
    failures_at: list[float] = []
    up_since, up = 0.0, True
    while clock.now < 3600:
        clock.now += chance.expovariate(1)
        if chance.random() < 0.02:
            up, up_since = not up, clock.now
        ticket = breaker.enter()
        if ticket is None:
            assert not up or clock.now - up_since < 10 or clock.now - failures_at[-1] < 10
            continue
        breaker.report(ticket, up)
        if up:
            failures_at.clear() if breaker.state is State.CLOSED else None
        else:
            failures_at.append(clock.now)
            assert len(failures_at) < 6 or clock.now - failures_at[-2] >= 10


async def test_a_bulkhead_takes_so_many_and_lets_so_many_wait() -> None:
    bulkhead = Bulkhead(2, 1)
    assert await bulkhead.enter()
    assert await bulkhead.enter()
    third = asyncio.create_task(bulkhead.enter())
    fourth = asyncio.create_task(bulkhead.enter())
    assert await fourth is False
    assert (bulkhead.in_flight, bulkhead.waiting) == (2, 1)
    bulkhead.leave()
    assert await third is True
    assert (bulkhead.in_flight, bulkhead.waiting) == (2, 0)


async def test_who_stops_waiting_leaves_no_trace() -> None:
    bulkhead = Bulkhead(1, 1)
    assert await bulkhead.enter()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await bulkhead.enter()
    assert (bulkhead.in_flight, bulkhead.waiting) == (1, 0)
    bulkhead.leave()
    assert await bulkhead.enter()


@pytest.mark.parametrize(("percent", "most"), [(0, 0), (10, 101), (100, 1000)])
def test_a_budget_of_retries(percent: int, most: int) -> None:
    budget = RetryBudget(percent)
    taken = 0
    for _ in range(1000):
        budget.count_call()
        taken += budget.take()
    assert most - 2 <= taken <= most


KEYS: dict[str, tuple[PartnerKey, str]] = {
    "sm2": (PartnerKey(kind="sm2"), SM2_OURS),
    "theirs": (PartnerKey(kind="sm2"), SM2_OURS.split()[1]),
    "sm4": (PartnerKey(kind="sm4-cbc"), "0123456789abcdeffedcba9876543210"),
    "aes": (PartnerKey(kind="aes-cbc"), "00" * 32),
    "sha1": (PartnerKey(kind="hmac-sha1", encoding="text"), "secret"),
    "sha256": (PartnerKey(kind="hmac-sha256", encoding="base64"), "c2VjcmV0"),
    "x919": (PartnerKey(kind="mac-3des"), "0123456789abcdeffedcba9876543210"),
    "sm4mac": (PartnerKey(kind="mac-sm4"), "0123456789abcdeffedcba9876543210"),
}


@pytest.fixture
def keys() -> Keys:
    return Keys({name: read_key(block, text) for name, (block, text) in KEYS.items()})


def test_each_kind_does_its_work(keys: Keys) -> None:
    assert keys.verify("theirs", b"m", keys.sign("sm2", b"m"))
    assert keys.decrypt("sm2", keys.encrypt("theirs", b"m", b""), b"") == b"m"
    for name in ("sm4", "aes"):
        assert keys.decrypt(name, keys.encrypt(name, b"m" * 33, bytes(16)), bytes(16)) == b"m" * 33
    assert keys.mac("sha1", b"m") == hmac.digest(b"secret", b"m", hashlib.sha1)
    assert keys.mac("sha256", b"m") == hmac.digest(b"secret", b"m", hashlib.sha256)
    # ANSI X9.19 over two blocks, and SM4 over one (the standard's example: the block itself enciphered)
    assert (
        keys.mac("sm4mac", bytes.fromhex("0123456789abcdeffedcba9876543210")).hex()
        == "681edf34d206965e86b3e94f536e4246"
    )
    assert len(keys.mac("x919", b"Hello World !!!")) == 8


def test_a_key_does_nothing_else(keys: Keys) -> None:
    for refused in (
        lambda: keys.sign("theirs", b"m"),
        lambda: keys.decrypt("theirs", b"m", b""),
        lambda: keys.sign("sha1", b"m"),
        lambda: keys.mac("sm4", b"m"),
        lambda: keys.encrypt("x919", b"m", bytes(16)),
        lambda: keys.verify("aes", b"m", b"s"),
        lambda: keys.decrypt("aes", b"m" * 15, bytes(16)),
        lambda: keys.decrypt("sm4", b"m" * 16, bytes(16)),
        lambda: keys.encrypt("sm4", b"m", b"short"),
        lambda: keys.decrypt("sm2", b"m", b""),
        lambda: keys.mac("nobody", b"m"),
    ):
        with pytest.raises(CryptoRefused):
            refused()


def test_a_mac_is_not_cut_to_nothing(keys: Keys) -> None:
    mac = keys.mac("sm4mac", b"m")
    assert keys.verify("sm4mac", b"m", mac[:8])
    assert not any(keys.verify("sm4mac", b"m", mac[:length]) for length in range(8))


def test_a_partner_with_sm2_is_slow() -> None:
    fast: dict[str, SharedKey] = {"mac": read_key(*KEYS["x919"])}
    assert not Keys(fast).slow
    assert Keys(fast | {"ours": read_key(*KEYS["sm2"])}).slow
