"""What is tallied in memory and handed over comes to the same figures as counting at once."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from gateway import metrics
from gateway.metrics import CounterTally, HistogramTally
from tests.running import ROOT

BOUNDS = (0.001, 0.01, 0.1, 1.0)
LABELS = ("verdict", "reason")


def shown(registry: CollectorRegistry) -> list[str]:
    """All samples, without the times of creation."""
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line]


class Pair:
    """The same metric twice: one is tallied, one is counted at once."""

    def __init__(self) -> None:
        self.tallied, self.plain = CollectorRegistry(), CollectorRegistry()

    def counters(self) -> tuple[CounterTally, Counter]:
        tallied, plain = (Counter("c", "x", LABELS, registry=registry) for registry in (self.tallied, self.plain))
        return CounterTally(tallied), plain

    def histograms(self) -> tuple[HistogramTally, Histogram]:
        tallied, plain = (
            Histogram("h", "x", ("route",), buckets=BOUNDS, registry=registry)
            for registry in (self.tallied, self.plain)
        )
        return HistogramTally(tallied.labels("/v1"), BOUNDS), plain.labels("/v1")


LABEL = st.sampled_from(["ok", "void", "locked"])


@given(st.lists(st.one_of(st.none(), st.tuples(LABEL, LABEL))))
def test_a_tallied_counter_comes_to_the_same(steps: list[tuple[str, str] | None]) -> None:
    """None is a flush in between."""
    pair = Pair()
    tally, plain = pair.counters()
    for step in steps:
        if step is None:
            tally.flush()
        else:
            tally.add(step)
            plain.labels(*step).inc()
    tally.flush()
    assert shown(pair.tallied) == shown(pair.plain)


# sums of these have no rounding, so that the order of addition does not show
SECONDS = st.integers(0, 4096).map(lambda number: number / 1024)


@given(st.lists(st.one_of(st.none(), SECONDS)))
def test_a_tallied_histogram_comes_to_the_same(steps: list[float | None]) -> None:
    pair = Pair()
    tally, plain = pair.histograms()
    for step in steps:
        if step is None:
            tally.flush()
        else:
            tally.observe(step)
            plain.observe(step)
    tally.flush()
    assert shown(pair.tallied) == shown(pair.plain)


@pytest.mark.parametrize("value", [0.0, *BOUNDS, *(bound + 1e-9 for bound in BOUNDS), 1e9])
def test_a_value_on_a_bound_falls_into_the_same_bucket(value: float) -> None:
    pair = Pair()
    tally, plain = pair.histograms()
    tally.observe(value)
    plain.observe(value)
    tally.flush()
    assert shown(pair.tallied) == shown(pair.plain)


def test_nothing_is_shown_before_it_is_handed_over_and_nothing_twice() -> None:
    pair = Pair()
    tally, _ = pair.histograms()
    counter, _ = pair.counters()
    for _ in range(3):
        tally.observe(0.5)
        counter.add(("valid", "ok"))
    assert pair.tallied.get_sample_value("h_count", {"route": "/v1"}) == 0
    for _ in range(3):
        tally.flush()
        counter.flush()
    assert pair.tallied.get_sample_value("h_count", {"route": "/v1"}) == 3
    assert pair.tallied.get_sample_value("c_total", {"verdict": "valid", "reason": "ok"}) == 3


def test_many_values_of_chance_have_the_same_sum_but_for_rounding() -> None:
    pair, chance = Pair(), random.Random(330424)
    tally, plain = pair.histograms()
    for number in range(10_000):
        value = chance.expovariate(100)
        tally.observe(value)
        plain.observe(value)
        if number % 777 == 0:
            tally.flush()
    tally.flush()
    sums = [registry.get_sample_value("h_sum", {"route": "/v1"}) for registry in (pair.tallied, pair.plain)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-9)


def test_every_metric_is_used_and_named_after_us() -> None:
    """A metric that nothing sets is a promise that nothing keeps."""
    names = [name for name in vars(metrics) if re.fullmatch("[A-Z][A-Z_]+", name)]
    assert "VERDICTS" in names
    sources = [path.read_text() for path in (ROOT / "gateway").rglob("*.py") if path.name != "metrics.py"]
    own = (ROOT / "gateway" / "metrics.py").read_text()
    unused = [name for name in names if not any(re.search(rf"\b{name}\b", text) for text in sources)]
    assert [name for name in unused if f"{name}.labels" not in own] == []
    declared = re.findall(r'(?:Counter|Gauge|Histogram)\(\s*"([^"]+)"', own)
    assert len(declared) >= 12 and all(name.startswith("yikatong_") for name in declared)


def test_an_alert_asks_for_what_is_there_before_its_first_event() -> None:
    """increase() of a series that begins with its first event is 0 for that one, and what is rare has no second."""
    own = (ROOT / "gateway" / "metrics.py").read_text()
    declared = set(re.findall(r'(?:Counter|Gauge|Histogram)\(\s*"([^"]+)"', own))
    alerts = (ROOT / "config" / "prometheus" / "alerts.yml").read_text()
    asked = set(re.findall(r"\byikatong_\w+", alerts))
    assert len(asked) >= 10 and asked <= declared
    begun = {"yikatong_anomalies_total"}  # by WatchUsage, with all of its labels
    assert set(re.findall(r"(?:increase|rate|delta)\((\w+)", alerts)) == begun
