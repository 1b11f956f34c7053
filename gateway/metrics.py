"""Every metric and its label set. Label values come from enums and configured names alone, so the sets are bounded.

In a worker process prometheus-client runs in its multi-process mode: workers write files, the operators' listener adds
them up. Children are bound once and kept: labels() on every request would cost more than the count itself.
"""

from functools import lru_cache

from prometheus_client import Counter, Gauge, Histogram

from gateway import __version__

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

VERDICTS = Counter(
    "yikatong_verdicts_total", "Verdicts, each with its event committed", ("verdict", "reason", "medium", "field", "caller")
)
REQUESTS = Counter("yikatong_http_requests_total", "Answers by route and status", ("route", "status"))
REQUEST_SECONDS = Histogram(
    "yikatong_http_request_seconds", "From the header block to the answer", ("route",), buckets=_SECONDS
)
BATCH_SIZE = Histogram(
    "yikatong_verify_batch_size", "Presentations in one statement", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)
BATCH_WAIT_SECONDS = Histogram(
    "yikatong_verify_batch_wait_seconds", "Wait of a batch's oldest presentation before its statement", buckets=_SECONDS
)
BATCH_SECONDS = Histogram(
    "yikatong_verify_batch_seconds", "The statement of a batch, to its commit", buckets=_SECONDS
)
QUEUE = Gauge("yikatong_verify_queue", "Presentations waiting for a batch", multiprocess_mode="livesum")
POOL_FREE = Gauge("yikatong_pool_free", "Database connections that could be had at once", multiprocess_mode="livesum")
CONNECTIONS = Gauge("yikatong_http_connections", "Open client connections", multiprocess_mode="livesum")
RATE_LIMITED = Counter("yikatong_rate_limited_total", "Requests over a caller's quota", ("caller",))
SHED = Counter("yikatong_shed_total", "Requests answered 503", ("code",))
REFUSED_ENTRY = Counter("yikatong_refused_entry_total", "Requests answered 401 or 403, and refused token requests", ("why",))
TOKENS = Counter("yikatong_tokens_issued_total", "Access tokens issued", ("caller",))
RELOADS = Counter("yikatong_config_reloads_total", "Configuration changes noticed", ("result",))
FEED_LAG_SECONDS = Gauge(
    "yikatong_feed_lag_seconds", "Age of the oldest event that the feed cannot show yet", multiprocess_mode="mostrecent"
)
BUILD = Gauge("yikatong_build_info", "The running version", ("version",), multiprocess_mode="max")


def set_build_info() -> None:
    BUILD.labels(__version__).set(1)


@lru_cache(maxsize=20_000)
def verdict_counter(verdict: str, reason: str, medium: str, field: str, caller: str) -> Counter:
    return VERDICTS.labels(verdict, reason, medium, field, caller)


@lru_cache(maxsize=2_000)
def request_counter(route: str, status: int) -> Counter:
    return REQUESTS.labels(route, status)


@lru_cache(maxsize=200)
def request_seconds(route: str) -> Histogram:
    return REQUEST_SECONDS.labels(route)
