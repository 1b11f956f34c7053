"""A gateway in processes of its own, and a client that speaks to it as a partner would."""

import asyncio
import base64
import contextlib
import itertools
import json
import math
import os
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import aiohttp
import jwt
import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.signing import Signing, signed_headers

if TYPE_CHECKING:
    from tests.registry import TestCard

ROOT = Path(__file__).parent.parent
MANY = int(os.environ.get("FAULT_CYCLES", "0")) >= 50
"""Whether this is `make faults`, which takes its time."""
BUSY = 1.0 if MANY else 3.0
"""On promised seconds. make faults asks for them as they are; make test is four processes on perhaps two cores."""
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""What /metrics shows: (name, labels) -> value."""

T = TypeVar("T")


_PORTS_OF_A_PROCESS = (32_768 - 10_000) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
"""From 32 768 on the kernel gives ports to connections (Linux)."""
_first_port = 10_000 + _PORTS_OF_A_PROCESS * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_ports = itertools.cycle(range(_first_port, _first_port + _PORTS_OF_A_PROCESS))
for _ in range(secrets.randbelow(_PORTS_OF_A_PROCESS)):
    next(_ports)


def free_port() -> int:
    """A port of this test process's own: below those that the kernel gives to connections, and no other process's."""
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("the ports are a cycle")


async def eventually(look: Callable[[], Awaitable[T]], within_s: float, what: str) -> T:
    """The first true value of look(); fails with `what` if there is none in time."""
    deadline = time.monotonic() + within_s
    while not (found := await look()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.1)
    return found


async def exchange(port: int, sent: bytes, within_s: float = 10) -> bytes:
    """All that comes back on a connection of its own until the gateway closes it; fails if it does not close it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        async with asyncio.timeout(within_s):
            writer.write(sent)
            while part := await reader.read(65_536):
                received += part
    except ConnectionError:  # it closed without having read the rest of what we sent
        pass
    finally:
        writer.close()
    return received


class Raw(NamedTuple):
    """An answer as it came over the wire."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: str) -> str | None:
        found = re.search(rf"(?im)^{re.escape(name)}: *([^\r\n]*)".encode(), self.head)
        return found and found[1].decode()


async def send_raw(port: int, sent: bytes, within_s: float = 10, used: bool = False) -> Raw:
    """The one answer to a request that is sent as it is, on a connection that is kept open until then.

    `used`: another request goes before it, so that the gateway surely waits for this one (and may take the hot lane);
    on a new connection that depends on which comes first.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(within_s):
            if used:
                writer.write(request("GET", "/.well-known/jwks.json"))
                assert (await read_answer(reader)).status == 200
            writer.write(sent)
            return await read_answer(reader)
    finally:
        writer.close()


async def read_answer(reader: asyncio.StreamReader) -> Raw:
    head = await reader.readuntil(b"\r\n\r\n")
    answer = Raw(int(head.split(b" ", 2)[1]), head, b"")
    length = answer.header("Content-Length")
    assert length is not None, head
    return answer._replace(body=await reader.readexactly(int(length)))


def request(method: str, path: str, body: bytes = b"", **headers: str | bytes | None) -> bytes:
    """The bytes of a request. A header is named like a Python argument (content_type); None leaves it out."""
    lines = {"host": "gateway", "content_length": str(len(body)), "content_type": "application/json"} | headers
    head = [f"{method} {path} HTTP/1.1".encode()]
    for name, value in lines.items():
        if value is not None:
            raw = value if isinstance(value, bytes) else value.encode()
            head.append(name.replace("_", "-").encode() + b": " + raw)
    return b"\r\n".join([*head, b"", b""]) + body


class Running:
    """`python -m gateway …` on free loopback ports. Its log is in <data_dir>/log."""

    module = "gateway"

    def __init__(self, data_dir: Path, *arguments: str, **environment: str) -> None:
        self.data_dir = data_dir
        self.port, self.ops_port = free_port(), free_port()
        self.arguments = arguments or ("serve",)
        self.environment = environment
        self.process: asyncio.subprocess.Process | None = None
        self.ready_line = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ops_url(self) -> str:
        return f"http://127.0.0.1:{self.ops_port}"

    @property
    def log(self) -> str:
        return (self.data_dir / "log").read_text()

    async def launch(self) -> asyncio.subprocess.Process:
        """Begin, and do not wait until it is ready."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if key not in ("DATABASE_URL", "CONFIG_DIR")}
        environment |= {
            "DATA_DIR": str(self.data_dir), "PORT": str(self.port), "OPS_PORT": str(self.ops_port),
        } | self.environment  # fmt: skip
        with (self.data_dir / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", self.module, *self.arguments, cwd=ROOT, env=environment,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip
        return self.process

    async def start(self, timeout_s: float = 60) -> "Running":
        process = await self.launch()
        assert process.stdout is not None
        async with asyncio.timeout(timeout_s):
            self.ready_line = (await process.stdout.readline()).decode()
        assert self.ready_line.startswith("ready"), f"no ready line; the log ends: {self.log[-3000:]}"
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def children(self, word: str) -> list[psutil.Process]:
        """The processes below the gateway whose command line has a word: serve-worker, worker, postgres."""
        return [child for child in psutil.Process(self.pid).children(recursive=True) if word in child.cmdline()]

    async def metrics(self) -> Samples:
        async with aiohttp.ClientSession() as session, session.get(f"{self.ops_url}/metrics") as answer:
            assert answer.status == 200
            families = text_string_to_metric_families(await answer.text())
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    async def stop(self) -> float:
        """SIGTERM; returns the seconds until it had ended."""
        assert self.process is not None
        began = time.monotonic()
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(20):
                await self.process.wait()
        return time.monotonic() - began

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.wait()


class Client:
    """A caller: gets tokens with its key, verifies cards, reads the feed."""

    def __init__(self, gateway: Running, name: str) -> None:
        self.gateway = gateway
        self.name = name
        self.file = json.loads((gateway.data_dir / "sandbox" / "callers" / f"{name}.json").read_text())
        # shorter than the gateway's keep-alive, so that no request meets a connection that is just being closed
        connector = aiohttp.TCPConnector(keepalive_timeout=5)
        self.session = aiohttp.ClientSession(base_url=gateway.url, connector=connector)
        self._token = ""
        self._token_until = math.inf

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        claims = {
            "iss": self.name, "sub": self.name, "aud": self.file["issuer"],
            "iat": now, "exp": now + 60, "jti": secrets.token_urlsafe(16),
        } | changes  # fmt: skip
        return {name: value for name, value in claims.items() if value is not None}

    def assertion(self, claims: dict[str, Any] | None = None, headers: dict[str, Any] | None = None) -> str:
        key = jwt.PyJWK(self.file["private_jwk"], self.file["alg"]).key
        return jwt.encode(
            claims or self.claims(),
            key,
            algorithm=self.file["alg"],
            headers={"kid": self.file["kid"]} | (headers or {}),
        )

    async def ask_token(self, assertion: str | None = None, **form: str) -> tuple[int, dict[str, Any]]:
        form = {
            "grant_type": "client_credentials", "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": assertion or self.assertion(),
        } | form  # fmt: skip
        async with self.session.post("/oauth2/token", data=form) as answer:
            return answer.status, await answer.json()

    async def token(self) -> str:
        if not self._token or time.monotonic() >= self._token_until:
            status, answer = await self.ask_token()
            assert status == 200, answer
            self._token, self._token_until = answer["access_token"], time.monotonic() + answer["expires_in"] / 2
        return self._token

    async def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {await self.token()}"}

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any], Any]:
        """(status, JSON, headers) of a POST with our token."""
        async with self.session.post(path, json=body, headers=await self.authorization() | headers) as answer:
            return answer.status, await answer.json(), answer.headers

    async def effect(self, path: str, body: Any, **changes: Any) -> tuple[int, bytes, Any]:
        """(status, body, headers) of a signed POST; `changes` are those of signed_headers()."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = signed_headers(
            Signing.of(self.file), "POST", f"127.0.0.1:{self.gateway.port}", path, raw,
            f"Bearer {await self.token()}", **changes,
        )  # fmt: skip
        async with self.session.post(path, data=raw, headers=headers) as answer:
            return answer.status, await answer.read(), answer.headers

    async def report_loss(self, card: "TestCard", kind: str = "temporary", **changes: Any) -> dict[str, Any]:
        """By card number and id number; asserts the 200."""
        body = {"card_number": card.number, "id_number": card.id_number, "kind": kind}
        status, answer, _ = await self.effect("/v1/cards/loss-reports", body, **changes)
        assert status == 200, answer
        return dict(json.loads(answer))

    async def release_loss(self, reference: str, **changes: Any) -> dict[str, Any]:
        status, answer, _ = await self.effect(f"/v1/cards/loss-reports/{reference}/release", {}, **changes)
        assert status == 200, answer
        return dict(json.loads(answer))

    async def verify(self, number: str, identifier: str, scene: str = "parking.exit", **more: Any) -> dict[str, Any]:
        """A chip card's verdict; asserts the 200."""
        body = verify_body(number, identifier, scene, **more)
        status, answer, _ = await self.post("/v1/cards/verify", body)
        assert status == 200, answer
        return dict(answer)

    async def feed(self, after: str | None = None, limit: int = 1000) -> dict[str, Any]:
        query = {"limit": str(limit)} | ({"after": after} if after else {})
        async with self.session.get("/v1/usage-events", params=query, headers=await self.authorization()) as answer:
            assert answer.status == 200, await answer.text()
            return dict(await answer.json())

    async def events_at(self, terminal_id: str, marker: "Client") -> list[dict[str, Any]]:
        """The events at a terminal of all requests answered so far: everything in the feed before a new marker."""
        marked = (await marker.verify("ZZ0000000", "0" * 32))["event_id"]

        async def up_to_marker() -> list[dict[str, Any]]:
            items = await self.whole_feed()
            return items if any(item["event_id"] == marked for item in items) else []

        items = await eventually(up_to_marker, 5, "the marker's event is in the feed")
        return [item for item in items if item["terminal_id"] == terminal_id]

    async def whole_feed(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        cursor, more = None, True
        while more:
            page = await self.feed(cursor)
            items += page["items"]
            cursor, more = page["next"], page["more"]
        return items


def verify_body(number: str, identifier: str, scene: str = "parking.exit", **more: Any) -> dict[str, Any]:
    presentation = {"type": "chip_card", "card_number": number, "card_identifier": identifier}
    presentation |= more.pop("presentation", {})
    return {"presentation": presentation, "scene": scene, "terminal_id": "P-0001"} | more


def labelled(samples: Samples, name: str) -> dict[tuple[str, ...], float]:
    """The values of a metric by its label values, in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(labels)): amount
        for (found, labels), amount in samples.items()
        if found == name
    }


def b64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
