"""The gateway's own keys rotate while callers get tokens and verify cards over two workers: no request fails."""

import asyncio
import datetime as dt
import json
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import urlencode

import aiohttp
import asyncpg
import jwt
import pytest

from gateway.crypto.key_files import create_next
from gateway.crypto.key_store import KeyUse
from tests.conftest import Database, start_gateway
from tests.faults.planted import plant
from tests.registry import CARDS
from tests.running import ASSERTION_TYPE, MANY, ROOT, Client, Running, eventually, request, send_raw, verify_body

OK = CARDS[0]
OVERLAP_S = 16 if MANY else 12
FORM = "application/x-www-form-urlencoded"


class Load:
    """Callers that ask for a token and use it at once, and again and again, each request on a connection of its own."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.failed: list[str] = []
        self.done = 0
        self.kids: set[str] = set()

    async def token(self) -> str:
        form = {"grant_type": "client_credentials", "client_assertion_type": ASSERTION_TYPE,
                "client_assertion": self.client.assertion()}  # fmt: skip
        sent = request("POST", "/oauth2/token", urlencode(form).encode(), content_type=FORM)
        answer = await send_raw(self.client.gateway.port, sent)
        self.done += 1
        if answer.status != 200:
            self.failed.append(f"token: {answer.status}")
            return ""
        token: str = json.loads(answer.body)["access_token"]
        self.kids.add(jwt.get_unverified_header(token)["kid"])
        return token

    async def verify(self, token: str, **headers: str) -> None:
        body = json.dumps(verify_body(OK.number, OK.identifier)).encode()
        sent = request("POST", "/v1/cards/verify", body, authorization=f"Bearer {token}", **headers)
        answer = await send_raw(self.client.gateway.port, sent)
        self.done += 1
        if answer.status != 200 or b'"holder"' not in answer.body:
            kid = jwt.get_unverified_header(token)["kid"]
            self.failed.append(f"verify with a token of {kid}: {answer.status}")

    async def _caller(self, number: int, first: str) -> None:
        turn = 0
        while True:
            if token := await self.token():
                for _ in range(3):
                    await self.verify(token)
                await self.verify(token, idempotency_key=f"k-{number}-{turn}")
            await self.verify(first)
            turn += 1

    async def during(self, work: Callable[[], Awaitable[object]]) -> None:
        first = await self.token()
        callers = [asyncio.create_task(self._caller(number, first)) for number in range(4)]
        try:
            await work()
        finally:
            for caller in callers:
                caller.cancel()
            ends = await asyncio.gather(*callers, return_exceptions=True)
        broken = [end for end in ends if not isinstance(end, asyncio.CancelledError)]
        assert not broken, broken


@pytest.fixture
async def running(database: Database, tmp_path: Path) -> AsyncIterator[Running]:
    config = tmp_path / "config"
    shutil.copytree(ROOT / "config", config)
    text = (config / "gateway.toml").read_text()
    assert "key_overlap_s = 30" in text
    (config / "gateway.toml").write_text(text.replace("key_overlap_s = 30", f"key_overlap_s = {OVERLAP_S}"))
    late = plant("one_reads_keys_late")
    made = await start_gateway(tmp_path / "data", database, WORKERS="2", CONFIG_DIR=str(config), **late)
    yield made
    await made.stop()


async def command(running: Running, *arguments: str) -> tuple[int, str, str]:
    """(exit code, output, errors) of `python -m gateway …` with the configuration of a running gateway."""
    environment = os.environ | {"DATA_DIR": str(running.data_dir), "PORT": str(running.port)} | running.environment
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", *arguments, cwd=ROOT, env=environment,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, errors = await child.communicate()
    return child.returncode or 0, out.decode(), errors.decode()


async def published(running: Running) -> set[str]:
    async with aiohttp.ClientSession() as session, session.get(f"{running.url}/.well-known/jwks.json") as answer:
        return {key["kid"] for key in (await answer.json())["keys"]}


def states(text: str) -> dict[str, str]:
    """kid -> state, of `keys status`."""
    return {words[1]: words[2] for line in text.splitlines()[1:] if (words := line.split())}


async def test_the_signing_key_and_the_kek_rotate_under_load(running: Running, database: Database) -> None:
    workers = {child.pid for child in running.children("serve-worker")}
    async with Client(running, "demo-merchant") as client:
        load = Load(client)

        async def rotate() -> None:
            asked_at = time.monotonic()
            code, out, errors = await command(running, "keys", "rotate")
            assert code == 0 and out.startswith("made sign-2: published now, signs from "), (out, errors)
            status = states((await command(running, "keys", "status"))[1])["sign-2"]
            assert status == "next" or time.monotonic() > asked_at + OVERLAP_S, "on a busy machine that took as long"
            if time.monotonic() < asked_at + OVERLAP_S / 2:
                code, _, errors = await command(running, "keys", "rotate")
                assert code == 1 and errors.startswith("not rotated: sign-2 has not taken over yet"), errors
            code, out, errors = await command(running, "keys", "rotate", "kek")
            assert code == 0 and out.startswith("made kek-2: it wraps all "), (out, errors)

            async def everywhere() -> bool:
                return all([await published(running) == {"sign-1", "sign-2"} for _ in range(10)])

            await eventually(everywhere, OVERLAP_S, "both workers publish the new key before it signs")
            assert load.kids == {"sign-1"} or time.monotonic() > asked_at + OVERLAP_S - 1
            before = load.done

            async def signs() -> bool:
                return "sign-2" in load.kids and load.done > before + 500

            await eventually(signs, 40, "the new key signs")

        await load.during(rotate)
        assert load.failed == [] and load.done > 500, load.failed[:5]
        assert load.kids == {"sign-1", "sign-2"}
        status = states((await command(running, "keys", "status"))[1])
        assert status["sign-1"] == "accepted" and status["sign-2"] == "current"
        assert status["kek-1"] == "retired" and status["kek-2"] == "current"
        assert {child.pid for child in running.children("serve-worker")} == workers, "none was restarted"
    await no_row_names(database, "kek-1")
    (running.data_dir / "keys" / "kek-1.json").unlink()
    await running.stop()
    await running.start()
    async with Client(running, "demo-merchant") as client:
        assert (await client.verify(OK.number, OK.identifier))["holder"], (
            "what was sealed before opens without the old KEK"
        )


async def no_row_names(database: Database, kek: str) -> None:
    connection = await asyncpg.connect(database.dsn)
    assert await connection.fetchval("SELECT count(*) FROM data_key WHERE kek_id = $1", kek) == 0
    assert await connection.fetchval("SELECT count(*) FROM data_key") > 0
    await connection.close()


async def test_without_the_overlap_requests_would_fail(running: Running) -> None:
    """The control: a key that signs as soon as the first worker has read it."""
    async with Client(running, "demo-merchant") as client:
        load = Load(client)

        async def rotate() -> None:
            for _ in range(3):
                kid, _ = create_next(running.data_dir / "keys", KeyUse.SIGN, dt.datetime.now(dt.UTC), 0)

                async def everywhere(kid: str = kid) -> bool:
                    return all([kid in await published(running) for _ in range(10)])

                await eventually(everywhere, 10, f"both workers have {kid}")
                if load.failed:
                    return

        await load.during(rotate)
        assert any(line.startswith("verify with a token of sign-") for line in load.failed), load.failed


@pytest.mark.parametrize("use", ["index", "pseudonym", "card-proof", "moon"])
async def test_keys_that_do_not_rotate_say_why(gateway: Running, use: str) -> None:
    code, out, errors = await command(gateway, "keys", "rotate", use)
    assert code == 1 and out == "" and errors.startswith("not rotated: ") and errors.count("\n") == 1
    assert sorted(path.name for path in (gateway.data_dir / "keys").glob(f"{use}-*")) == [
        f"{use}-1.json" for _ in range(use != "moon")
    ]
