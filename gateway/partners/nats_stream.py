"""Usage events into a NATS JetStream, for those who want to share them among many readers.

Each is a message under `<subject>.<scene>` with the event's id as its message id, by which the stream drops what comes
twice within its window. JetStream acknowledges before it has synced its disk, unless told otherwise: a stream is never
the only copy of an event, and is none of the record.
"""

import asyncio
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.js.api import Header

from gateway.configuration import OutboxNats
from gateway.domain.operations import DeliverUsage
from gateway.domain.outbox import FeedItem
from gateway.domain.outcome import Approved, NotSent, Outcome, Unknown
from gateway.log import describe
from gateway.partners.phases import Why

if TYPE_CHECKING:
    from nats.js import JetStreamContext
    from nats.js.api import PubAck

log = structlog.get_logger()

_CONNECT_S = 3.0
_ACKNOWLEDGED_S = 10.0
_CLOSED_S = 1.0
_AWAY = (nats.errors.Error, OSError, TimeoutError, ValueError)
_encode = msgspec.json.Encoder().encode


class NatsStream:
    """send() as often as wished; it connects when it must. Made for one event loop."""

    def __init__(self, settings: OutboxNats, data_dir: Path) -> None:
        self._settings = settings
        self._data_dir = data_dir
        self._client: Client | None = None
        self._stream: JetStreamContext | None = None
        self._sending = asyncio.Lock()  # pages, and what waits aside, go over one connection

    async def send(self, op: DeliverUsage) -> Outcome:
        """Approved when the stream has acknowledged every event; its messages leave in the batch's order.

        Whatever the client or its server raise is an outcome: it must not end the loops beside it.
        """
        async with self._sending:
            try:
                stream = await self._connected()
            except Exception as error:  # noqa: BLE001 - nothing was sent
                log.warning("no stream", error=_named(error))
                return NotSent(Why.NO_CONNECTION)
            try:
                async with asyncio.timeout(_ACKNOWLEDGED_S):
                    waiting = [await self._publish(stream, item) for item in op.items]
                    acknowledged = await asyncio.gather(*waiting)
            except Exception as error:  # noqa: BLE001 - whatever it was, some may have arrived
                log.warning("not acknowledged by the stream", error=_named(error))
                await self.close()
                return Unknown(Why.NO_ANSWER)
        return Approved(facts={"duplicates": sum(bool(ack.duplicate) for ack in acknowledged), "refused": []})

    async def close(self) -> None:
        """Within _CLOSED_S: the client would wait for what it has not sent until the kernel gives up."""
        client, self._client, self._stream = self._client, None, None
        if client is not None:
            try:
                async with asyncio.timeout(_CLOSED_S):
                    await client.close()
            except Exception as error:  # noqa: BLE001 - it is given up in any case
                log.warning("stream's connection not closed well", error=_named(error))

    async def _publish(self, stream: "JetStreamContext", item: FeedItem) -> "asyncio.Future[PubAck]":
        subject = f"{self._settings.subject}.{item.event.scene}"
        headers = {Header.MSG_ID: item.event.event_id}
        return await stream.publish_async(subject, _encode(item), stream=self._settings.stream, headers=headers)

    async def _connected(self) -> "JetStreamContext":
        """To a stream that is there, and takes our subjects."""
        if self._client is not None and self._client.is_connected and self._stream is not None:
            return self._stream
        await self.close()
        settings = self._settings
        credentials = self._credentials()
        self._client = client = _OnlyByTls() if settings.url.startswith("tls://") else Client()
        async with asyncio.timeout(_CONNECT_S):
            await client.connect(
                settings.url,
                name="yikatong outbox",
                # not by itself: the relay knocks again, and knows what was acknowledged
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                error_cb=_tell,
                user_credentials=str(credentials) if credentials else None,
                tls=self._tls(),
            )
            stream = client.jetstream()
            takes = (await stream.stream_info(settings.stream)).config.subjects or []
        if not any(_covers(pattern, f"{settings.subject}.>") for pattern in takes):
            log.error("the stream does not take the subjects of usage events", stream=settings.stream)
            raise nats.errors.BadSubjectError
        self._stream = stream
        return stream

    def _credentials(self) -> Path | None:
        """Raises OSError, ValueError: the client would look for ever for what is missing in the file."""
        name = self._settings.credentials_file
        if not name:
            return None
        file = self._data_dir / name
        try:
            text = file.read_text()
        except (OSError, ValueError):
            log.error("the stream's credentials cannot be read", file=name)
            raise
        if not all(f"BEGIN {part}" in text for part in ("NATS USER JWT", "USER NKEY SEED")):
            log.error("the stream's credentials are not whole", file=name)
            raise ValueError(f"{name} is no file of NATS credentials")
        return file

    def _tls(self) -> ssl.SSLContext | None:
        if not self._settings.url.startswith("tls://"):
            return None
        ca_file = self._data_dir / self._settings.ca_file if self._settings.ca_file else None
        context = ssl.create_default_context(cafile=ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


class _OnlyByTls(Client):
    """Does not tell who we are to a server that speaks without TLS: the library goes by what the server asks for."""

    def _connect_command(self) -> bytes:
        if not self._server_info.get("tls_required"):
            raise nats.errors.SecureConnRequiredError
        command: bytes = super()._connect_command()
        return command


def _covers(pattern: str, subject: str) -> bool:
    """Whether a stream's pattern takes all that ours does: `*` is any one word, a last `>` all that follow."""
    words, ours = pattern.split("."), subject.split(".")
    for place, word in enumerate(words):
        if word == ">":
            return len(ours) > place
        if place >= len(ours) or ours[place] == ">" or word not in ("*", ours[place]):
            return False
    return len(words) == len(ours)


def _named(error: Exception) -> str:
    """By its type: a text may quote what is secret. What no server and no file brings about is a mistake: with its
    place."""
    return type(error).__name__ if isinstance(error, _AWAY) else describe(type(error), error.__traceback__)


async def _tell(error: Exception) -> None:
    log.debug("stream's connection", error=type(error).__name__)
