"""Planted people, through every operation and every failure: none of their values is found afterwards, anywhere.

Searched: the logs of all processes (which say what they can) and of PostgreSQL, the metrics, the answers, and
PostgreSQL's own files. A bank is told of losses.

Two kinds of planted values. Those of cards that are in the registry may be nowhere at all. Notes are a person's values
in fields that are kept as they come (terminal, jti, Idempotency-Key) and for which the contract foresees no personal
data: they are at rest, and in the feed's answers; but in no log either.
"""

import asyncio
import contextlib
import itertools
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path

import aiohttp
import asyncpg
import psutil
import pytest

from gateway.api.routes import ROUTES
from tests.bank import give_account
from tests.faults.canaries import Canary, Found, canary, flock, forms, search
from tests.faults.home import Figure, Home, locked
from tests.faults.operations import OPERATIONS, REPORT, SPOILT, VERIFY, VISIT, Sent, proper
from tests.faults.waiting import send, tree, until
from tests.losses import KEYS, connect_bank
from tests.partners.hosts import Host
from tests.partners.open_bank import open_bank
from tests.registry import add_cards
from tests.running import MANY, Client, Raw, free_port, read_answer
from tests.visits import MERCHANTS, blocks

CARDS = flock(0, 300 if MANY else 60)
"""All of them in every spoilt form of every operation: the whole flock takes minutes, so only in `make faults`."""
NOTES = [value for one in flock(300, 40) for value in one.values]
FEED = b"GET /v1/usage-events"
AT_A_TIME = 16
TRIES = 5
"""A machine that is busy may answer 503: ask again, as callers do."""
PATIENCE_S = 10 if MANY else 5
"""More than an effect's deadline; a return of usage has longer, and is not waited for."""
GROUP = 12
EACH_FAILURE = 24 if MANY else 2
PASSWORD = "C4n4ry-Passw0rd"


class Flight:
    """A gateway with planted cards, and what it answered."""

    def __init__(self, home: Home, folder: Path) -> None:
        self.home = home
        self.answers = folder / "answers"
        self._patterns = folder / "patterns"
        self._clients: dict[str, Client] = {}
        self._authorizations: dict[str, str] = {}
        self._notes = itertools.cycle(NOTES)
        self._turns = asyncio.Semaphore(AT_A_TIME)
        self.statuses: dict[int, int] = {}
        self._references: dict[Canary, str] = {}

    async def begin(self, cards: Iterable[Canary]) -> None:
        planted = list(cards)
        ids = await add_cards(self.home.dsn, self.home._keys, tuple(one.card for one in planted))
        for card_id, one in zip(ids, planted, strict=True):
            await give_account(self.home.dsn, self.home._keys, card_id, account=one.account)
        for name in {operation.caller for operation in OPERATIONS.values()}:
            client = self._clients[name] = Client(self.home.running, name)
            self._authorizations[name] = (await client.authorization())["Authorization"]

    async def end(self) -> None:
        for client in self._clients.values():
            await client.session.close()

    def proper(self, which: tuple[str, str], card: Canary, note: str | None = None) -> Sent:
        name = OPERATIONS[which].caller
        reference = self._references.get(card, "01a2094a-958b-79ef-9703-c03bc30f62b6")
        note = note or next(self._notes)
        return proper(which, self._clients[name], self._authorizations[name], card, note, reference)

    async def report_lost(self, cards: Iterable[Canary]) -> set[str]:
        """So that there is something to release. Returns what the bank said."""
        said = set()
        for card in cards:
            answer = await self._clients[OPERATIONS[REPORT].caller].report_loss(card.card)
            self._references[card] = answer["reference"]
            said.add(answer["bank"]["status"])
        return said

    async def send(self, raw: bytes, kept: bool = True, hang_up: bool = False) -> int:
        """The status of the answer, 0 for none. What is answered is kept for the search."""
        async with self._turns:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.home.running.port)
            try:
                writer.write(raw)
                async with asyncio.timeout(PATIENCE_S):
                    answer = await read_answer(reader) if not hang_up else Raw(0, b"", b"")
            except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
                answer = Raw(0, b"", b"")
            finally:
                writer.transport.abort()
        if kept and not (answer.status == 200 and raw.startswith(FEED)):  # which gives the notes back
            with self.answers.open("ab") as stream:
                stream.write(answer.head + answer.body + b"\n")
        self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
        return answer.status

    async def send_proper(self, cards: Iterable[Canary], hang_up: bool = False) -> list[int]:
        """Each operation for each card, with an Idempotency-Key and without."""
        sent = []
        for card, which, keyed in itertools.product(cards, OPERATIONS, (False, True)):
            one = self.proper(which, card)
            if keyed:
                one = one.with_headers(idempotency_key=f"{next(self._notes)}".encode())
            sent.append(self.send(one.raw(), hang_up=hang_up))
        return list(await asyncio.gather(*sent))

    async def keep_metrics(self) -> None:
        with self.answers.open("ab") as stream:
            async with aiohttp.ClientSession(self.home.running.ops_url) as session:
                for path in ("/metrics", "/readyz", "/healthz"):
                    async with session.get(path) as answer:
                        stream.write(await answer.read())

    async def search(self, values: Iterable[str], *places: Path) -> Found:
        return await asyncio.to_thread(search, values, places, self._patterns)

    @property
    def logs(self) -> tuple[Path, ...]:
        """Of the gateway's processes, and of PostgreSQL; the files of what is counted."""
        data = self.home.data_dir
        return (data / "log", data / "run", data / "postgres" / "start.log", data / "postgres" / "data" / "log")

    @property
    def files(self) -> Path:
        return self.home.data_dir / "postgres" / "data"


@contextlib.asynccontextmanager
async def flight(home: Home, folder: Path, bug: str | None = None, cards: int = len(CARDS)) -> AsyncIterator[Flight]:
    port = free_port()
    connect_bank(folder / "config", home.data_dir, port)
    home.running.environment |= {"CONFIG_DIR": str(folder / "config"), "LOG_LEVEL": "debug"}
    merchants = Host(folder / "merchants", "merchant_host", "--keys", str(home.data_dir / MERCHANTS))
    async with open_bank(home.data_dir / KEYS, port=port), contextlib.AsyncExitStack() as stack:
        await merchants.start()
        stack.push_async_callback(merchants.kill)
        with (folder / "config" / "partners.toml").open("a") as stream:
            stream.write(blocks(merchants.port))
        await home.start(bug)
        made = Flight(home, folder)
        await made.begin(CARDS[:cards])
        try:
            yield made
        finally:
            await made.end()


@contextlib.asynccontextmanager
async def owner_says(home: Home, before: str, after: str) -> AsyncIterator[None]:
    owner = await asyncpg.connect(home.dsn)
    try:
        await owner.execute("SET deadlock_timeout = '1min'")  # of two that wait for each other, the other one fails
        await owner.execute(before)
        yield
        await owner.execute(after)
    finally:
        await owner.close()


def unique_violation(home: Home) -> contextlib.AbstractAsyncContextManager[None]:
    return owner_says(
        home,
        "CREATE TABLE once (terminal_id text UNIQUE); GRANT SELECT, INSERT ON once TO yikatong_app;"
        "CREATE FUNCTION once() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO once VALUES (NEW.terminal_id); INSERT INTO once VALUES (NEW.terminal_id);"
        " RETURN NEW; END';"
        "CREATE TRIGGER once BEFORE INSERT ON usage_event FOR EACH ROW EXECUTE FUNCTION once()",
        "DROP TRIGGER once ON usage_event; DROP FUNCTION once; DROP TABLE once",
    )


def type_error(home: Home) -> contextlib.AbstractAsyncContextManager[None]:
    return owner_says(
        home,
        "CREATE FUNCTION wrong() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM (NEW.terminal_id || ''x'')::integer; RETURN NEW; END';"
        "CREATE TRIGGER wrong BEFORE INSERT ON usage_event FOR EACH ROW EXECUTE FUNCTION wrong()",
        "DROP TRIGGER wrong ON usage_event; DROP FUNCTION wrong",
    )


def lock_timeout(home: Home) -> contextlib.AbstractAsyncContextManager[None]:
    return locked(home.dsn, "idempotency_key, client_assertion, usage_event")  # as they are used


def postgres_of(home: Home) -> list[psutil.Process]:
    top = psutil.Process(home.postmaster)
    return [top, *top.children(recursive=True)]


@contextlib.asynccontextmanager
async def stopped(home: Home) -> AsyncIterator[None]:
    """PostgreSQL stands still in the middle of what it was doing."""
    processes = postgres_of(home)
    send(processes, signal.SIGSTOP)
    try:
        yield
    finally:
        send(processes, signal.SIGCONT)


@contextlib.asynccontextmanager
async def killed(home: Home) -> AsyncIterator[None]:
    """PostgreSQL is killed in the middle of a statement: first it stands still, so that there is one."""
    processes = postgres_of(home)
    send(processes, signal.SIGSTOP)
    asyncio.get_running_loop().call_later(0.3, send, processes, signal.SIGKILL)
    yield
    async with aiohttp.ClientSession(home.running.ops_url) as session:

        async def ready() -> bool:
            async with session.get("/readyz") as answer:
                return answer.status == 200

        await until(ready, 20, "PostgreSQL serves again")


FAILURES: dict[str, Callable[[Home], contextlib.AbstractAsyncContextManager[None]]] = {
    "unique violation": unique_violation,
    "type error in SQL": type_error,
    "lock timeout": lock_timeout,
    "PostgreSQL stopped": stopped,
    "PostgreSQL killed": killed,
}


def test_every_operation_has_a_canary_case() -> None:
    assert {(route.method, route.path) for route in ROUTES} - set(OPERATIONS) == set()


def test_the_search_finds_every_form(tmp_path: Path) -> None:
    """The control of the search itself: each form of each value, alone in the middle of something else."""
    value_forms = [(value, form) for value in canary(7).values for form in forms(value)]
    for number, (_, form) in enumerate(value_forms):
        (tmp_path / f"{number}.found").write_bytes(b"\x00\xffx" + form + b"\x00")
    found = search(canary(7).values, [tmp_path], tmp_path / "patterns")
    files = {hit.split(":", 1)[0] for hit in found.hits}
    assert {f"{tmp_path}/{number}.found" for number in range(len(value_forms))} <= files


async def spoil_everything(made: Flight) -> int:
    """Each value of each card, in each spoilt form of each operation. Returns the number of requests."""
    groups = [CARDS[start : start + GROUP] for start in range(0, len(CARDS), GROUP)]
    sent: list[Awaitable[int]] = []
    for which, spoil, group in itertools.product(OPERATIONS, SPOILT.values(), groups):
        text = ",".join(value for one in group for value in one.values)
        sent.append(made.send(spoil(made.proper(which, group[0], "P-0001"), text)))
    # a sane request id comes back, so what is answered to it is not searched; it may not be in a log
    sent += [
        made.send(made.proper(which, one).with_headers(x_request_id=value).raw(), kept=False)
        for which, one in itertools.product(OPERATIONS, CARDS[:4])
        for value in (one.id_number, one.card_number, one.card_identifier)
    ]
    return len(await asyncio.gather(*sent))


async def quiet(home: Home) -> None:
    """Also what was begun for those who hung up has ended."""
    owner = await asyncpg.connect(home.dsn)
    try:

        async def nothing_runs() -> bool:
            return not await owner.fetchval(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE state <> 'idle' AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )

        await until(nothing_runs, 5, "no statement runs")
    finally:
        await owner.close()


async def test_nothing_leaks(home: Home, tmp_path: Path, figure: Figure) -> None:
    values = [value for one in CARDS for value in one.values]
    assert len(set(values)) == len(values) >= (1000 if MANY else 300)
    async with flight(home, tmp_path) as made:
        for _ in range(TRIES):
            if 503 not in (statuses := await made.send_proper(CARDS[:1])):
                break
        assert 503 not in statuses
        good = [made.send(made.proper(VERIFY, one, "P-0001").raw()) for one in CARDS]
        assert set(await asyncio.gather(*good)) == {200}, "every planted card is found by its values"
        came_by = [made.send(made.proper(VISIT, one).raw()) for one in CARDS[1:60]]
        assert set(await asyncio.gather(*came_by)) == {200}, "what a fee is due for is kept, sealed"
        told = await made.report_lost(CARDS[: len(FAILURES) * EACH_FAILURE])
        assert "accepted" in told <= {"accepted", "pending"}, "id numbers and accounts have been told"
        spoilt = await spoil_everything(made)
        failed: dict[str, int] = {}
        for number, (name, failure) in enumerate(FAILURES.items()):
            cards = CARDS[number * EACH_FAILURE :][:EACH_FAILURE]
            await quiet(home)
            async with failure(home):
                statuses = await made.send_proper(cards)
                await made.send_proper(cards[:4], hang_up=True)
            failed[name] = sum(status >= 500 or status == 409 for status in statuses)
        assert all(failed.values()), failed
        await made.keep_metrics()
        logs = await made.search([*values, *NOTES], *made.logs, made.answers)
        owner = await asyncpg.connect(home.dsn)
        await owner.execute("CHECKPOINT")
        at_rest = await made.search(values, made.files)
        await owner.execute(
            "UPDATE person SET town = $1",
            CARDS[0].name,
        )
        await owner.execute("CHECKPOINT")
        control = await made.search(values, made.files)
        await owner.close()
        assert (await made.search(["child ended", "PostgreSQL had ended"], *made.logs)).hits, "the logs were searched"
        assert (await made.search(["lossnotice"], *made.logs)).hits, (
            "and what was told to the bank is in them, redacted"
        )
        assert (await made.search(["head.requestId="], *made.logs)).hits, "and what was said to the lot"
    figure(
        values=len(values) + len(NOTES), operations=len(OPERATIONS), spoilt_forms=len(SPOILT),
        failures=len(FAILURES) + 1, spoilt_requests=spoilt, failed=str(failed), statuses=str(made.statuses),
        searched_logs_and_answers=logs.size, hits=len(logs.hits), searched_at_rest=at_rest.size,
        hits_at_rest=len(at_rest.hits), control_hits_at_rest=len(control.hits),
    )  # fmt: skip
    assert logs.hits == [], logs.hits[:20]
    assert at_rest.hits == [], at_rest.hits[:20]
    assert control.hits, "a value in clear in a table is found in the files"


async def test_the_databases_password_is_in_no_command_line_and_no_log(
    tenant: Home, tmp_path: Path, figure: Figure
) -> None:
    """Also when the database sends us away. The control: the workers do have it, in their environment."""
    running = tenant.running
    running.environment["DATABASE_URL"] += f"&password={PASSWORD}"
    await tenant.start()
    processes = tree(running.pid)
    assert sum(PASSWORD in process.environ().get("DATABASE_URL", "") for process in processes) >= 2
    assert not [process for process in processes if PASSWORD in " ".join(process.cmdline())]
    made = Flight(tenant, tmp_path)
    await made.keep_metrics()
    await running.stop()
    running.environment["DATABASE_URL"] = running.environment["DATABASE_URL"].replace("///test_", "///gone_")
    process = await running.launch()
    assert await process.wait() == 1
    assert "cannot start: the database: InvalidCatalogNameError, SQLSTATE 3D000" in running.log
    found = await made.search([PASSWORD], tenant.data_dir, made.answers)
    figure(processes=len(processes), searched=found.size, hits=len(found.hits))
    assert found.hits == []


@pytest.mark.parametrize("bug", ["errors_in_words", "talkative_database"])
async def test_control_texts_of_errors_are_noticed(home: Home, tmp_path: Path, bug: str, figure: Figure) -> None:
    async with flight(home, tmp_path, bug, cards=4) as made:
        for name in ("unique violation", "type error in SQL"):
            async with FAILURES[name](home):
                await made.send_proper(CARDS[:4])
        found = await made.search(NOTES, *made.logs)
    figure(hits=len(found.hits))
    assert found.hits


async def test_control_a_quoted_body_is_noticed(home: Home, tmp_path: Path, figure: Figure) -> None:
    async with flight(home, tmp_path, "echo", cards=4) as made:
        for spoil in SPOILT.values():
            await made.send(spoil(made.proper(VERIFY, CARDS[0]), ",".join(CARDS[0].values)))
        found = await made.search(CARDS[0].values, made.answers)
    figure(hits=len(found.hits))
    assert found.hits
