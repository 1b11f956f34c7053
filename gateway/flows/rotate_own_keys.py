"""Rotate the gateway's own keys while it runs: `python -m gateway keys status | rotate`."""

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import asyncpg

from gateway.crypto.key_files import create_next, open_folder
from gateway.crypto.key_store import KeyStore, KeyUse
from gateway.crypto.rotation import State, schedule
from gateway.crypto.sealing import Sealer, rewrap
from gateway.domain.masking import Secret
from gateway.store import data_keys

STAY: Mapping[str, str] = {
    KeyUse.INDEX: "index keys do not rotate: every card is found by its digest under this key,"
    " so all of them would have to be read from the registry again",
    KeyUse.PSEUDONYM: "pseudonym keys do not rotate: every card_ref that callers have kept would be another",
    KeyUse.CARD_PROOF: "card-proof keys do not rotate: the cards' chips hold what is derived from this key",
}


class KeyLine(NamedTuple):
    """A line of `keys status`; times are aware, None where there is none."""

    use: KeyUse
    kid: str
    state: State
    since: dt.datetime | None
    until: dt.datetime | None
    note: str


async def rotate_kek(folder: Path, dsn: Secret[str], now: dt.datetime) -> tuple[str, int]:
    """(new kid, data keys that it wraps now). Running workers go on: they hold the data keys, and look for the new file
    when they meet its name. Raises KeyStoreError, SealError, OSError, asyncpg.PostgresError.
    """
    connection = await asyncpg.connect(dsn.reveal(), timeout=10)
    try:
        store = open_folder(folder)
        Sealer().add(await data_keys.load(connection), store)  # before a file is made for nothing
        kid, _ = create_next(folder, KeyUse.KEK, now, 0)
        store = open_folder(folder)
        return kid, await data_keys.rewrap_all(connection, lambda row: rewrap(row, store))
    finally:
        await connection.close()


async def wrapped_by(dsn: Secret[str]) -> dict[str, int]:
    """How many data keys each KEK wraps."""
    connection = await asyncpg.connect(dsn.reveal(), timeout=5)
    try:
        counts: dict[str, int] = {}
        for row in await data_keys.load(connection):
            counts[row.kek_id] = counts.get(row.kek_id, 0) + 1
        return counts
    finally:
        await connection.close()


def status(store: KeyStore, now: dt.datetime, lifetime_s: int, data_keys_by: Mapping[str, int] | None) -> list[KeyLine]:
    """Every key; `data_keys_by` None: the database was not there to be asked."""
    lines = []
    for found in schedule(store.keys(KeyUse.SIGN), now.timestamp(), lifetime_s):
        note = "its file may be removed" if found.state == State.OUT else ""
        lines.append(KeyLine(KeyUse.SIGN, found.kid, found.state, _time(found.since), _time(found.until), note))
    for key in store.keys(KeyUse.KEK):
        count = None if data_keys_by is None else data_keys_by.get(key.kid, 0)
        state, note = State.ACCEPTED, "unknown whether it is needed: no database" if count is None else ""
        if key == store.keys(KeyUse.KEK)[-1]:
            state = State.CURRENT
        elif count == 0:
            state, note = State.OUT, "wraps nothing here; backups may need it"
        if count:
            note = f"wraps {count} data keys"
        lines.append(KeyLine(KeyUse.KEK, key.kid, state, key.active_from, None, note))
    for use in (KeyUse.INDEX, KeyUse.PSEUDONYM, KeyUse.CARD_PROOF):
        for key in store.keys(use):
            state = State.CURRENT if key == store.keys(use)[-1] else State.ACCEPTED
            lines.append(KeyLine(use, key.kid, state, key.active_from, None, "does not rotate"))
    if data_keys_by is not None:
        known = {key.kid for key in store.keys(KeyUse.KEK)}
        missing = sorted(data_keys_by.keys() - known)
        lines += [KeyLine(KeyUse.KEK, kid, State.ACCEPTED, None, None, "MISSING, and needed") for kid in missing]
    return lines


def _time(seconds: float | None) -> dt.datetime | None:
    return None if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC)
