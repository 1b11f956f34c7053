"""Every metric and its label set. Label values come from enums and configured names alone, so the sets are bounded.

In a worker process prometheus-client runs in its multi-process mode: workers write files, the operators' listener adds
them up. That costs 2 to 5 µs a count, so what is counted at every request is tallied in memory first and handed over by
flush(), every second and at the end.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

from prometheus_client import Counter, Gauge, Histogram

from gateway import __version__

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class CounterTally:
    """Counts of label values, on their way to a Counter."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._counts: defaultdict[tuple[str, ...], int] = defaultdict(int)

    def add(self, labels: tuple[str, ...], count: int = 1) -> None:
        self._counts[labels] += count

    def flush(self) -> None:
        for labels, count in self._counts.items():
            if count:
                self._counter.labels(*labels).inc(count)
                self._counts[labels] = 0


class HistogramTally:
    """Observations of a Histogram without labels, or of one child, counted by bucket on their way to it."""

    def __init__(self, child: Histogram, bounds: Sequence[float]) -> None:
        self._child = child
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def flush(self) -> None:
        # the child has no public way to take many observations at once (prometheus-client is pinned, a test holds this)
        for bucket, count in zip(self._child._buckets, self._counts, strict=True):
            if count:
                bucket.inc(count)
        if self._sum:
            self._child._sum.inc(self._sum)
        self._counts = [0] * len(self._counts)
        self._sum = 0.0


VERDICTS = CounterTally(
    Counter(
        "yikatong_verdicts_total",
        "Verdicts, each with its event committed",
        ("verdict", "reason", "medium", "field", "caller"),
    )
)
BENEFITS = CounterTally(
    Counter(
        "yikatong_benefits_total",
        "Benefits granted, and refused: by a cap, or by another condition where a request asked why",
        ("benefit", "result"),
    )
)
REQUESTS = CounterTally(Counter("yikatong_http_requests_total", "Answers by route and status", ("route", "status")))
_REQUEST_SECONDS = Histogram(
    "yikatong_http_request_seconds", "From the header block to the answer", ("route",), buckets=_SECONDS
)
_request_seconds: dict[str, HistogramTally] = {}
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BATCH_SIZE = HistogramTally(
    Histogram("yikatong_verify_batch_size", "Presentations in one statement", buckets=_BATCH_SIZES), _BATCH_SIZES
)
BATCH_WAIT_SECONDS = HistogramTally(
    Histogram(
        "yikatong_verify_batch_wait_seconds",
        "Wait of a batch's oldest presentation before its statement",
        buckets=_SECONDS,
    ),
    _SECONDS,
)
BATCH_SECONDS = HistogramTally(
    Histogram("yikatong_verify_batch_seconds", "The statement of a batch, to its commit", buckets=_SECONDS), _SECONDS
)
QUEUE = Gauge("yikatong_verify_queue", "Presentations waiting for a batch", multiprocess_mode="livesum")
POOL_FREE = Gauge("yikatong_pool_free", "Database connections that could be had at once", multiprocess_mode="livesum")
CONNECTIONS = Gauge("yikatong_http_connections", "Open client connections", multiprocess_mode="livesum")
CONNECTIONS_REFUSED = Counter(
    "yikatong_http_connections_refused_total", "Connections past http.connections_max of a worker, closed at once"
)
RATE_LIMITED = Counter("yikatong_rate_limited_total", "Requests over a caller's quota", ("caller",))
SHED = Counter("yikatong_shed_total", "Requests answered 503", ("code",))
EFFECTS = CounterTally(
    Counter("yikatong_effects_total", "Operations with effects, by what came of them", ("kind", "result", "caller"))
)
EFFECT_BATCH_SIZE = HistogramTally(
    Histogram("yikatong_effect_batch_size", "Effects in one transaction", buckets=_BATCH_SIZES), _BATCH_SIZES
)
EFFECT_BATCH_SECONDS = HistogramTally(
    Histogram("yikatong_effect_batch_seconds", "The transaction of a batch of effects", buckets=_SECONDS), _SECONDS
)
EFFECT_QUEUE = Gauge("yikatong_effect_queue", "Effects waiting for a transaction", multiprocess_mode="livesum")
USAGE_LINES = CounterTally(
    Counter("yikatong_usage_lines_total", "Returned lines, by what became of them", ("way", "result", "caller"))
)
USAGE_FILES = Counter("yikatong_usage_files_total", "Daily files, by what became of them", ("caller", "result"))
ECARD_ANSWERS = Counter(
    "yikatong_ecard_answers_total", "Codes of e-cards, by what the platform said (seen: it was not asked)", ("result",)
)
PAYMENTS = Counter(
    "yikatong_payments_total", "Moves of payments, reversals and refunds to a state", ("kind", "bank", "state")
)
PAYMENTS_OPEN = Gauge(
    "yikatong_payments_open", "Operations at banks with something left to do", multiprocess_mode="mostrecent"
)
PAYMENTS_STUCK = Gauge(
    "yikatong_payments_stuck",
    "Those of them that are older than payments.stuck_after_s",
    multiprocess_mode="mostrecent",
)
LOSS_NOTICES = Counter(
    "yikatong_loss_notices_total", "Moves of loss notices to banks to a state", ("kind", "bank", "state")
)
LOSS_NOTICES_OPEN = Gauge(
    "yikatong_loss_notices_open", "Loss notices without a yes or no of the bank", multiprocess_mode="mostrecent"
)
LOSS_NOTICES_STUCK = Gauge(
    "yikatong_loss_notices_stuck",
    "Those of them that are older than losses.stuck_after_s",
    multiprocess_mode="mostrecent",
)
VISITS = Counter(
    "yikatong_visits_total", "Moves of visits at merchants' own systems to a state", ("kind", "partner", "state")
)
VISITS_UNKNOWN = Gauge(
    "yikatong_visits_unknown",
    "Visits of the last day of which nobody could find out what the merchant did",
    multiprocess_mode="mostrecent",
)
RECONCILIATION = Gauge(
    "yikatong_reconciliation", "Lines of the reports of the last 24 hours", ("bank", "finding"),
    multiprocess_mode="mostrecent",
)  # fmt: skip
RECONCILED_DAY = Gauge(
    "yikatong_reconciliation_day_seconds",
    "Beginning of the last day up to which no day is without its report, since 1970", ("bank",),
    multiprocess_mode="mostrecent",
)  # fmt: skip
POINTS = Counter("yikatong_points_total", "Points moved, by the kind of transfer", ("kind",))
REDEMPTIONS = Counter("yikatong_redemptions_total", "Redemptions that came to a state", ("state", "caller"))
POINTS_SHORTFALL = Counter(
    "yikatong_points_shortfall_total", "Points that should have been taken back, and were spent already or had expired"
)
ANOMALIES = Counter("yikatong_anomalies_total", "What usage monitoring has found, restated or not", ("rule",))
ANOMALY_LAG_SECONDS = Gauge(
    "yikatong_anomaly_lag_seconds", "How far usage monitoring is behind the feed", multiprocess_mode="mostrecent"
)
REFUSED_ENTRY = Counter(
    "yikatong_refused_entry_total", "Requests answered 401 or 403, and refused token requests", ("why",)
)
TOKENS = Counter("yikatong_tokens_issued_total", "Access tokens issued", ("caller",))
RELOADS = Counter(
    "yikatong_config_reloads_total",
    "Configuration changes, by who was to take them up",
    ("component", "result"),
)
CONFIG_REFUSED = Gauge(
    "yikatong_config_refused", "1 while the last change is refused, by one process at least", ("component",),
    multiprocess_mode="livemax",
)  # fmt: skip
CALLER_KEY_READS = Counter("yikatong_caller_key_reads_total", "Looks at the table of callers' keys", ("result",))
JWKS_PULLS = Counter("yikatong_jwks_pulls_total", "Fetches of keys that callers publish", ("caller", "result"))
OWN_KEY_RELOADS = Counter("yikatong_own_key_reloads_total", "Changes of our own key files noticed", ("result",))
PARTNER_CALLS = CounterTally(
    Counter("yikatong_partner_calls_total", "Calls of partners, by outcome", ("partner", "operation", "outcome"))
)
PARTNER_RETRIES = Counter("yikatong_partner_retries_total", "Further tries of what was not sent", ("partner",))
_PARTNER_BOUNDS = (*_SECONDS, 5.0, 10.0, 30.0)
_PARTNER_SECONDS = Histogram(
    "yikatong_partner_seconds",
    "A try by its four timestamps: before it is sent, the partner's answer, reading it",
    ("partner", "phase"),
    buckets=_PARTNER_BOUNDS,
)
_partner_seconds: dict[tuple[str, str], HistogramTally] = {}
PARTNER_IN_FLIGHT = Gauge(
    "yikatong_partner_in_flight", "Calls at a partner now", ("partner",), multiprocess_mode="livesum"
)
PARTNER_WAITING = Gauge(
    "yikatong_partner_waiting", "Calls waiting for a place", ("partner",), multiprocess_mode="livesum"
)
PARTNER_BREAKER = Gauge(
    "yikatong_partner_breaker",
    "0 closed, 1 probing, 2 open; the worst of the workers",
    ("partner",),
    multiprocess_mode="livemax",
)
PARTNER_LINK_UP = Gauge(
    "yikatong_partner_link_up", "Long-lived links that are open, of all processes", ("partner",),
    multiprocess_mode="livesum",
)  # fmt: skip
PARTNER_LINK_EVENTS = Counter(
    "yikatong_partner_link_events_total",
    "Links: opened, failed_to_open, lost; late replies, unasked requests, duplicates_refused",
    ("partner", "event"),
)
FEED_LAG_SECONDS = Gauge(
    "yikatong_feed_lag_seconds", "Age of the first event that a running transaction keeps out of the feed",
    multiprocess_mode="mostrecent",
)  # fmt: skip
OUTBOX_EVENTS = CounterTally(
    Counter("yikatong_outbox_events_total", "Usage events brought, by what was said of them", ("subscriber", "result"))
)
OUTBOX_FAILURES = Counter(
    "yikatong_outbox_failures_total", "Batches that were not acknowledged: not_sent, no_answer", ("subscriber", "why")
)
OUTBOX_DEAD = Counter("yikatong_outbox_given_up_total", "Usage events given up after their last try", ("subscriber",))
OUTBOX_LAG_SECONDS = Gauge(
    "yikatong_outbox_lag_seconds", "Age of the oldest event that was not brought yet", ("subscriber",),
    multiprocess_mode="mostrecent",
)  # fmt: skip
OUTBOX_LAG_EVENTS = Gauge(
    "yikatong_outbox_lag_events", "Events that were not brought yet, counted to 100 000", ("subscriber",),
    multiprocess_mode="mostrecent",
)  # fmt: skip
OUTBOX_HELD = Gauge(
    "yikatong_outbox_held", "Events that wait aside after a refusal or no answer", ("subscriber",),
    multiprocess_mode="mostrecent",
)  # fmt: skip
OUTBOX_DEAD_LETTERS = Gauge(
    "yikatong_outbox_dead_letters", "Events that were given up and not sent again", ("subscriber",),
    multiprocess_mode="mostrecent",
)  # fmt: skip
BUILD = Gauge("yikatong_build_info", "The running version", ("version",), multiprocess_mode="max")
_BATCHES = (BATCH_SIZE, BATCH_WAIT_SECONDS, BATCH_SECONDS, EFFECT_BATCH_SIZE, EFFECT_BATCH_SECONDS)


def set_build_info() -> None:
    BUILD.labels(__version__).set(1)


def request_seconds(route: str) -> HistogramTally:
    if route not in _request_seconds:
        _request_seconds[route] = HistogramTally(_REQUEST_SECONDS.labels(route), _SECONDS)
    return _request_seconds[route]


def partner_seconds(partner: str, phase: str) -> HistogramTally:
    """`phase` is of Stopwatch.spans()."""
    if (partner, phase) not in _partner_seconds:
        _partner_seconds[partner, phase] = HistogramTally(_PARTNER_SECONDS.labels(partner, phase), _PARTNER_BOUNDS)
    return _partner_seconds[partner, phase]


def flush() -> None:
    """Hand over what has been tallied."""
    VERDICTS.flush()
    BENEFITS.flush()
    REQUESTS.flush()
    EFFECTS.flush()
    USAGE_LINES.flush()
    PARTNER_CALLS.flush()
    OUTBOX_EVENTS.flush()
    for tally in (*_request_seconds.values(), *_partner_seconds.values(), *_BATCHES):
        tally.flush()
