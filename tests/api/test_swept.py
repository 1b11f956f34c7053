"""What the worker sweeps of repeats: keys and assertions have their time, and not a moment less."""

import datetime as dt
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from gateway.domain.masking import Secret
from gateway.settings import load
from gateway.store.pool import Pool
from gateway.worker import housekeeping
from tests.registry import CARDS
from tests.running import Client, Running, verify_body

DAYS = dt.timedelta(days=7)
MINUTE = dt.timedelta(minutes=1)
Sweep = Callable[[], Awaitable[None]]


@pytest.fixture
async def sweep(gateway: Running) -> AsyncIterator[Sweep]:
    """A turn of the worker's."""
    config = load({}).gateway
    pool = Pool(Secret(gateway.environment["DATABASE_URL"]), config.database, "test")
    await pool.open()
    yield lambda: housekeeping.sweep(pool, config)
    await pool.close()


async def test_a_key_is_replayed_for_seven_days_and_is_new_after_them(
    gateway: Running, merchant: Client, sweep: Sweep
) -> None:
    body = verify_body(CARDS[0].number, CARDS[0].identifier)
    ages = {f"swept-{time.time_ns()}-{name}": age for name, age in (("young", DAYS - MINUTE), ("old", DAYS + MINUTE))}

    async def ask() -> dict[str, tuple[str, bool]]:
        """By key: the event, and whether it was there already."""
        found = {}
        for key in ages:
            status, answer, headers = await merchant.post("/v1/cards/verify", body, **{"Idempotency-Key": key})
            assert status == 200, answer
            found[key] = answer["event_id"], "Idempotency-Replayed" in headers
        return found

    first = await ask()
    owner = await asyncpg.connect(gateway.environment["DATABASE_URL"])
    await owner.executemany(
        "UPDATE idempotency_key SET created_at = now() - $2::interval WHERE key = $1", list(ages.items())
    )
    await owner.close()
    await sweep()
    again = await ask()
    young, old = ages
    assert again[young] == (first[young][0], True)
    assert again[old][0] != first[old][0] and not again[old][1]


@pytest.mark.parametrize("left_s", [60, -20], ids=["just issued", "within the clocks' skew"])
async def test_an_assertion_is_good_once_until_it_expires_also_after_a_sweep(
    merchant: Client, sweep: Sweep, left_s: int
) -> None:
    expires = int(time.time()) + left_s
    assertion = merchant.assertion(merchant.claims(iat=expires - 60, exp=expires))
    assert (await merchant.ask_token(assertion))[0] == 200
    await sweep()
    status, answer = await merchant.ask_token(assertion)
    assert (status, answer["error"]) == (401, "invalid_client")
