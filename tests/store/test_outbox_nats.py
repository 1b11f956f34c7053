"""The fan-out to NATS JetStream against a real server, which is killed in between."""

import asyncio
import datetime as dt
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import msgspec
import nats
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from structlog.testing import capture_logs

from gateway.domain.operations import DeliverUsage
from gateway.domain.outcome import NotSent
from gateway.partners import nats_stream
from gateway.partners.nats_stream import NatsStream
from gateway.settings import load
from tests.conftest import Database
from tests.running import eventually, free_port
from tests.subscribers import Events, Relay, add_events, by_card, logged

BINARY = Path(sys.prefix) / "bin" / "nats-server"
WITHIN_S = 20


class Server:
    """start() it, kill() it; started again it has its port and its store."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.port, self._folder = free_port(), folder
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> "Server":
        self._process = await asyncio.create_subprocess_exec(
            BINARY, "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self._folder),
            "-l", str(self._folder / "log"),
        )  # fmt: skip
        await eventually(self._answers, WITHIN_S, "nats-server answers")
        return self

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def kill(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def server(folder: Path) -> AsyncIterator[Server]:
    running = await Server(folder).start()
    try:
        yield running
    finally:
        await running.kill()


@asynccontextmanager
async def jetstream(running: Server) -> AsyncIterator[JetStreamContext]:
    client = await nats.connect(running.url, allow_reconnect=False)
    try:
        yield client.jetstream()
    finally:
        await client.close()


async def add_stream(running: Server, subject: str = "yikatong.usage.>") -> None:
    async with jetstream(running) as js:
        await js.add_stream(StreamConfig(name="usage", subjects=[subject]))


async def read(running: Server) -> list[tuple[str, str]]:
    """(event_id, card_ref) of every message, in the stream's order; each is what it says."""
    async with jetstream(running) as js:
        found = []
        subscription = await js.pull_subscribe("yikatong.usage.>", stream="usage")
        left = (await js.stream_info("usage")).state.messages
        while left:
            for message in await subscription.fetch(min(left, 256), timeout=WITHIN_S):
                event = json.loads(message.data)["event"]
                assert message.headers is not None and message.headers["Nats-Msg-Id"] == event["event_id"]
                assert message.subject == "yikatong.usage." + event["scene"]
                found.append((event["event_id"], event.get("card_ref", event["event_id"])))
                await message.ack()
                left -= 1
        return found


def stream_of(running: Server, folder: Path, **changes: str) -> NatsStream:
    settings = load({}).gateway.outbox.nats
    return NatsStream(msgspec.structs.replace(settings, **({"url": running.url} | changes)), folder)


async def test_every_event_is_a_message_once_whoever_is_killed(database: Database, tmp_path: Path) -> None:
    async with server(tmp_path / "nats") as running:
        await add_stream(running)
        sending = stream_of(running, tmp_path)
        async with Relay(database.dsn, sending.send, "nats", 500, 1) as relay:
            await add_events(database.dsn, Events(600, 40))
            await relay.run()
            await add_events(database.dsn, Events(600, 40), start=600)
            await asyncio.gather(relay.pages.turn(), running.kill())
            assert await relay.pages.turn() > 0
            await running.start()
            await relay.run()
        async with Relay(database.dsn, sending.send, "again", 500, 1) as relay:
            await relay.run()  # the same events by another way: the stream knows their ids
        await sending.close()
        log = await logged(database.dsn)
        messages = await read(running)
        assert len(messages) == len(log) == 1200
        assert {event_id for event_id, _ in messages} == {event_id for event_id, _ in log}
        assert {tuple(of_one) for of_one in by_card(messages)} == by_card(log)


@pytest.mark.parametrize("missing", ["server", "stream", "its subjects", "TLS", "credentials", "half of them"])
async def test_without_a_stream_nothing_is_sent(database: Database, tmp_path: Path, missing: str) -> None:
    await add_events(database.dsn, Events(10, 3))
    async with server(tmp_path / "nats") as running:
        changes: dict[str, str] = {}
        if missing == "server":
            await running.kill()
        elif missing != "stream":
            await add_stream(running, "yikatong.other.>" if missing == "its subjects" else "yikatong.usage.>")
        if missing == "TLS":  # the server speaks without: it must not be told who we are
            changes["url"] = running.url.replace("nats://", "tls://")
        elif "credentials" in missing or "half" in missing:
            changes["credentials_file"] = "user.creds"
        if missing == "half of them":
            (tmp_path / "user.creds").write_text("-----BEGIN USER NKEY SEED-----\nSU\n------END USER NKEY SEED------\n")
        sending = stream_of(running, tmp_path, **changes)
        outcomes = []

        async def send(op):  # type: ignore[no-untyped-def]
            outcomes.append(await sending.send(op))
            return outcomes[-1]

        async with Relay(database.dsn, send, "nats", 500, 1) as relay:
            with capture_logs() as lines:
                assert await relay.pages.turn() > 0
        await sending.close()
        assert [type(outcome) for outcome in outcomes] == [NotSent]
        assert lines[-1]["event"] == "no stream" and " at " not in lines[-1]["error"]
        assert [line["file"] for line in lines if "file" in line] == ["user.creds"] * ("credentials_file" in changes)
        assert "SEED" not in str(lines)


class Mistaken(Client):
    """As if the library had changed."""

    async def connect(self, *_: object, **__: object) -> None:
        raise AttributeError("of a user called SECRET")


async def test_a_mistake_is_told_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_stream, "Client", Mistaken)
    now = dt.datetime.now(dt.UTC)
    sending = NatsStream(load({}).gateway.outbox.nats, tmp_path)
    with capture_logs() as lines:
        outcome = await sending.send(DeliverUsage(reference=uuid4(), at=now, sequence=1, items=()))
    assert isinstance(outcome, NotSent)
    assert "AttributeError at " in lines[0]["error"] and "test_outbox_nats.py" in lines[0]["error"]
    assert "SECRET" not in str(lines)


@pytest.mark.parametrize(
    ("pattern", "covers"),
    [("yikatong.usage.>", True), ("yikatong.>", True), (">", True), ("*.usage.>", True), ("yikatong.usage", False),
     ("yikatong.usage.*", False), ("yikatong.usage.transit", False), ("yikatong.other.>", False),
     ("yikatong.usage.a.>", False)],
)  # fmt: skip
def test_which_streams_take_our_subjects(pattern: str, covers: bool) -> None:
    assert nats_stream._covers(pattern, "yikatong.usage.>") is covers


def test_it_is_off_by_default() -> None:
    outbox = load({}).gateway.outbox
    assert not outbox.enabled and outbox.nats.url == ""
