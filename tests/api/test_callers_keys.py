"""Callers' keys while the gateway runs: published at a URL, given by the caller, revoked; everywhere within 60 s."""

import datetime as dt
import json
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import web

from gateway.directory import Directory
from gateway.domain.callers import KeyPurpose
from gateway.flows.rotate_caller_key import rotate
from gateway.settings import load
from gateway.store.embedded import EmbeddedPostgres
from tests.conftest import Database, drop_database, make_database, start_gateway
from tests.jwks import private, public, public_of
from tests.registry import CARDS
from tests.running import ROOT, Client, Running, eventually, request, send_raw, verify_body
from tests.tls import make_certificates

OK = CARDS[0]
WITHIN_S = 60.0
"""The promise; it takes about 7 s."""


Published = dict[str, list[dict[str, Any]]]
"""Keys by their use."""


class House:
    """A gateway of two workers, and the key server of demo-kiosk, which publishes its keys of both uses there."""

    def __init__(self, running: Running, database: Database, published: "Published") -> None:
        self.running, self.database, self.published = running, database, published

    def client(self, name: str, key: dict[str, Any] | None = None) -> Client:
        """A caller that uses another key than that of the sandbox's file."""
        client = Client(self.running, name)
        if key is not None:
            client.file |= {"private_jwk": key, "kid": key["kid"]}
        return client

    async def statuses(self, token: str) -> set[int]:
        """Of a verify over twenty connections: both workers are among them."""
        body = json.dumps(verify_body(OK.number, OK.identifier, "library.loan")).encode()
        sent = request("POST", "/v1/cards/verify", body, authorization=f"Bearer {token}")
        return {(await send_raw(self.running.port, sent, used=True)).status for _ in range(20)}

    async def eventually_refused(self, token: str) -> None:
        async def refused() -> bool:
            return await self.statuses(token) == {401}

        await eventually(refused, WITHIN_S, "the token is refused in both workers")

    async def token_of(self, client: Client) -> str:
        """A token, as soon as the caller's key is known."""

        async def token() -> str:
            status, answer = await client.ask_token()
            return str(answer["access_token"]) if status == 200 else ""

        return await eventually(token, WITHIN_S, "the key is known")


def configure(config: Path, port: int, ca_file: Path) -> None:
    changes = {
        "gateway.toml": (("jwks_hosts = []", f'jwks_hosts = ["127.0.0.1:{port}"]'),
                         ('ca_file = ""               #', f'ca_file = "{ca_file}" #'),
                         ("period_s = 30", "period_s = 1")),
        "callers.toml": (('keys_file = "sandbox/callers/public/demo-kiosk.json"',
                          f'keys_url = "https://127.0.0.1:{port}/token"'),
                         ('signing_keys_file = "sandbox/callers/public/demo-kiosk.signing.json"',
                          f'signing_keys_url = "https://127.0.0.1:{port}/signing"')),
    }  # fmt: skip
    for name, replacements in changes.items():
        text = (config / name).read_text()
        for old, new in replacements:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (config / name).write_text(text)


@pytest.fixture(scope="module")
async def house(
    postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp("keys")
    published: Published = {"token": [], "signing": []}

    async def keys(request: web.Request) -> web.StreamResponse:
        return web.json_response({"keys": published[request.match_info["use"]]})

    app = web.Application()
    app.router.add_get("/{use}", keys)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    ca_file, context = make_certificates(folder / "tls")
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    shutil.copytree(ROOT / "config", folder / "config")
    configure(folder / "config", runner.addresses[0][1], ca_file)
    database = await make_database(postgres, template)
    running = await start_gateway(folder / "data", database, WORKERS="2", CONFIG_DIR=str(folder / "config"))
    kiosk = {"issuer": running.url, "alg": "EdDSA"}
    (folder / "data" / "sandbox" / "callers" / "demo-kiosk.json").write_text(json.dumps(kiosk))
    yield House(running, database, published)
    await running.stop()
    await runner.cleanup()
    await drop_database(postgres, database)


async def test_published_keys_come_and_go(house: House) -> None:
    one, two = private("kiosk-1"), private("kiosk-2")
    async with house.client("demo-kiosk", one) as old, house.client("demo-kiosk", two) as new:
        assert (await old.ask_token())[0] == 401, "nothing was published yet"
        house.published["token"] = [public_of(one)]
        first = await house.token_of(old)
        assert await house.statuses(first) == {200}
        house.published["token"] = [public_of(one), public_of(two)]
        second = await house.token_of(new)
        assert await house.statuses(second) == {200} and await house.statuses(first) == {200}
        house.published["token"] = [public_of(two)]
        await house.eventually_refused(first)
        assert (await old.ask_token())[0] == 401
        assert await house.statuses(second) == {200}, "the control: only the tokens of the key that is gone"
        house.published["token"] = []  # a document without keys is refused: the last good one stays
        refused = ("demo-kiosk", "refused")
        await eventually(lambda: pulled(house, refused), 30, "the empty document was fetched")
        assert await house.statuses(await house.token_of(new)) == {200}


async def test_effects_are_signed_with_published_keys(house: House) -> None:
    token, one, two = (private(f"kiosk-{name}-{secrets.token_hex(4)}") for name in ("token", "one", "two"))
    house.published.update(token=[public_of(token)], signing=[public_of(one), public_of(two)])
    async with house.client("demo-kiosk", token) as kiosk:
        await house.token_of(kiosk)
        for key in (one, two):
            kiosk.file["signing"] = {"alg": "ed25519", "kid": key["kid"], "private_jwk": key}
            await eventually(lambda: status_of(kiosk, 200), WITHIN_S, "the published key is taken up")
        house.published["signing"] = [public_of(one)]
        await eventually(lambda: status_of(kiosk, 401), WITHIN_S, "a key that is published no more is refused")
        kiosk.file["signing"] |= {"kid": one["kid"], "private_jwk": one}
        assert await status_of(kiosk, 200), "the control: the key that stayed"


async def status_of(client: Client, wanted: int) -> bool:
    """Whether both workers answer its signed effect so; the card is nobody's, so nothing is changed."""
    body = {"presentation": verify_body("ZZ0000000", "F" * 32)["presentation"], "kind": "temporary"}
    return await statuses_of(client, "/v1/cards/loss-reports", body) == {wanted}


async def pulled(house: House, labels: tuple[str, str]) -> bool:
    name, wanted = "yikatong_jwks_pulls_total", {("caller", labels[0]), ("result", labels[1])}
    return (await house.running.metrics()).get((name, frozenset(wanted)), 0) >= 2


async def change(house: House, use: KeyPurpose, jwk: dict[str, Any] | None, retire: str | None) -> list[str]:
    """What POST /v1/callers/self/keys does in its transaction."""
    environment = {"DATA_DIR": str(house.running.data_dir)} | house.running.environment
    known = Directory(load(environment)).callers["demo-merchant"]
    owner = await asyncpg.connect(house.database.dsn)
    try:
        async with owner.transaction():
            done = await rotate(owner, "demo-merchant", known, use, jwk, retire, dt.datetime.now(dt.UTC))
        return done.keys
    finally:
        await owner.close()


async def test_a_caller_rotates_its_key_without_a_failed_request(house: House) -> None:
    new_key = private("merchant-" + secrets.token_hex(4))
    async with house.client("demo-merchant") as old, house.client("demo-merchant", new_key) as new:
        before = await old.token()
        assert (await new.ask_token())[0] == 401, "the control: it is not known before"
        kids = await change(house, KeyPurpose.TOKEN, public_of(new_key), None)
        assert kids == ["demo-merchant-1", new_key["kid"]]
        after = await house.token_of(new)
        assert await house.statuses(after) == {200}, "also in the worker that has not read the new key yet"
        assert await house.statuses(before) == {200}, "both at a time"
        await change(house, KeyPurpose.TOKEN, None, "demo-merchant-1")
        began = time.monotonic()
        await house.eventually_refused(before)
        assert time.monotonic() - began < WITHIN_S
        assert (await old.ask_token())[0] == 401 and await house.statuses(after) == {200}


async def test_a_new_key_is_good_at_once_in_every_worker(house: House) -> None:
    """No request of the caller fails, and nobody waits for the next look at the table."""
    failed, before = [], None
    for _ in range(3):
        key = private("merchant-" + secrets.token_hex(4))
        await change(house, KeyPurpose.TOKEN, public_of(key), before)
        before = key["kid"]
        for _ in range(6):  # each time on a connection of its own: both workers are among them
            async with house.client("demo-merchant", key) as client:
                status, answer = await client.ask_token()
                failed += [answer] if status != 200 else []
    assert failed == []


async def test_a_revoked_key_is_out_with_its_tokens(house: House) -> None:
    callers = Path(house.running.environment["CONFIG_DIR"]) / "callers.toml"
    async with house.client("demo-talent") as talent, house.client("demo-transit") as other:
        token, others = await talent.token(), await other.token()
        assert await house.statuses(token) == {200}
        text = callers.read_text()
        line = 'keys_file = "sandbox/callers/public/demo-talent.json"'
        assert text.count(line) == 1
        callers.with_suffix(".new").write_text(text.replace(line, line + '\nrevoked_kids = ["demo-talent-1"]'))
        callers.with_suffix(".new").replace(callers)
        await house.eventually_refused(token)
        assert (await talent.ask_token())[0] == 401
        assert await house.statuses(others) == {200}, "the control: another caller's token lives"


PATH = "/v1/callers/self/keys"


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"use": "token"}, 422, "validation_failed"),
        ({"use": "sealing", "retire": "x"}, 422, "validation_failed"),
        ({"use": "token", "jwk": private("p-1", "ES256")}, 422, "validation_failed"),
        ({"use": "token", "jwk": public("p-1")}, 422, "validation_failed"),
        ({"use": "token", "retire": "nothing"}, 422, "unknown_key"),
        ({"use": "signing", "retire": "demo-bureau-signing-1"}, 409, "last_key"),
        ({"use": "signing", "jwk": public("demo-bureau-signing-1", "ES256")}, 409, "key_exists"),
    ],
    ids=["nothing", "use", "private", "algorithm", "unknown", "last", "there"],
)
async def test_a_change_that_cannot_be_is_refused(house: House, change: Any, status: int, code: str) -> None:
    async with house.client("demo-bureau") as client:
        found, body, _ = await client.effect(PATH, change)
        assert (found, json.loads(body)["code"]) == (status, code)
        assert str(change.get("jwk", {}).get("x", "nothing sent")) not in body.decode()


async def test_who_cannot_sign_cannot_change_its_keys(house: House) -> None:
    async with house.client("demo-limited") as client:
        status, answer, _ = await client.post(PATH, {"use": "token", "retire": "x"}, **{"Idempotency-Key": "k"})
        assert (status, answer["code"]) == (401, "invalid_signature")


async def test_a_caller_rotates_its_keys_over_the_wire(house: House) -> None:
    """Signed with the old key; the new one is good at once, the old one is refused, a second use changes nothing."""
    kid = "bureau-" + secrets.token_hex(4)
    signing, fresh = private(f"{kid}-signing", "ES256"), private(kid, "ES256")
    async with house.client("demo-bureau") as client:
        before = await client.token()
        body = {"use": "signing", "jwk": public_of(signing), "retire": "demo-bureau-signing-1"}
        status, answer, _ = await client.effect(PATH, body, key="rotate-1")
        assert (status, json.loads(answer)) == (
            200,
            {"use": "signing", "keys": [signing["kid"]], "kid": signing["kid"]},
        )
        await eventually(lambda: is_refused(client), WITHIN_S, "the old signing key is refused in both workers")

        client.file["signing"] |= {"kid": signing["kid"], "private_jwk": signing}
        status, again, headers = await client.effect(PATH, body, key="rotate-1")
        assert (status, again, headers["Idempotency-Replayed"]) == (200, answer, "true"), "signed anew, done once"
        change = {"use": "token", "jwk": public_of(fresh), "retire": "demo-bureau-1"}
        status, answer, _ = await client.effect(PATH, change)
        assert status == 200, answer
        async with house.client("demo-bureau", fresh) as new:
            assert await house.statuses(await house.token_of(new)) == {403}, "known, without the scope to verify"
        await house.eventually_refused(before)


async def is_refused(client: Client) -> bool:
    """Whether both workers refuse its signature; the key to retire is not there, so nothing is changed."""
    return await statuses_of(client, PATH, {"use": "signing", "retire": "nothing"}) == {401}


async def statuses_of(client: Client, path: str, body: dict[str, Any]) -> set[int]:
    """Of an effect over ten connections: both workers are among them."""
    statuses = set()
    for _ in range(10):
        async with Client(client.gateway, client.name) as other:
            other.file, other._token = client.file, client._token
            statuses.add((await other.effect(path, body))[0])
    return statuses
