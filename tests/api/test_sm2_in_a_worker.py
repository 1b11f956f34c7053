"""SM2 in a worker: its log says which library computes, and no signature is checked on the event loop's thread."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import Database, add_card, prepare_data_dir
from tests.faults.planted import plant
from tests.running import Client, Running, free_port, verify_body
from tests.served import Served


@pytest.fixture
async def without_openssl(tmp_path: Path, database: Database) -> AsyncIterator[Running]:
    running = Served(tmp_path, DATABASE_URL=database.dsn, BANK_PORT=str(free_port()), **plant("without_openssl"))
    prepare_data_dir(tmp_path, running.port)
    yield await running.start()
    await running.stop()


def said(gateway: Running) -> set[tuple[str, str]]:
    """(level, library) of the lines about SM2."""
    lines = [json.loads(line) for line in gateway.log.splitlines() if line.startswith("{")]
    return {(line["level"], line["backend"]) for line in lines if line["event"] == "SM2"}


def test_the_log_of_a_worker_says_that_openssl_computes_sm2(gateway: Running) -> None:
    [(level, library)] = said(gateway)
    assert level == "info" and re.fullmatch(r"libcrypto \(OpenSSL 3\..+\)", library)


async def test_without_openssl_its_log_warns_and_signatures_are_checked_in_the_slow_lanes_thread(
    without_openssl: Running,
) -> None:
    """By the hot lane's way, by aiohttp's (a path in which something varies), and of what need not be signed."""
    [(level, library)] = said(without_openssl)
    assert level == "warning" and re.fullmatch(r"gmssl-fast \(0\.1.*\): slower, for no OpenSSL 3 with SM2 .+", library)
    card = await add_card(without_openssl)
    async with Client(without_openssl, "demo-bank") as bank:
        await bank.token()
        before = len(without_openssl.log)
        reported = await bank.report_loss(card)
        await bank.release_loss(reported["reference"])
        shown = verify_body(card.number, card.identifier, "bank.counter")
        assert (await bank.effect("/v1/cards/verify", shown))[0] == 200
    threads = re.findall(r"SM2 checked in (\S+)", without_openssl.log[before:])
    assert len(threads) == 3 and all(thread.startswith("slow-lane") for thread in threads), threads
