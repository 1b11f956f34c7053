"""The bench's row `bulk`: usage data returned through HTTP, beside a raw COPY of the same rows into the same tables.

The COPY is the floor: asyncpg's own, on one connection, of rows that are ready in memory, with nothing looked up,
compared or computed, into tables with the same indexes and checks, one transaction for each bulk. Of a
row that several bulks have written it has the last one alone, and like a bulk it goes in the order of the persons. Its
rows are deleted.
"""

import asyncio
import datetime as dt
import http.client
import json
import random
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg

from loadtests.client import Caller, CallError, Session
from loadtests.measure import Server
from loadtests.processes import cpu_of

if TYPE_CHECKING:
    from loadtests.bench import Bench

PATH = "/v1/usage-events"
LINES = 10_000
BULKS = 20
SENDERS = 2
CARDS = 300_000
"""Half of the county, as cards come twice: few persons would soon have reached their days' limits and earn no more."""
TIMEOUT_S = 60.0
SCENES = ("market.till", "dining.till", "parking.exit", "transit.bus", "medical.window", "library.loan")
TABLES = ("usage_return", "usage_event", "points_transfer", "points_entry", "points_account", "points_lot")
PERSONS = {"points_account": "account_id", "points_lot": "person_id"}
"""What is rewritten rather than added: a bulk has left those rows that its transaction was the last to write."""


@dataclass(frozen=True)
class BulkRun:
    """CPU in µs a line."""

    lines_per_second: float
    server_us: float
    database_us: float
    worst_s: float
    """Of one bulk."""
    copy_per_second: float
    copy_database_us: float
    copied: dict[str, int]
    """Rows by table, of as many lines."""

    def __str__(self) -> str:
        return (
            f"bulk: {self.lines_per_second:,.0f} lines/s, server {self.server_us:.1f} µs, database "
            f"{self.database_us:.1f} µs a line, a bulk at most {self.worst_s:.2f} s; COPY "
            f"{self.copy_per_second:,.0f} lines/s, database {self.copy_database_us:.1f} µs; ratio {self.ratio:.2f}; "
            f"rows {self.copied}"
        )

    @property
    def ratio(self) -> float:
        return self.lines_per_second / self.copy_per_second


def body(cards: list[dict[str, str]], prefix: str, number: int) -> bytes:
    """A bulk of lines of the last week (a run has more than the county in a day); a tenth have no amount."""
    now, lines = dt.datetime.now(dt.UTC), []
    for item in range(LINES):
        use: dict[str, Any] = random.choice(cards) | {
            "id": f"{prefix}-{number:04}-{item:05}", "scene": SCENES[item % len(SCENES)],
            "terminal_id": f"T-{item % 500:04}",
            "occurred_at": (now - dt.timedelta(seconds=random.randrange(7 * 86_400))).isoformat(timespec="seconds"),
            "result": "success",
        }  # fmt: skip
        if item % 10:
            use |= {"amount_fen": random.randrange(100, 20_000), "discount_fen": random.randrange(100)}
        lines.append(json.dumps(use, separators=(",", ":")))
    return "\n".join(lines).encode()


class Bulks:
    """The rows of one gateway."""

    def __init__(self, bench: "Bench", gateway: Server) -> None:
        self._bench = bench
        self._gateway = gateway
        self._cards = [json.loads(one) for one in set(bench.sampled(CARDS).splitlines())]
        self._session = Session(gateway.url, Caller.read(bench.data_dir, "demo-bank"))

    def measure(self) -> BulkRun:
        prefix = secrets.token_hex(4)
        bodies = [body(self._cards, prefix, number) for number in range(BULKS)]
        self._session.authorization(fresh=True)
        self._send(body(self._cards, f"{prefix}-w", 0))  # the first one prepares its statements
        began = cpu_of(self._gateway.running, self._gateway.running)
        with ThreadPoolExecutor(SENDERS) as pool:
            times = list(pool.map(self._send, bodies))
        ended = cpu_of(self._gateway.running, self._gateway.running)
        lines = LINES * BULKS
        copied = asyncio.run(_copy_again(self._bench.data_dir, prefix, self._gateway))
        return BulkRun(
            lines / (ended.at - began.at), (ended.server - began.server) / lines * 1e6,
            (ended.database - began.database) / lines * 1e6, max(times), **copied,
        )  # fmt: skip

    def _send(self, raw: bytes) -> float:
        """Seconds; every line must be new."""
        parts, began = urlsplit(self._gateway.url), time.monotonic()
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=TIMEOUT_S)
        headers = {"Authorization": self._session.authorization(), "Content-Type": "application/x-ndjson"}
        connection.request("POST", PATH, raw, headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        if answer.status != 200 or json.loads(text)["created"] != LINES:
            raise CallError(f"POST {PATH}: {answer.status}: {text[:300].decode(errors='replace')}")
        return time.monotonic() - began


def _other(event_id: UUID) -> UUID:
    """Another UUIDv7 of the same moment: tables check that an id and its time belong together."""
    return UUID(int=event_id.int >> 62 << 62 | secrets.randbits(62))


async def _copy_again(data_dir: Path, prefix: str, gateway: Server) -> dict[str, Any]:
    """The rows that the bulks have left, under other ids, by COPY; then they are deleted."""
    owner = await asyncpg.connect(f"postgresql:///yikatong?host={data_dir}/postgres/socket&user=yikatong")
    try:
        bulks = [await _rows_of(owner, f"{prefix}-{number:04}-", f"copy-{prefix}") for number in range(BULKS)]
        began = cpu_of(gateway.running, gateway.running)
        try:
            for tables in bulks:
                async with owner.transaction():
                    for table, (columns, records) in tables.items():
                        await owner.copy_records_to_table(table, records=records, columns=columns)
            ended = cpu_of(gateway.running, gateway.running)
        finally:
            for tables in bulks:
                await _delete(owner, tables, f"copy-{prefix}")
        lines = LINES * BULKS
        return {
            "copy_per_second": lines / (ended.at - began.at),
            "copy_database_us": (ended.database - began.database) / lines * 1e6,
            "copied": {table: sum(len(tables[table][1]) for tables in bulks) for table in TABLES},
        }
    finally:
        await owner.close()


Table = tuple[list[str], list[tuple[Any, ...]]]


async def _rows_of(owner: "asyncpg.Connection[asyncpg.Record]", ids: str, other: str) -> dict[str, Table]:
    """Columns and renamed records by table, the id first."""
    names: defaultdict[UUID, UUID] = defaultdict(UUID)
    returned = await owner.fetch(
        "SELECT event_id, caller, id, position, recorded_at FROM usage_return WHERE caller = 'demo-bank'"
        " AND id >= $1 AND id < $1 || '~'",
        ids,
    )
    names |= {row["event_id"]: _other(row["event_id"]) for row in returned}
    positions = list({row["position"] for row in returned})
    events = await owner.fetch("SELECT * FROM usage_event WHERE position = ANY($1)", positions)
    moved = [
        await owner.fetch(f"SELECT * FROM {table} WHERE transfer_id = ANY($1) ORDER BY person_id", list(names))  # noqa: S608 - ours
        for table in ("points_transfer", "points_entry")
    ]
    persons = {row["person_id"] for row in moved[0]}
    names |= zip(sorted(persons), sorted(uuid4() for _ in persons), strict=True)
    left = [
        await owner.fetch(
            f"SELECT * FROM {table} WHERE {key} = ANY($1) AND xmin::text::bigint = ANY("  # noqa: S608 - ours
            " SELECT (position - xid_offset) % 4294967296 FROM unnest($2::bigint[]) position, feed_origin)"
            f" ORDER BY {key}",
            list(persons), positions,
        )
        for table, key in PERSONS.items()
    ]  # fmt: skip
    found = dict(zip(TABLES, (returned, events, *moved, *left), strict=True))
    return {table: _renamed(rows, names, other) for table, rows in found.items()}


def _renamed(rows: Iterable[asyncpg.Record], names: dict[UUID, UUID], other: str) -> Table:
    columns: list[str] = []
    records = []
    for row in rows:
        values = dict(row)
        columns = list(values)
        for name in ("id", "caller_event_id"):
            if name in values:
                values[name] = f"{other}{values[name]}"
        first = columns[0]
        values[first] = names[values[first]]
        records.append(tuple(values.values()))
    return columns, records


async def _delete(owner: "asyncpg.Connection[asyncpg.Record]", tables: dict[str, Table], other: str) -> None:
    keys = {"usage_event": "event_id", "points_transfer": "transfer_id", "points_entry": "transfer_id"} | PERSONS
    for table, key in keys.items():
        ids = list({record[0] for record in tables[table][1]})
        await owner.execute(f"DELETE FROM {table} WHERE {key} = ANY($1)", ids)  # noqa: S608 - ours
    await owner.execute("DELETE FROM usage_return WHERE caller = 'demo-bank' AND id LIKE $1 || '%'", other)
