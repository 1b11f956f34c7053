"""The e-card platform's dialect against its simulation, over real sockets."""

import asyncio
import datetime as dt
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import psutil
import pytest

from adapters.ecard_platform import Adapter
from gateway.domain.masking import Secret
from gateway.domain.operations import EcardSignLevel, Operation, ScanLogin, ScanLoginState
from gateway.domain.outcome import Approved, DeclineCode, Declined, NotSent, Outcome, Pending, Unknown
from gateway.sandbox.county import COUNTY_REGION
from gateway.sandbox.peers import ecard_platform_host as host
from tests.partners.ecard_wire import COUNTY, DIALECT, Peer, first, platform
from tests.running import ROOT, eventually, free_port

SIGNED = first(region=COUNTY_REGION, ecard_level=2)
UNSIGNED = first(region=COUNTY_REGION, ecard_level=None)


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    async with platform(tmp_path) as running:
        yield running


def facts(outcome: Outcome) -> dict[str, Any]:
    """As text; personal ones revealed."""
    assert isinstance(outcome, Approved), outcome
    return {name: fact.reveal() if isinstance(fact, Secret) else fact for name, fact in outcome.facts.items()}


def about() -> dict[str, Any]:
    return {"reference": uuid4(), "at": dt.datetime.now(dt.UTC)}


async def ask(peer: Peer, op: Operation) -> Outcome:
    return await peer.ask(op, time.monotonic() + 5)


async def test_a_code_says_whose_it_is_once(peer: Peer) -> None:
    code = await peer.show(SIGNED.card_number)
    outcome = await peer.ask_code(code)
    expected = {"id_number": SIGNED.id_number, "card_number": SIGNED.card_number, "name": SIGNED.name}
    assert facts(outcome) == expected
    assert not any(value in repr(outcome) for value in expected.values())
    assert await peer.ask_code(code) == Declined(DeclineCode.CODE_REPLAYED)
    (line,) = await peer.book()
    assert (line["state"], line["facts"]["asked"]) == ("verified", 2)
    assert code not in json.dumps(line)


async def test_a_code_lives_a_minute(peer: Peer) -> None:
    first_code, second = await peer.show(SIGNED.card_number), await peer.show(SIGNED.card_number)
    peer.clock.ahead_s = host.CODE_TTL_S - 1
    assert facts(await peer.ask_code(first_code))
    peer.clock.ahead_s = host.CODE_TTL_S + 1
    assert await peer.ask_code(second) == Declined(DeclineCode.CODE_EXPIRED)
    assert await peer.ask_code(second) == Declined(DeclineCode.CODE_EXPIRED)


async def test_codes_of_several_cards_are_shown_at_once(peer: Peer) -> None:
    asked = "&".join(f"card_number={number}" for number in (SIGNED.card_number, SIGNED.card_number))
    status, answer = await peer.get(f"/show?{asked}")
    assert (status, answer["code"]) == (200, answer["codes"][0])
    assert [type(await peer.ask_code(code)) for code in answer["codes"]] == [Approved, Approved]
    assert (await peer.get(f"/show?{asked}&card_number=ZZ0000000"))[0] == (await peer.get("/show"))[0] == 404


async def test_a_code_nobody_has_shown_is_invalid(peer: Peer) -> None:
    assert await peer.ask_code("3304240001" + "0" * 12) == Declined(DeclineCode.CODE_INVALID)
    assert await peer.get("/show?card_number=ZZ0000000") == (
        404, {"detail": "no card of the county has this number"}
    )  # fmt: skip


async def test_one_of_many_at_once_is_approved(peer: Peer) -> None:
    code = await peer.show(SIGNED.card_number)
    outcomes = await asyncio.gather(*(peer.ask_code(code) for _ in range(32)))
    assert sum(isinstance(outcome, Approved) for outcome in outcomes) == 1
    assert outcomes.count(Declined(DeclineCode.CODE_REPLAYED)) == 31


async def test_the_level_of_an_ecard(peer: Peer) -> None:
    def asked(name: str, id_number: str) -> EcardSignLevel:
        return EcardSignLevel(**about(), name=Secret(name), id_number=Secret(id_number), region=COUNTY_REGION)

    found = facts(await ask(peer, asked(SIGNED.name, SIGNED.id_number)))
    assert found["sign_level"] == 2 and found["sign_number"]
    assert await ask(peer, asked("别人", SIGNED.id_number)) == Declined(DeclineCode.NAME_MISMATCH)
    assert await ask(peer, asked(UNSIGNED.name, UNSIGNED.id_number)) == Declined(DeclineCode.NOT_FOUND)
    assert await ask(peer, asked(SIGNED.name, "330499190001010000")) == Declined(DeclineCode.NOT_FOUND)


async def test_a_login_by_scanning(peer: Peer) -> None:
    async def shown() -> str:
        return str(facts(await ask(peer, ScanLogin(**about())))["shown"])

    async def state(code: str) -> Outcome:
        return await ask(peer, ScanLoginState(**about(), shown=code))

    confirmed, refused, late = await shown(), await shown(), await shown()
    assert await state(confirmed) == Pending()
    assert (await peer.get(f"/scan?code={confirmed}&card_number={SIGNED.card_number}"))[0] == 200
    assert facts(await state(confirmed))["id_number"] == SIGNED.id_number
    assert await state(confirmed) == Declined(DeclineCode.CODE_REPLAYED), "single use"
    assert (await peer.get(f"/scan?code={refused}&card_number={SIGNED.card_number}&refuse=1"))[0] == 200
    assert await state(refused) == Declined(DeclineCode.NOT_ALLOWED)
    peer.clock.ahead_s = host.CODE_TTL_S + 1
    assert (await peer.get(f"/scan?code={late}&card_number={SIGNED.card_number}"))[0] == 409
    assert await state(late) == Declined(DeclineCode.CODE_EXPIRED)
    assert await state("0" * 22) == Declined(DeclineCode.CODE_INVALID)


Expected = type[Approved] | type[Unknown] | Declined

FAULTS: dict[str, tuple[dict[str, Any], Expected, int]] = {
    "delay": ({"kind": "delay", "ms": 50}, Approved, 1),
    "drop_before": ({"kind": "drop_before"}, Unknown, 0),
    "drop_after": ({"kind": "drop_after"}, Unknown, 1),
    "half_close": ({"kind": "half_close"}, Unknown, 1),
    "garbage": ({"kind": "garbage"}, Unknown, 1),
    "duplicate": ({"kind": "duplicate"}, Approved, 1),
    "late": ({"kind": "late", "ms": 5000}, Unknown, 1),
    "bad_signature": ({"kind": "bad_signature"}, Unknown, 1),
    "decline": ({"kind": "decline", "code": "100003"}, Declined(DeclineCode.CODE_INVALID), 0),
    "a decline of no known code": ({"kind": "decline", "code": "999999"}, Unknown, 0),
}  # fmt: skip
"""The fault, what the adapter makes of it, and how often the platform has acted."""


def is_as(outcome: Outcome, expected: Expected) -> bool:
    return outcome == expected if isinstance(expected, Declined) else isinstance(outcome, expected)


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_is_never_taken_for_an_answer(peer: Peer, name: str) -> None:
    fault, expected, acted = FAULTS[name]
    code = await peer.show(SIGNED.card_number)
    await peer.faults(fault)
    outcome = await peer.ask_code(code, within_s=0.5)
    assert is_as(outcome, expected), outcome
    (line,) = await peer.book()
    assert (line["facts"]["asked"], line["state"]) == (acted, "verified" if acted else "shown")
    await peer.faults()
    again = await peer.ask_code(code)
    assert again == Declined(DeclineCode.CODE_REPLAYED) if acted else isinstance(again, Approved)


@pytest.mark.parametrize("name", [name for name, (_, expected, _) in FAULTS.items() if expected is Unknown])
async def test_control_a_client_that_takes_silence_for_a_no_is_noticed(peer: Peer, name: str) -> None:
    code = await peer.show(SIGNED.card_number)
    await peer.faults(FAULTS[name][0])
    outcome = await peer.ask_code(code, within_s=0.5)
    guessed = Declined(DeclineCode.CODE_INVALID) if isinstance(outcome, Unknown) else outcome
    assert not is_as(guessed, FAULTS[name][1])


async def test_a_wrong_key_or_time_is_the_bus_refusal(peer: Peer) -> None:
    code = await peer.show(SIGNED.card_number)
    peer.clock.ahead_s = host.CLOCK_SKEW_MAX_S + 10
    assert await peer.ask_code(code) == Unknown("HTTP 503")
    peer.clock.ahead_s = 0
    peer.adapter = Adapter(msgspec.structs.replace(DIALECT, access_key="another"))
    assert await peer.ask_code(code) == Unknown("HTTP 503")
    assert (await peer.book())[0]["facts"]["asked"] == 0


async def test_a_platform_that_is_away_was_not_asked(peer: Peer) -> None:
    peer.url = f"http://127.0.0.1:{free_port()}"
    assert isinstance(await peer.ask_code("3304240001" + "0" * 12), NotSent)


def arguments(data_dir: Path, port: int, control_port: int) -> list[str]:
    return [
        "-m", "gateway.sandbox.peers.ecard_platform_host", "--port", str(port), "--control-port", str(control_port),
        "--book", str(data_dir / "book.ndjson"), "--data-dir", str(data_dir),
    ]  # fmt: skip


async def start(data_dir: Path, port: int, control_port: int) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments(data_dir, port, control_port), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"ready %d %d\n" % (port, control_port)
    return process


def lay_out(data_dir: Path) -> None:
    (data_dir / "sandbox").mkdir()
    county = {"seed": COUNTY.seed, "cards": COUNTY.cards, "today": COUNTY.today.isoformat()}
    (data_dir / "sandbox" / "county.json").write_text(json.dumps(county))


async def test_the_platform_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """However that ends: here by kill -9."""
    lay_out(tmp_path)
    starts = (
        "import subprocess, sys, os\n"
        "child = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", starts, *arguments(tmp_path, free_port(), free_port()),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), 20))
    await parent.wait()

    async def gone() -> bool:
        return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

    await eventually(gone, 10, "the platform has ended")


async def test_a_killed_platform_remembers_what_it_has_answered(tmp_path: Path) -> None:
    lay_out(tmp_path)
    port, control_port = free_port(), free_port()
    process = await start(tmp_path, port, control_port)
    try:
        peer = Peer(port, control_port, host.shared_keys(tmp_path / "sandbox/partners/ecard-platform"))
        used, fresh = await peer.show(SIGNED.card_number), await peer.show(UNSIGNED.card_number)
        assert facts(await peer.ask_code(used))["card_number"] == SIGNED.card_number
        process.kill()
        await process.wait()
        process = await start(tmp_path, port, control_port)
        assert await peer.ask_code(used) == Declined(DeclineCode.CODE_REPLAYED)
        assert facts(await peer.ask_code(fresh))["card_number"] == UNSIGNED.card_number
    finally:
        process.terminate()
    assert await asyncio.wait_for(process.wait(), 10) == 0
