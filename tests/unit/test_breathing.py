"""Rests of a thread that computes beside an event loop."""

import pytest

from gateway import threads

ITEMS = 100_000
EACH_S = 1e-6


class Clock:
    """Each item takes a microsecond; a rest takes `rest_s`."""

    def __init__(self, rest_s: float) -> None:
        self.now = 0.0
        self.rest_s = rest_s
        self.rests: list[float] = []

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, _: float) -> None:
        self.rests.append(self.now)
        self.now += self.rest_s


def computed(monkeypatch: pytest.MonkeyPatch, rest_s: float) -> list[float]:
    """How long it computed without a rest, each time."""
    clock = Clock(rest_s)
    monkeypatch.setattr(threads, "time", clock)
    for expected, item in enumerate(threads.breathing(range(ITEMS))):
        assert item == expected
        clock.now += EACH_S
    ended = [0.0, *(at + rest_s for at in clock.rests)]
    return [until - since for since, until in zip(ended, [*clock.rests, clock.now], strict=True)]


def test_where_somebody_waits_it_rests_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    held = computed(monkeypatch, rest_s=1e-3)
    assert len(held) > 400 and max(held) < 0.3e-3


def test_where_nobody_waits_it_rests_seldom_but_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    held = computed(monkeypatch, rest_s=60e-6)
    assert len(held) < 110 and max(held) < 1.1e-3


def test_little_work_has_no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(1.0)
    monkeypatch.setattr(threads, "time", clock)
    for _ in threads.breathing(range(150)):
        clock.now += EACH_S
    assert clock.rests == []
