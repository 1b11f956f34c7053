"""Keys that callers publish: fetched over real TLS, kept in a real database, the last good ones stay."""

import datetime as dt
import gzip
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import REGISTRY

from gateway.crypto import ed25519_points
from gateway.crypto.caller_keys import in_force
from gateway.crypto.signatures import ED25519, read_signing_jwk, verify
from gateway.directory import Directory
from gateway.domain.caller_keys import CallerKey
from gateway.domain.callers import KeyPurpose
from gateway.domain.errors import CannotStart
from gateway.domain.masking import Secret
from gateway.flows.take_published_keys import take
from gateway.sandbox.callers import write_callers
from gateway.settings import Settings, SettingsError, load
from gateway.store import caller_keys
from gateway.store.pool import Pool
from gateway.worker import published_keys
from gateway.worker.published_keys import PublishedKeys
from tests.conftest import Database
from tests.jwks import ANYBODYS, FOR_OTHERS, FORGED, UNFIT, UNFIT_KIDS, private, public
from tests.running import ROOT
from tests.tls import make_certificates

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Partner:
    """A caller that publishes its signing keys at /keys; `answer` may be replaced by anything odd."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.answer: Answer | None = None
        self.asked = 0
        self.elsewhere = 0
        self.port = 0
        self._runner: web.AppRunner | None = None

    async def start(self, context: Any) -> None:
        async def keys(request: web.Request) -> web.StreamResponse:
            self.asked += 1
            return await self.answer(request) if self.answer else web.json_response({"keys": self.keys})

        async def elsewhere(request: web.Request) -> web.StreamResponse:
            self.elsewhere += 1
            return web.json_response({"keys": [public("elsewhere")]})

        app = web.Application()
        app.router.add_get("/keys", keys)
        app.router.add_get("/elsewhere", elsewhere)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def says(self, body: bytes, status: int = 200, **headers: str) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            return web.Response(body=body, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})

        self.answer = answer


class Bench:
    """The fetcher as the worker runs it, turn by turn."""

    def __init__(self, partner: Partner, settings: Settings, pool: Pool) -> None:
        self.partner, self.settings, self.pool = partner, settings, pool
        self.fetcher = PublishedKeys(settings, pool)

    async def turn(self) -> str:
        """What the turn came to."""
        before = {result: counted(result) for result in published_keys.Result}
        await self.fetcher.turn()
        (result,) = [result for result in published_keys.Result if counted(result) > before[result]]
        return result.value

    async def publish(self, *keys: dict[str, Any]) -> str:
        self.partner.keys, self.partner.answer = list(keys), None
        return await self.turn()

    async def rows(self) -> list[CallerKey]:
        async with self.pool.acquire() as connection:
            return await caller_keys.relevant(connection, [])

    async def in_force(self) -> list[str]:
        return [row.kid for row in await self.rows()]


def counted(result: str) -> float:
    labels = {"caller": "demo-merchant", "result": result}
    return REGISTRY.get_sample_value("yikatong_jwks_pulls_total", labels) or 0.0


def configure(folder: Path, port: int, hosts: str, ca_file: str) -> dict[str, str]:
    """A configuration in which demo-merchant publishes its signing keys."""
    config = folder / "config"
    shutil.rmtree(config, ignore_errors=True)
    shutil.copytree(ROOT / "config", config)
    for name, old, new in (
        ("callers.toml", 'signing_keys_file = "sandbox/callers/public/demo-merchant.signing.json"',
         f'signing_keys_url = "https://127.0.0.1:{port}/keys"'),
        ("gateway.toml", "jwks_hosts = []", f"jwks_hosts = [{hosts}]"),
        ("gateway.toml", 'ca_file = ""', f'ca_file = "{ca_file}"'),
        ("gateway.toml", "period_s = 30", "period_s = 1"),
    ):  # fmt: skip
        text = (config / name).read_text()
        assert old in text
        (config / name).write_text(text.replace(old, new))
    return {"CONFIG_DIR": str(config), "DATA_DIR": str(folder / "data")}


@pytest.fixture
async def partner() -> AsyncIterator[Partner]:
    made = Partner()
    yield made
    await made.stop()


async def make_bench(
    partner: Partner, database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch, **certificate: Any
) -> Bench:
    ca_file, context = make_certificates(folder / "tls", **certificate)
    await partner.start(context)
    environment = configure(folder, partner.port, f'"127.0.0.1:{partner.port}"', str(ca_file))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = load()
    write_callers(settings)  # the others' keys
    pool = Pool(Secret(database.dsn), settings.gateway.database, "test")
    await pool.open()
    bench = Bench(partner, settings, pool)
    await bench.fetcher.open()
    return bench


async def close(bench: Bench) -> None:
    await bench.fetcher.close()
    await bench.pool.close()


@pytest.fixture
async def bench(
    partner: Partner, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    made = await make_bench(partner, database, tmp_path, monkeypatch)
    yield made
    await close(made)


async def test_keys_come_and_go_as_they_are_published(bench: Bench) -> None:
    one, two, three = (public(f"k-{number}") for number in (1, 2, 3))
    assert await bench.publish(one) == "changed" and await bench.in_force() == ["k-1"]
    assert await bench.publish(one) == "unchanged"
    assert await bench.publish(one, two) == "changed" and await bench.in_force() == ["k-1", "k-2"]
    assert await bench.publish(two, three, public("p", "ES256")) == "changed", "a key for something else beside them"
    assert await bench.in_force() == ["k-2", "k-3"]
    assert await bench.publish(one) == "changed", "what disappeared may come back"
    assert await bench.in_force() == ["k-1"]


def sent(document: Any) -> Callable[[Partner], None]:
    return lambda partner: partner.says(json.dumps(document).encode())


ODD: dict[str, tuple[str, Callable[[Partner], None]]] = {
    "nothing": ("refused", lambda p: p.says(b"")),
    "a page": ("refused", lambda p: p.says(b"<html>down for maintenance</html>")),
    "deep JSON": ("refused", lambda p: p.says(b"[" * 60_000)),
    "a list": ("refused", sent([])),
    "no keys": ("refused", sent({"keys": []})),
    "keys of another kind alone": ("refused", sent({"keys": [public("e", "ES256")]})),
    "three that fit": ("refused", sent({"keys": [public(f"n-{number}") for number in range(3)]})),
    "eleven": ("refused", sent({"keys": [public("n"), *(public(f"e-{n}", "ES256") for n in range(10))]})),
    "a private key": ("refused", sent({"keys": [private("n")]})),
    "a secret beside a good one": ("refused", sent({"keys": [public("n"), {"kty": "oct", "k": "AA", "kid": "s"}]})),
    "the same kid twice": ("refused", sent({"keys": [public("n"), public("n")]})),
    "no kid": ("refused", sent({"keys": [public("n") | {"kid": None}]})),
    "a kid with a NUL": ("refused", sent({"keys": [public("n\0")]})),
    "a kid that was another key": ("refused", sent({"keys": [public("k-1")]})),
    "a malformed key": ("refused", sent({"keys": [public("n") | {"x": "AAAA"}]})),
    "more than 64 KiB": ("refused", lambda p: p.says(json.dumps({"keys": [public("n")]}).encode() + b" " * 65_536)),
    "a compressed bomb": ("refused", lambda p: p.says(gzip.compress(b" " * 10_000_000), Content_Encoding="gzip")),
    "a redirect": ("unreachable", lambda p: p.says(b"", 302, Location="/elsewhere")),
    "an error": ("unreachable", lambda p: p.says(json.dumps({"keys": [public("n")]}).encode(), 500)),
}


@pytest.mark.parametrize("how", ODD)
async def test_an_odd_answer_leaves_the_last_good_keys(bench: Bench, how: str) -> None:
    good = public("k-1")
    await bench.publish(good)
    result, play = ODD[how]
    play(bench.partner)
    assert await bench.turn() == result
    assert await bench.in_force() == ["k-1"] and bench.partner.elsewhere == 0
    assert await bench.publish(good, public("k-2")) == "changed", "a good one is taken afterwards"


async def test_a_key_of_no_owner_leaves_the_last_good_keys(bench: Bench) -> None:
    good = public("k-1")
    await bench.publish(good)
    for how, (change, _) in UNFIT.items():
        assert await bench.publish(good, public("weak") | change) == "refused", how
        assert await bench.in_force() == ["k-1"]
    assert await bench.publish(good, public("k-2")) == "changed"


async def test_a_kid_that_no_signature_can_name_leaves_the_last_good_keys(bench: Bench) -> None:
    await bench.publish(public("k-1"))
    for kid in UNFIT_KIDS:
        assert await bench.publish(public(kid)) == "refused", kid
        assert await bench.in_force() == ["k-1"]
    assert await bench.publish(public("k-2"), public('for "tokens"', "ES256")) == "changed", "another's may be anything"


async def test_a_key_for_the_other_use_leaves_the_last_good_keys(bench: Bench) -> None:
    """Whether it is in a file, was given by the caller, or is out by now."""
    await bench.publish(public("k-1"))
    settings = bench.settings
    (in_file,) = json.loads((settings.data_dir / "sandbox/callers/public/demo-merchant.json").read_text())["keys"]
    given, now = public("t-9"), dt.datetime.now(dt.UTC)
    jwk = read_signing_jwk(given, ED25519).jwk
    async with bench.pool.acquire() as connection:
        await caller_keys.add(connection, "demo-merchant", KeyPurpose.TOKEN, "t-9", jwk, "self", now)
    assert await bench.publish(in_file) == "refused" and await bench.publish(given | {"kid": "s-9"}) == "refused"
    async with bench.pool.acquire() as connection:
        await caller_keys.retire(connection, "demo-merchant", KeyPurpose.TOKEN, "t-9", now)
        assert await bench.publish(given) == "refused"
        (row,) = await bench.rows()
        signing = [read_signing_jwk(json.loads(row.jwk or "") | {"kid": "t-10"}, ED25519)]
        with pytest.raises(ValueError, match="each use needs keys of its own"):
            await take(connection, "demo-merchant", KeyPurpose.TOKEN, signing, now)
    assert await bench.in_force() == ["k-1"]
    assert await bench.publish(public("k-2")) == "changed"


async def test_a_key_for_something_else_does_not_hold_up_the_others(bench: Bench) -> None:
    for number, change in enumerate(FOR_OTHERS.values()):
        kid = f"k-{number}"
        assert await bench.publish(public("other") | change) == "refused"
        assert await bench.publish(public(kid), public("other") | change) == "changed"
        assert await bench.in_force() == [kid]


async def test_without_the_check_anybody_could_sign_for_a_published_key(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the keys of no owner."""
    monkeypatch.setattr(ed25519_points, "refuse_unfit", lambda encoded: None)
    assert await bench.publish(public("k-1") | {"x": ANYBODYS}) == "changed"
    (key,) = in_force(bench.settings.callers["demo-merchant"], KeyPurpose.SIGNING, (), await bench.rows())
    assert key.kid == "k-1" and verify(key, b"pay me", FORGED)


async def test_a_server_that_is_gone_or_silent_leaves_the_last_good_keys(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.publish(public("k-1"))
    monkeypatch.setattr(published_keys, "_DEADLINE_S", 0.3)
    hasty = Bench(bench.partner, bench.settings, bench.pool)
    await hasty.fetcher.open()

    async def drip(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:  # never ends; one byte at a time keeps the connection alive
            await answer.write(b" ")

    bench.partner.answer = drip
    assert await hasty.turn() in ("unreachable", "refused")
    await bench.partner.stop()
    assert await hasty.turn() == "unreachable" and await bench.in_force() == ["k-1"]
    await hasty.fetcher.close()


@pytest.mark.parametrize("wrong", [{"expired": True}, {"address": "127.0.0.2"}], ids=["expired", "another host's"])
async def test_a_wrong_certificate_is_not_believed(
    partner: Partner, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    """Its control: with the right certificate the same keys are taken (test_keys_come_and_go_as_they_are_published)."""
    bench = await make_bench(partner, database, tmp_path, monkeypatch, **wrong)
    assert await bench.publish(public("k-1")) == "unreachable"
    assert await bench.in_force() == [] and partner.asked == 0
    await close(bench)


async def test_a_certificate_of_an_unknown_authority_is_not_believed(bench: Bench, tmp_path: Path) -> None:
    other, _ = make_certificates(tmp_path / "other")
    text = (tmp_path / "config" / "gateway.toml").read_text()
    (tmp_path / "config" / "gateway.toml").write_text(text.replace(str(tmp_path / "tls" / "ca.pem"), str(other)))
    stranger = Bench(bench.partner, load(), bench.pool)
    await stranger.fetcher.open()
    assert await stranger.publish(public("k-1")) == "unreachable" and await bench.in_force() == []
    await stranger.fetcher.close()


async def test_revoked_keys_are_not_taken_and_make_no_third(bench: Bench, tmp_path: Path) -> None:
    callers = tmp_path / "config" / "callers.toml"
    line = 'signing_algorithm = "ed25519"'
    callers.write_text(callers.read_text().replace(line, line + '\nrevoked_kids = ["k-1"]', 1))
    assert await bench.publish(public("k-1"), public("k-2"), public("k-3")) == "changed"
    assert await bench.in_force() == ["k-2", "k-3"]


async def test_a_change_that_the_workers_refuse_is_none_here(bench: Bench, tmp_path: Path) -> None:
    """For the key file of another caller, say: it would be half in force."""
    callers = tmp_path / "config" / "callers.toml"
    line = 'signing_algorithm = "ed25519"'
    text = callers.read_text().replace(line, line + '\nrevoked_kids = ["k-1"]', 1)
    callers.write_text(text.replace("public/demo-region.json", "public/gone.json"))
    assert await bench.publish(public("k-1")) == "changed" and await bench.in_force() == ["k-1"]


HOSTS = ["", '"127.0.0.2:1"', '"127.0.0.1"', '"keys.example"']


@pytest.mark.parametrize("hosts", HOSTS)
def test_a_host_that_is_not_on_the_list_is_named(tmp_path: Path, hosts: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(configure(tmp_path, 1, hosts, ""))
    assert any(
        mistake.startswith("callers.toml: callers.demo-merchant.signing_keys_url: ")
        for mistake in caught.value.mistakes
    )


async def test_certificates_that_cannot_be_read_stop_the_start(tmp_path: Path) -> None:
    for name in ("missing.pem", "config/gateway.toml"):
        settings = load(configure(tmp_path, 1, '"127.0.0.1:1"', str(tmp_path / name)))
        pool = Pool(Secret(""), settings.gateway.database, "test")
        with pytest.raises(CannotStart, match="ca_file"):
            await PublishedKeys(settings, pool).open()
        with pytest.raises(
            SettingsError, match=r"gateway\.toml: callers_keys\.ca_file: .*(No such file|not certificates)"
        ):
            Directory(settings)  # as check-config and serve do
