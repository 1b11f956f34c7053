"""What a simulated subscriber of the usage feed has received, in a file that outlives its process (SQLite)."""

import sqlite3
from pathlib import Path
from typing import NamedTuple

from gateway.sandbox.peers.control import BookLine

_SHOWN_MAX = 1000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS event (
    arrival integer PRIMARY KEY, event_id text NOT NULL UNIQUE, card text NOT NULL, position integer NOT NULL,
    kind text NOT NULL, amount_fen integer NOT NULL, recorded_at text NOT NULL, arrived_at real NOT NULL
);
CREATE TABLE IF NOT EXISTS card (card text PRIMARY KEY, position integer NOT NULL, event_id text NOT NULL);
CREATE TABLE IF NOT EXISTS figure (name text PRIMARY KEY, number integer NOT NULL);
"""


class Arrived(NamedTuple):
    """One event of a batch."""

    event_id: str
    card: str
    """card_ref; of an event without a card its own id, for such have no order."""
    position: int
    kind: str
    amount_fen: int
    recorded_at: str
    redelivery: bool
    replayed: bool


class FeedBook:
    """What it counts: accepted, duplicates, unmarked (duplicates that did not say so), refused, replayed, disorder."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._db = sqlite3.connect(file, isolation_level=None)
        # what is committed outlives the process, not the machine: it is a simulation
        self._db.executescript("PRAGMA journal_mode = wal; PRAGMA synchronous = off;" + _SCHEMA)

    def take(self, batch: list[Arrived], refuse_first: str, now: float) -> tuple[list[str], dict[str, str]]:
        """(duplicates, refused: code by event id). All of it is kept when this returns.

        `refuse_first`: the code with which the first new event is refused; those of its card behind it are `behind`.
        """
        duplicates: list[str] = []
        refused: dict[str, str] = {}
        self._db.execute("BEGIN IMMEDIATE")
        barred = ""
        for event in batch:
            if self._knows(event.event_id):
                duplicates.append(event.event_id)
                self._count("duplicates")
                self._count("unmarked", not event.redelivery)
            elif refuse_first:
                barred, refused[event.event_id], refuse_first = event.card, refuse_first, ""
            elif event.card == barred:
                refused[event.event_id] = "behind"
            else:
                self._accept(event, now)
        self._count("refused", len(refused))
        self._db.execute("COMMIT")
        return duplicates, refused

    def figures(self) -> dict[str, int]:
        counted = dict.fromkeys(("accepted", "duplicates", "unmarked", "refused", "replayed", "disorder"), 0)
        return counted | dict(self._db.execute("SELECT name, number FROM figure").fetchall())

    def lines(self) -> list[BookLine]:
        """The last ones, oldest first."""
        rows = self._db.execute(
            "SELECT event_id, kind, amount_fen FROM event ORDER BY arrival DESC LIMIT ?", (_SHOWN_MAX,)
        ).fetchall()
        return [BookLine(event_id, kind, amount_fen, "accepted") for event_id, kind, amount_fen in reversed(rows)]

    def close(self) -> None:
        self._db.close()

    def _knows(self, event_id: str) -> bool:
        return self._db.execute("SELECT 1 FROM event WHERE event_id = ?", (event_id,)).fetchone() is not None

    def _accept(self, event: Arrived, now: float) -> None:
        self._db.execute(
            "INSERT INTO event (event_id, card, position, kind, amount_fen, recorded_at, arrived_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (event.event_id, event.card, event.position, event.kind, event.amount_fen, event.recorded_at, now),
        )
        self._count("accepted")
        if event.replayed:
            self._count("replayed")
            return
        last = self._db.execute("SELECT position, event_id FROM card WHERE card = ?", (event.card,)).fetchone()
        if last is not None and last > (event.position, event.event_id):
            self._count("disorder")
        else:
            self._db.execute(
                "INSERT OR REPLACE INTO card VALUES (?, ?, ?)", (event.card, event.position, event.event_id)
            )

    def _count(self, name: str, by: int = 1) -> None:
        if by:
            self._db.execute(
                "INSERT INTO figure VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET number = number + excluded.number",
                (name, by),
            )
