"""partners.toml: a changed block, or what it names, is taken up without a restart."""

import asyncio
from pathlib import Path

import pytest

from gateway.domain.outcome import Approved, NotSent, Unknown
from gateway.partners.phases import Why
from tests.partners.peers import Talk, approval, block, configure, partners, peer
from tests.partners.test_registry import SIGNED, call, signed
from tests.tls import make_certificates


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reload reads what the process was started with."""
    monkeypatch.setenv("CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("DATA_DIR", str(tmp_path))


async def test_a_changed_block_is_taken_up_and_calls_end_on_the_old_one(tmp_path: Path) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slow(talk: Talk) -> None:
        request = await talk.request()
        arrived.set()
        await go_on.wait()
        await talk.answer(approval(request))

    async with (
        peer(slow) as old,
        peer() as new,
        partners(tmp_path, block("bank", old.port, "concurrency_max = 2"), block("other", new.port)) as made,
    ):
        other = made.registry.get("other")
        running = asyncio.create_task(call(made))
        await arrived.wait()
        configure(tmp_path, block("bank", new.port), block("other", new.port), block("third", new.port))
        assert await made.registry.reload_if_changed()
        assert isinstance(await call(made), Approved)
        assert isinstance(await call(made, "third"), Approved)
        assert len(new.requests) == 2
        assert made.registry.get("other") is other, "what has not changed goes on, with its breaker and connections"
        assert not running.done()
        go_on.set()
        assert isinstance(await running, Approved)
        assert len(old.requests) == 1
        configure(tmp_path, block("other", new.port))
        assert await made.registry.reload_if_changed()
        assert await call(made) == NotSent(Why.NO_PARTNER)
        assert not await made.registry.reload_if_changed()


async def test_a_change_with_a_mistake_is_refused(tmp_path: Path) -> None:
    async with peer() as bank, partners(tmp_path, block("bank", bank.port)) as made:
        configure(tmp_path, block("bank", bank.port).replace('"M1"', '"no good"'))
        assert not await made.registry.reload_if_changed()
        assert isinstance(await call(made), Approved)


async def test_a_changed_key_is_taken_up(tmp_path: Path) -> None:
    async with peer() as bank, partners(tmp_path, block("bank", bank.port)) as made:
        assert isinstance(await call(made), Approved)
        (tmp_path / "mac.key").write_text("ff" * 20)
        assert await made.registry.reload_if_changed()
        assert isinstance(await call(made), Unknown), "the peer signs with the old key"


async def test_a_change_that_is_taken_back_is_taken_up_too(tmp_path: Path) -> None:
    async with peer() as old, peer() as new, partners(tmp_path, block("bank", old.port)) as made:
        for bank in (new, old):
            configure(tmp_path, block("bank", bank.port))
            assert await made.registry.reload_if_changed()
            assert isinstance(await call(made), Approved)
        assert (len(new.requests), len(old.requests)) == (1, 1)


async def test_one_that_is_switched_off_is_not_asked_until_it_is_on_again(tmp_path: Path) -> None:
    async with peer() as bank, partners(tmp_path, block("bank", bank.port)) as made:
        configure(tmp_path, block("bank", bank.port, "enabled = false"))
        assert await made.registry.reload_if_changed()
        assert await call(made) == NotSent(Why.NO_PARTNER)
        configure(tmp_path, block("bank", bank.port))
        assert await made.registry.reload_if_changed()
        assert isinstance(await call(made), Approved)


async def test_changed_certificates_are_taken_up(tmp_path: Path) -> None:
    ca_file, context = make_certificates(tmp_path)
    async with (
        peer(tls=context) as bank,
        partners(tmp_path, block("bank", bank.port, scheme="https", http='ca_file = "ca.pem"')) as made,
    ):
        assert isinstance(await call(made), Approved)
        other, _ = make_certificates(tmp_path / "other")
        ca_file.write_bytes(other.read_bytes())
        assert await made.registry.reload_if_changed()
        assert await call(made) == NotSent(Why.NO_CONNECTION), "it is not believed any more"


async def test_a_changed_secret_of_a_dialect_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "t0ken")
    signed(tmp_path)
    async with partners(tmp_path, SIGNED) as made:
        before = made.registry.get("signed")
        assert not await made.registry.reload_if_changed()
        (tmp_path / "bearer").write_text("Bearer another-one\n")
        assert await made.registry.reload_if_changed()
        assert made.registry.get("signed") is not before
