"""Fetch the keys that callers publish, in the background, never inside a request (reliability.md §2.1.6).

https to configured hosts alone, their certificates checked, no redirects, no proxy of the environment, a bounded answer
in bounded time. Whatever goes wrong: the last good keys stay.
"""

import asyncio
import datetime as dt
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import NamedTuple

import aiohttp
import asyncpg
import msgspec
import structlog

from gateway import directory
from gateway.crypto.caller_keys import algorithm_of, published
from gateway.crypto.certificates import client_context
from gateway.crypto.signatures import VerifyKey
from gateway.domain.callers import Caller, KeyPurpose
from gateway.domain.errors import CannotStart
from gateway.flows.take_published_keys import take
from gateway.metrics import JWKS_PULLS
from gateway.settings import Settings, SettingsError, host_of, load
from gateway.store.pool import Pool

log = structlog.get_logger()

_BODY_MAX = 65_536
_DEADLINE_S = 10.0
_AT_ONCE = 100
"""So 100 URLs that hang cost one deadline, and a key that is out stays so within period_s + deadline + 5 s."""
_TURN_MAX_S = 30.0


class Result(StrEnum):
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    UNREACHABLE = "unreachable"  # no connection, a wrong certificate, another status than 200, too late
    REFUSED = "refused"  # a document that is not what it should be


class Unreachable(Exception):
    """The text says why, without anything that was received."""


class _Ask(NamedTuple):
    caller_id: str
    caller: Caller
    use: KeyPurpose
    url: str
    algorithm: str
    others: tuple[VerifyKey, ...]
    """Of its file, for the other use."""


class PublishedKeys:
    """open() it, take turns, close() it."""

    def __init__(self, settings: Settings, pool: Pool) -> None:
        self._settings = settings
        self._callers: Mapping[str, directory.KnownCaller] = {}
        self._pool = pool
        self._session: aiohttp.ClientSession | None = None
        self._writing = asyncio.Lock()  # one connection of the pool is enough

    async def open(self) -> None:
        """Raises CannotStart for certificates or key files that cannot be read."""
        try:
            context = await asyncio.to_thread(client_context, self._settings.jwks_ca_file)
        except ValueError as error:
            raise CannotStart(f"gateway.toml: callers_keys.ca_file: {error}") from None
        self._callers, _ = await asyncio.to_thread(directory.read, self._settings)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_AT_ONCE, ssl=context, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=_DEADLINE_S),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=False,
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def turn(self) -> None:
        """Every caller that publishes keys, once; at the same time, so that a slow one delays nobody.

        Raises Problem 503, asyncpg.PostgresError; what was fetched by then is kept.
        """
        with suppress(SettingsError):  # the workers say so; the last good callers stay
            self._settings, self._callers = await asyncio.to_thread(_good)
        places = asyncio.Semaphore(_AT_ONCE)

        async def one(ask: _Ask) -> None:
            async with places:
                result = await self._pull(ask)
            JWKS_PULLS.labels(ask.caller_id, result.value).inc()

        ends = await asyncio.gather(*(one(ask) for ask in _asks(self._callers)), return_exceptions=True)
        for end in ends:
            if end is not None:
                raise end

    async def _pull(self, ask: _Ask) -> Result:
        line = log.bind(caller=ask.caller_id, use=ask.use.value)
        try:
            document = await self._fetch(ask.url)
            keys = published(document, ask.algorithm, ask.caller.revoked_kids, ask.use)
            async with self._writing, self._pool.acquire(_TURN_MAX_S) as connection, connection.transaction():
                taken = await take(connection, ask.caller_id, ask.use, keys, dt.datetime.now(dt.UTC), ask.others)
        except Unreachable as error:
            line.warning("published keys not fetched; the last ones stay", error=str(error))
            return Result.UNREACHABLE
        except asyncpg.InterfaceError:  # some are ValueErrors, and quote a parameter
            raise
        except ValueError as error:  # its texts hold nothing that was received
            line.warning("published keys refused; the last ones stay", error=str(error))
            return Result.REFUSED
        if not taken.added and not taken.retired:
            return Result.UNCHANGED
        line.info("published keys taken up", added=taken.added, retired=taken.retired)
        return Result.CHANGED

    async def _fetch(self, url: str) -> object:
        """The JSON behind a URL. Raises Unreachable, ValueError."""
        assert self._session is not None
        if host_of(url) not in self._settings.gateway.callers_keys.jwks_hosts:
            raise Unreachable("the host is not allowed")
        try:
            async with self._session.get(url, allow_redirects=False) as answer:
                if answer.status != 200:
                    raise Unreachable(f"status {answer.status}")
                if answer.headers.get("Content-Encoding", "identity") != "identity":
                    raise ValueError("the answer is encoded")
                body = bytearray()
                async for part in answer.content.iter_any():
                    body += part
                    if len(body) > _BODY_MAX:
                        raise ValueError("larger than 64 KiB")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unreachable(type(error).__name__) from None
        try:
            return msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError):
            raise ValueError("not JSON") from None


def _good() -> tuple[Settings, Mapping[str, directory.KnownCaller]]:
    """The configuration, if the workers take it up too. Raises SettingsError."""
    settings = load()
    return settings, directory.read(settings)[0]


def _asks(callers: Mapping[str, directory.KnownCaller]) -> Iterator[_Ask]:
    for caller_id, known in callers.items():
        caller = known.caller
        for use in KeyPurpose:
            url, algorithm = caller.keys_url_of(use), algorithm_of(caller, use)
            if url is not None and algorithm is not None and caller.enabled:
                yield _Ask(caller_id, caller, use, url, algorithm, known.from_files[use.other])
