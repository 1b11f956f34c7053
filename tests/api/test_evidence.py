"""What proves an operation is kept with it, and its check can be replayed (`show-evidence`)."""

import asyncio
import json
import os
import sys
from uuid import UUID

import asyncpg
import pytest

from tests.conftest import add_card
from tests.jwks import ANYBODYS, FORGED
from tests.running import ROOT, Client, Running

PATH = "/v1/cards/loss-reports"


async def show(gateway: Running, *arguments: str) -> tuple[int, str]:
    """(exit code, what it printed) of show-evidence beside a running gateway."""
    environment = os.environ | {"DATA_DIR": str(gateway.data_dir)} | gateway.environment
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "show-evidence", *arguments, cwd=ROOT, env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


@pytest.fixture(scope="module")
async def callers(kiosk: Client, bank: Client, bureau: Client) -> dict[str, Client]:
    return {"ed25519": kiosk, "sm2-sm3": bank, "ecdsa-p256-sha256": bureau}


@pytest.mark.parametrize("algorithm", ["ed25519", "ecdsa-p256-sha256", "sm2-sm3"])
async def test_the_check_of_an_operation_can_be_replayed(
    gateway: Running, callers: dict[str, Client], algorithm: str
) -> None:
    client, card = callers[algorithm], await add_card(gateway)
    reference = (await client.report_loss(card))["reference"]
    code, said = await show(gateway, reference)
    assert code == 0, said
    assert f"with {client.file['signing']['kid']} ({algorithm})" in said
    assert said.count("\ngood ") == 6 and "WRONG" not in said
    assert f"caller     {client.name}" in said and "loss_report" in said and "AAZ502 1 -> 4" in said
    assert card.id_number not in said
    _, with_body = await show(gateway, reference, "--body")
    assert card.id_number in with_body


def key_of(x: str) -> str:
    """An Ed25519 key as it is recorded."""
    return json.dumps({"crv": "Ed25519", "kty": "OKP", "x": x}, separators=(",", ":"))


TAMPERINGS = {
    "another signature": ("signature = decode(repeat('00', 64), 'hex')", 1),
    "another time": ("signed_at = signed_at + interval '1 second'", 1),
    "another digest": ("base_digest = decode(repeat('00', 32), 'hex')", 1),
    "another operation's proof": ("proof_sealed = other.proof_sealed", None),
    "another key": (f"public_jwk = '{key_of('11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo')}'", 1),
    "a key of no owner": (f"public_jwk = '{key_of(ANYBODYS)}', signature = decode('{FORGED.hex()}', 'hex')", 1),
    "another caller": ("caller = 'demo-bank'", 2),
    "another kind": ("kind = 'loss_release'", 1),
    "another card": ("card_id = 'aaaaaaaa-aaaa-7aaa-8aaa-aaaaaaaaaaaa'", 1),
    "another result": ("result = 'refused'", 1),
    "another state": ("card_status_after = 2", 1),
}


@pytest.mark.parametrize("name", TAMPERINGS)
async def test_what_was_altered_since_is_found(gateway: Running, kiosk: Client, name: str) -> None:
    """By somebody who can write to the database; the application's own role cannot."""
    change, wrong = TAMPERINGS[name]
    reference = (await kiosk.report_loss(await add_card(gateway)))["reference"]
    other = (await kiosk.report_loss(await add_card(gateway)))["reference"]
    connection = await asyncpg.connect(gateway.environment["DATABASE_URL"])
    try:
        await connection.execute(
            f"UPDATE operation SET {change} FROM (SELECT proof_sealed FROM operation WHERE reference = $2) other"  # noqa: S608
            " WHERE reference = $1 AND $2::uuid IS NOT NULL",
            UUID(reference), UUID(other),
        )  # fmt: skip
    finally:
        await connection.close()
    code, said = await show(gateway, reference)
    assert code == 1, said
    assert said.count("WRONG") == wrong if wrong else "does not open" in said, said


async def test_the_application_can_neither_change_nor_remove_an_operation(gateway: Running, kiosk: Client) -> None:
    reference = (await kiosk.report_loss(await add_card(gateway)))["reference"]
    connection = await asyncpg.connect(gateway.environment["DATABASE_URL"], server_settings={"role": "yikatong_app"})
    try:
        for statement in ("UPDATE operation SET result = 'refused'", "DELETE FROM operation"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(f"{statement} WHERE reference = $1", UUID(reference))
    finally:
        await connection.close()


@pytest.mark.parametrize("reference", ["x", "01890000-0000-7000-8000-000000000000"])
async def test_what_is_not_there_is_said_in_one_line(gateway: Running, reference: str) -> None:
    code, said = await show(gateway, reference)
    assert code == 1 and len(said.splitlines()) == 1 and "Traceback" not in said
