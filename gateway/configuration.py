"""The blocks of gateway.toml, frozen and typed: settings.py reads and checks them."""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from gateway.domain.masking import Secret

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]


class Http(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    host: str
    port: Port
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)]
    issuer: str
    """Our name in tokens, an origin such as https://gateway.example; empty: http://127.0.0.1:<port>."""
    body_max_bytes: Positive
    connections_max: Positive
    """Open connections of one worker; a further one is closed at once."""
    header_timeout_s: Annotated[int, msgspec.Meta(ge=1, le=15)]
    """An idle connection, or one whose next header block is not complete, is closed after this."""
    body_timeout_s: Annotated[int, msgspec.Meta(ge=1, le=17)]
    """A body that is not whole by then is answered 408; two seconds more are given to read the answer."""


class Ops(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    host: str
    port: Port


class Database(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    url: Secret[str]
    """A PostgreSQL (>= 15) DSN, which may hold a password; empty: an embedded PostgreSQL in the data folder."""
    pool_size: Annotated[int, msgspec.Meta(ge=1, le=200)]
    """Connections of one worker beside the one that the verify batches use."""
    acquire_timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=250)]
    statement_timeout_ms: Annotated[int, msgspec.Meta(ge=10, le=60_000)]


class Verify(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    batch_max: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    queue_max: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    deadline_ms: Annotated[int, msgspec.Meta(ge=50, le=1000)]
    """From the queueing of a presentation to its answer; past it: 503, no verdict.

    Claiming capped benefits gets as long again."""
    status_max_age_minutes: Positive
    """A card status older than this is `unknown/status_stale`, never `valid`."""
    ecard_partner: str
    """The partner (partners.toml) that is asked whose e-card a code is; empty: not connected, and each is `unknown`."""
    ecard_deadline_ms: Annotated[int, msgspec.Meta(ge=50, le=1500)]
    """For the platform's answer; past it: `unknown/platform_unavailable`. It goes before deadline_ms."""


class Effects(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    batch_max: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    queue_max: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    deadline_ms: Annotated[int, msgspec.Meta(ge=50, le=10_000)]
    """From the queueing of an effect to its answer; past it: 503, and the same key asks what became of it."""
    claim_timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    """Wait for another process that is at the same Idempotency-Key; past it: 409."""


class Payments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    deadline_ms: Annotated[int, msgspec.Meta(ge=100, le=60_000)]
    """Of one call of a bank, answer included; past it a payment is `pending`."""
    amount_max_fen: Annotated[int, msgspec.Meta(ge=1, le=50_000_00)]
    queries_max: Annotated[int, msgspec.Meta(ge=0, le=1000)]
    """So often a bank is asked what became of a payment; then it is reversed."""
    retry_base_ms: Annotated[int, msgspec.Meta(ge=1, le=60_000)]
    retry_cap_s: Annotated[int, msgspec.Meta(ge=1, le=3600)]
    look_again_s: Annotated[int, msgspec.Meta(ge=1, le=86_400)]
    """After a reversal that found nothing: a message that was still on its way has arrived by then."""
    stuck_after_s: Annotated[int, msgspec.Meta(ge=1, le=86_400)]
    """Undecided for so long: operators are told."""
    resolve_max: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    """Operations that the resolver takes up at once."""
    routes: Mapping[str, str]
    """The partner (partners.toml) by which the bank of a card is reached."""


class Losses(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The bank's half of a loss report and of its release."""

    deadline_ms: Annotated[int, msgspec.Meta(ge=100, le=10_000)]
    """Of one call of a bank, answer included; past it the bank's side is `pending`."""
    retry_base_ms: Annotated[int, msgspec.Meta(ge=1, le=60_000)]
    retry_cap_s: Annotated[int, msgspec.Meta(ge=1, le=3600)]
    stuck_after_s: Annotated[int, msgspec.Meta(ge=1, le=86_400)]
    """Without a yes or no of the bank for so long: operators are told."""
    resolve_max: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    """Notices that the resolver takes up at once."""
    routes: Mapping[str, str]
    """The partner (partners.toml) that takes the notices for the bank of a card; it need not be that of payments."""


class Visits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cards presented where a merchant's own system acts on them."""

    deadline_ms: Annotated[int, msgspec.Meta(ge=100, le=10_000)]
    """Of one call of a merchant, answer included; past it a visit is `pending`."""
    lifetime_s: Annotated[int, msgspec.Meta(ge=1, le=120)]
    """The merchant acts within this, or not at all: a barrier that opens later opens for somebody else. What it came to
    is asked for as long, and is `unknown` then; later, if it could not be asked."""
    pay_within_s: Annotated[int, msgspec.Meta(ge=1, le=3600)]
    """So long a parking fee stands."""
    retry_ms: Annotated[int, msgspec.Meta(ge=1, le=10_000)]
    """Between two questions."""
    resolve_max: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    """Visits that the resolver takes up at once."""


class Tokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    lifetime_s: Annotated[int, msgspec.Meta(ge=10, le=3600)]
    key_overlap_s: Annotated[int, msgspec.Meta(ge=10, le=86_400)]
    """A new signing key is published this long before it signs: twice the 5 s in which every worker has read it."""
    cache_max: Positive


class Sealing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    algorithm: Literal["SM4-GCM", "AES-256-GCM"]
    """Of the data keys that are made from now on; older ones keep theirs and stay readable."""


class Sm2(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The slow lane of one worker: SM2 takes about 0.4 ms a signature."""

    threads: Annotated[int, msgspec.Meta(ge=1, le=16)]
    waiting_max: Annotated[int, msgspec.Meta(ge=1, le=10_000)]
    """Checks that may wait for a thread; a further one is answered 503 at once."""
    per_second: Annotated[int, msgspec.Meta(ge=1, le=10_000)]
    """Checks that are begun in a second, so that the others' requests hardly notice."""
    timeout_ms: Annotated[int, msgspec.Meta(ge=10, le=5000)]
    """From the handing in of a check to its result; past it: 503. It is not begun when less than a quarter is left."""


class CallersKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How callers' keys are fetched from where they publish them (keys_url, signing_keys_url)."""

    jwks_hosts: tuple[Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9.:\[\]-]{1,260}$")], ...]
    """The only hosts that are ever asked: `host` (port 443) or `host:port`."""
    ca_file: str
    """Certificates that vouch for these hosts; empty: the system's. A relative path starts at the data folder."""
    period_s: Annotated[int, msgspec.Meta(ge=1, le=30)]
    """A key that was taken out there is out here within this and 5 s (reliability.md §2.1.6: 60 s)."""


class UsageFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The daily files of one caller."""

    encoding: Literal["utf-8", "gbk"]
    folder: str = ""
    """Where the worker looks for them; a relative path starts at the data folder. Empty: they come by command alone."""


class UsageReturn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Usage data that callers return: POST /v1/usage-events, and daily files."""

    days_back: Annotated[int, msgspec.Meta(ge=1, le=3650)]
    """How old a use may be when it comes."""
    bulk_max_bytes: Annotated[int, msgspec.Meta(ge=1024, le=64 * 1024 * 1024)]
    bulks_max: Annotated[int, msgspec.Meta(ge=1, le=64)]
    """Bulks of one worker between their header and their answer; a further one is answered 503 at once. A caller has
    half of them at most."""
    bulk_deadline_ms: Annotated[int, msgspec.Meta(ge=100, le=60_000)]
    """For writing a bulk, the wait for its turn included; past it: 503, and nothing of it is written."""
    chunk_lines: Annotated[int, msgspec.Meta(ge=1, le=10_000)]
    """Lines of a file in one transaction."""
    file_max_bytes: Positive
    """Of a file's plain text."""
    period_s: Annotated[int, msgspec.Meta(ge=1, le=3600)]
    """How often the worker looks into the folders."""
    rejects_days: Annotated[int, msgspec.Meta(ge=1, le=3650)]
    """How long the lines of files that were not accepted are kept, for a report that is asked for again."""
    files: Mapping[str, UsageFiles] = {}
    """By the caller that signs them."""


class OutboxSubscriber(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody to whom every usage event is brought."""

    partner: str
    """Of partners.toml; its operations have deliver_usage."""
    card_refs_of: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    """The caller whose card_ref it knows; if it is no caller, a name of its own."""
    batch_max: Annotated[int, msgspec.Meta(ge=1, le=10_000)]
    """Events of one message."""
    batches_at_once: Annotated[int, msgspec.Meta(ge=1, le=16)]


class OutboxNats(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A JetStream that every usage event is published to; files: a relative path starts at the data folder."""

    url: Annotated[str, msgspec.Meta(pattern=r"^(|tls://[^\s/?#@]+|nats://(127\.0\.0\.1|\[::1\]|localhost)(:\d+)?)$")]
    """Empty: none. Without TLS only on loopback."""
    stream: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    """It is there already, for `<subject>.>`."""
    subject: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_-]+(\.[a-z0-9_-]+)*$", max_length=100)]
    """A message's subject is `<subject>.<scene>`."""
    card_refs_of: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    batch_max: Annotated[int, msgspec.Meta(ge=1, le=2000)]
    """Messages on their way at once."""
    credentials_file: str
    ca_file: str
    """Certificates that vouch for the server; empty: the system's."""


class Outbox(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The outward feed."""

    enabled: bool
    dead_letters_days: Annotated[int, msgspec.Meta(ge=1, le=3650)]
    """How long an event that was given up can be sent again; sent again, how long that is on record."""
    subscribers: Mapping[str, OutboxSubscriber]
    nats: OutboxNats
    """As a subscriber it is called `nats`."""


class Gateway(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """gateway.toml."""

    http: Http
    ops: Ops
    database: Database
    verify: Verify
    effects: Effects
    payments: Payments
    usage_return: UsageReturn
    losses: Losses
    outbox: Outbox
    visits: Visits
    tokens: Tokens
    sealing: Sealing
    sm2: Sm2
    callers_keys: CallersKeys
    data_dir: str
    keys_dir: str
    """Where the key files are; relative to data_dir."""
    log_level: Literal["debug", "info", "warning", "error"]
