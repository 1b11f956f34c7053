"""partners.toml: every mistake is named by its path."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

import adapters
from gateway.domain.operations import Balance
from gateway.domain.outcome import Approved, NotSent
from gateway.partners.breaker import Breaker
from gateway.partners.call import Partners
from gateway.partners.phases import Why
from gateway.partners.registry import read
from gateway.settings import SettingsError
from tests.contract.case import SM2_OURS
from tests.contract.cases.example import PURCHASE
from tests.partners.peers import block, configure, partners, peer, purchase
from tests.running import free_port
from tests.tls import make_certificates

GOOD = block("bank", 1)


def mistakes_of(folder: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        read(configure(folder, text), environ)
    return caught.value.mistakes


MISTAKES = {
    "a missing adapter file": (
        'adapter = "example"',
        'adapter = "no_such"',
        "adapter: no such file adapters/no_such.py",
    ),
    "an adapter that is a kit": ('adapter = "example"', 'adapter = "_kit"', "adapter: "),
    "an adapter elsewhere": ('adapter = "example"', 'adapter = "../os"', "adapter: "),
    "an unknown operation": ('"purchase", ', '"steal", ', "operations: no such operation 'steal'"),
    "an operation that the dialect lacks": (
        '"purchase", ',
        '"balance", ',
        "operations: adapters/example.py cannot do balance",
    ),
    "a link for an HTTP dialect": (
        '[partners.bank.http]\nbase_url = "http://127.0.0.1:1/api"',
        '[partners.bank.link]\nhost = "h"\nport = 1',
        "http: missing",
    ),
    "plain HTTP beyond loopback": (
        "http://127.0.0.1:1/api",
        "http://bank.example/api",
        "http.base_url: plain http:// only on loopback",
    ),
    "a host that looks like loopback": (
        "http://127.0.0.1:1/api",
        "http://127.0.0.1.bank.example/",
        "http.base_url: plain http:// only on loopback",
    ),
    "a password in the address": ("http://127.0.0.1:1/api", "https://me:pw@bank.example", "http.base_url: "),
    "a client certificate without its key": (
        '/api"\n',
        '/api"\nclient_cert_file = "x.pem"\n',
        "http.client_cert_file: goes with client_key_file",
    ),
    "a certificate for a link that is not TLS": (
        '[partners.bank.http]\nbase_url = "http://127.0.0.1:1/api"',
        '[partners.bank.link]\nhost = "h"\nport = 1\nclient_cert_file = "x"\nclient_key_file = "y"',
        "link.ca_file: missing, and without it the link is not TLS",
    ),
    "an authority that is not there": (
        '"http://127.0.0.1:1/api"\n',
        '"https://bank.example"\nca_file = "x.pem"\n',
        "http: x.pem: No such file or directory",
    ),
    "a missing key": ("[partners.bank.keys.mac]", "[partners.bank.keys.other]", "keys.mac: missing"),
    "a key of an unknown kind": ('"hmac-sha256"', '"md5"', "keys.mac.kind: "),
    "a secret in the file": ('file = "mac.key"', 'secret = "abc"', "keys.mac.secret: unknown key"),
    "a key from nowhere": ('file = "mac.key"', "", "keys.mac: one of file and env is needed"),
    "a key file that is not there": (
        'file = "mac.key"',
        'file = "no.key"',
        "keys.mac: no.key: No such file or directory",
    ),
    "a variable that is not set": (
        'file = "mac.key"',
        'env = "NO_KEY"',
        "keys.mac: NO_KEY: not set in the environment",
    ),
    "a key of a wrong length": (
        '"hmac-sha256"',
        '"mac-3des"\nencoding = "text"',
        "keys.mac: mac.key: a key of this kind has 16 bytes",
    ),
    "a missing setting of the dialect": ('merchant_id = "M1"', "", "dialect.merchant_id: missing"),
    "a wrong setting of the dialect": ('"M1"', '"m 1"', "dialect.merchant_id: "),
    "an unknown setting of the dialect": ('"M1"', '"M1"\nshop = 1', "dialect.shop: unknown key"),
    "a breaker that stays open": (
        "timeout_ms = 400",
        "timeout_ms = 400\nbreaker = { open_s = 31 }",
        "breaker.open_s: ",
    ),
    "a breaker that opens late": (
        "timeout_ms = 400",
        "timeout_ms = 400\nbreaker = { failures = 6 }",
        "breaker.failures: ",
    ),
    "no limit of the body": ("timeout_ms = 400", "body_max_bytes = 0", "body_max_bytes: "),
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_is_named_by_its_path(mistake: str, tmp_path: Path) -> None:
    old, new, path = MISTAKES[mistake]
    assert old in GOOD
    found = mistakes_of(tmp_path, GOOD.replace(old, new, 1))
    assert [line for line in found if line.startswith(f"partners.toml: partners.bank.{path}")], found


def test_an_adapter_that_raises_as_it_is_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faulty.py").write_text(
        "from tests.contract.dialects import example\n\n\n"
        "class Adapter(example.Adapter):\n    def __init__(self, settings):\n        raise KeyError('s3cret')\n"
    )
    monkeypatch.setattr(adapters, "__path__", [*adapters.__path__, str(tmp_path)])
    found = mistakes_of(tmp_path, GOOD.replace('"example"', '"faulty"'))
    assert found == ["partners.toml: partners.bank.adapter: adapters/faulty.py raised KeyError"]


def test_what_is_shipped_and_the_good_block_are_good(tmp_path: Path) -> None:
    assert set(read(configure(tmp_path, GOOD))) == {"bank"}


LOT = """
[partners.lot]
name = "示范"
adapter = "merchant_signed_http"
operations = ["open_barrier", "parking_fee", "query_status"]
http = { base_url = "http://127.0.0.1:1" }
merchant = { caller = "demo-merchant", terminals = ["L-*"] }
[partners.lot.keys]
sign = { kind = "hmac-sm3", file = "mac.key" }
partner = { kind = "hmac-sm3", file = "mac.key" }
[partners.lot.dialect]
party = "p"
done = "0"
declines = { "4" = "not_found" }
paths = { open_barrier = "/open", parking_fee = "/fee", query_status = "/state" }
"""


def test_an_operation_that_the_settings_of_a_dialect_leave_out(tmp_path: Path) -> None:
    assert set(read(configure(tmp_path, LOT))) == {"lot"}
    found = mistakes_of(tmp_path, LOT.replace(', parking_fee = "/fee", query_status = "/state"', ""))
    assert found == [
        f"partners.toml: partners.lot.operations: the settings in partners.lot.dialect leave {name} out"
        for name in ("parking_fee", "query_status")
    ]


SIGNED = """
[partners.signed]
name = "示范"
adapter = "bank_signed_http"
operations = ["balance"]
http = { base_url = "http://127.0.0.1:1" }
[partners.signed.keys]
sign = { kind = "sm2", file = "ours.sm2" }
encrypt = { kind = "hmac-sm3", file = "mac.key" }
partner = { kind = "sm2", file = "ours.sm2" }
[partners.signed.dialect]
app_id = "a"
bank_id = "b"
authorization = { file = "bearer" }
access_token = { env = "TOKEN" }
"""


def signed(folder: Path, mode: int = 0o600) -> None:
    configure(folder)
    for name, text in (("ours.sm2", SM2_OURS), ("bearer", "Bearer s3cret")):
        (folder / name).touch(0o600)
        (folder / name).write_text(text + "\n")
    (folder / "bearer").chmod(mode)


def test_a_secret_of_a_dialect_is_in_a_file_or_the_environment(tmp_path: Path) -> None:
    signed(tmp_path)
    checked = read(configure(tmp_path, SIGNED), {"TOKEN": "t0ken"})["signed"]
    known: Any = checked.adapter
    assert known._settings.authorization.reveal() == "Bearer s3cret"
    assert known._settings.access_token.reveal() == "t0ken"
    assert not {"s3cret", "t0ken"} & set(repr(checked).split())
    other = read(configure(tmp_path, SIGNED), {"TOKEN": "another"})["signed"]
    assert other.mark != checked.mark, "so that a change is taken up"


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        ('{ file = "bearer" }', '"Bearer s3cret"', "authorization: a secret is not written here"),
        ('{ file = "bearer" }', '{ file = "gone" }', "authorization: gone: No such file or directory"),
        ('{ file = "bearer" }', "{ }", "authorization: nowhere: one of file and env is needed"),
        ('{ file = "bearer" }', '{ value = "s3cret" }', "authorization.value: unknown key"),
        ('{ env = "TOKEN" }', '{ env = "GONE" }', "access_token: GONE: not set in the environment"),
    ],
)
def test_a_secret_of_a_dialect_that_is_not_there_is_named(tmp_path: Path, old: str, new: str, mistake: str) -> None:
    signed(tmp_path)
    [found] = mistakes_of(tmp_path, SIGNED.replace(old, new), TOKEN="t0ken")
    assert found.startswith(f"partners.toml: partners.signed.dialect.{mistake}") and "s3cret" not in found
    read(configure(tmp_path, SIGNED.replace("operations", "enabled = false\noperations")), {})


def test_a_secret_of_a_dialect_that_others_may_read_is_refused(tmp_path: Path) -> None:
    signed(tmp_path, mode=0o644)
    [found] = mistakes_of(tmp_path, SIGNED, TOKEN="t0ken")
    assert "authorization: " in found and "others may read it" in found


@pytest.mark.parametrize("name", ["mac.key", "us.key"])
def test_a_key_file_that_others_may_read_is_refused(name: str, tmp_path: Path) -> None:
    configure(tmp_path, GOOD)
    make_certificates(tmp_path)
    (tmp_path / "us.key").touch(0o600)
    (tmp_path / name).chmod(0o640)
    tls = 'client_cert_file = "server.pem"\nclient_key_file = "us.key"\n'
    found = mistakes_of(tmp_path, block("bank", 1, scheme="https", http=tls))
    assert any("others may read it" in line for line in found), found


def test_no_mistake_repeats_a_secret(tmp_path: Path) -> None:
    configure(tmp_path, GOOD)
    (tmp_path / "mac.key").write_text("s3cret-that-is-no-hex")
    assert "s3cret" not in str(mistakes_of(tmp_path, GOOD))
    assert "s3cret" not in str(mistakes_of(tmp_path, GOOD.replace('file = "mac.key"', 'env = "K"'), K="s3cret"))


def test_a_key_that_is_no_text_is_refused_in_a_file_as_in_the_environment(tmp_path: Path) -> None:
    """Nor is a byte of it repeated."""
    configure(tmp_path, GOOD)
    (tmp_path / "mac.key").write_bytes(b"\xf3")
    assert mistakes_of(tmp_path, GOOD) == ["partners.toml: partners.bank.keys.mac: mac.key: not a text"]
    named = GOOD.replace('file = "mac.key"', 'env = "K"')
    assert mistakes_of(tmp_path, named, K="\udcf3") == ["partners.toml: partners.bank.keys.mac: K: not a text"]


async def test_what_is_not_routed_is_not_sent(tmp_path: Path) -> None:
    async with (
        peer() as bank,
        partners(tmp_path, block("bank", bank.port), block("off", bank.port, "enabled = false")) as made,
    ):
        deadline = time.monotonic() + 1
        balance = Balance(reference=PURCHASE.reference, at=PURCHASE.at, account=PURCHASE.account, trace=1)
        for name, op in (("bank", balance), ("off", PURCHASE), ("nobody", PURCHASE)):
            assert await made.call(name, op, deadline) == NotSent(Why.NO_PARTNER)
        assert bank.connections == 0


async def call(made: Partners, name: str = "bank") -> object:
    return await made.call(name, purchase(), time.monotonic() + 1)


async def test_the_retry_budget_is_a_share_of_the_calls(tmp_path: Path) -> None:
    more = "breaker = { failures = 5, open_s = 1 }\nretry_percent = 10"
    async with partners(tmp_path, block("bank", free_port(), more)) as made:
        working = made.registry.get("bank")
        assert working is not None
        tries = 0
        for _ in range(40):
            working.breaker = Breaker(5, 1)  # an open one would spare the partner, and nothing were counted
            working.transcript.clear()
            assert await call(made) == NotSent(Why.NO_CONNECTION)
            tries += len(working.transcript)
        assert 40 < tries <= 40 * 1.1 + 1


async def test_the_four_timestamps_are_kept(tmp_path: Path) -> None:
    async with peer() as bank, partners(tmp_path, block("bank", bank.port)) as made:
        await call(made)
        [entry] = made.transcript("bank")
        assert set(entry.seconds) == {"before", "partner", "reading"}
        assert all(0 <= seconds < 0.4 for seconds in entry.seconds.values())
        assert msgspec.json.encode(entry)
        for _ in range(60):
            await call(made)
        assert len(made.transcript("bank")) == 50
        made.measure()


async def test_sm2_leaves_the_event_loop_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(tmp_path)
    (tmp_path / "ours.sm2").touch(0o600)
    (tmp_path / "ours.sm2").write_text(SM2_OURS)
    threads: list[str] = []
    sm2 = '[partners.bank.keys.ours]\nkind = "sm2"\nfile = "ours.sm2"\n'
    async with peer() as bank, partners(tmp_path, block("bank", bank.port) + sm2) as made:
        working = made.registry.get("bank")
        assert working is not None
        build, parse = working.adapter.build, working.adapter.parse

        def noting(function: Any) -> Any:
            def noted(*arguments: Any) -> Any:
                threads.append(threading.current_thread().name)
                return function(*arguments)

            return noted

        monkeypatch.setattr(working.adapter, "build", noting(build))
        monkeypatch.setattr(working.adapter, "parse", noting(parse))
        outcomes = await asyncio.gather(*(call(made) for _ in range(30)))
    assert all(isinstance(outcome, Approved) for outcome in outcomes)
    assert len(threads) == 60
    assert all(name.startswith("slow-lane") for name in threads)
