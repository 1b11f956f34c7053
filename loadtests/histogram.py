"""A histogram of latencies with logarithmic buckets: constant memory, about 1 % precision."""

from math import exp, log

_GROWTH = 1.01
_SCALE = 1.0 / log(_GROWTH)
_BUCKETS = int(log(120e6) * _SCALE) + 1  # from 1 µs to two minutes


class Histogram:
    """Counts of microseconds."""

    __slots__ = ("counts", "max_us", "sum_us", "total")

    def __init__(self) -> None:
        self.counts = [0] * _BUCKETS
        self.total = 0
        self.sum_us = 0.0
        self.max_us = 0.0

    def record(self, us: float) -> None:
        index = int(log(us) * _SCALE) if us > 1.0 else 0
        self.counts[index if index < _BUCKETS else _BUCKETS - 1] += 1
        self.total += 1
        self.sum_us += us
        if us > self.max_us:
            self.max_us = us

    def percentile(self, share: float) -> float:
        """The latency (µs) that `share` (0..1) of the recorded ones do not exceed; 0 if nothing was recorded."""
        wanted, seen = share * self.total, 0
        for index, count in enumerate(self.counts):
            seen += count
            if count and seen >= wanted:
                return min(exp((index + 0.5) / _SCALE), self.max_us)
        return 0.0

    def summary_ms(self) -> dict[str, float]:
        """The percentiles that a table shows, in ms."""
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
        named = {name: round(self.percentile(share) / 1000, 3) for name, share in shares.items()}
        mean = self.sum_us / self.total if self.total else 0.0
        return named | {"max": round(self.max_us / 1000, 3), "mean": round(mean / 1000, 3)}
