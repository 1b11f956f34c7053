"""Signatures under effects (RFC 9421): what is accepted, and hundreds of things that must not be."""

import asyncio
import base64
import datetime as dt
import json
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import pytest
from http_message_signatures import HTTPMessageSigner, HTTPMessageVerifier, MappingKeyResolver, algorithms

from gateway.crypto.digests import DIGESTS
from gateway.crypto.key_files import open_folder
from gateway.crypto.sealing import Sealer
from gateway.flows.effects import PROOF_COLUMN
from gateway.flows.replay_evidence import FACTS_BYTES
from gateway.store import data_keys
from tests.api.mutants import mutants
from tests.api.mutations import P256_ORDER, Parts, digest_of, parts_of
from tests.conftest import add_card, drop_database, make_database, start_gateway
from tests.faults.planted import plant
from tests.registry import CARDS, TestCard, new_card
from tests.running import ROOT, Client, Raw, Running, request, send_raw, verify_body
from tests.signing import COMPONENTS, Signing

PATH = "/v1/cards/loss-reports"
SIGNERS = {"ed25519": "demo-kiosk", "ecdsa-p256-sha256": "demo-bureau", "sm2-sm3": "demo-bank"}
ORACLE = {"ed25519": algorithms.ED25519, "ecdsa-p256-sha256": algorithms.ECDSA_P256_SHA256}
MUTANTS_LEAST = 400


@pytest.fixture
async def signers(gateway: Running) -> AsyncIterator[dict[str, Client]]:
    """A caller for each algorithm."""
    clients = {algorithm: Client(gateway, name) for algorithm, name in SIGNERS.items()}
    yield clients
    for client in clients.values():
        await client.session.close()


def host_of(client: Client) -> str:
    return f"127.0.0.1:{client.gateway.port}"


def report_of(card: TestCard) -> bytes:
    return json.dumps({"card_number": card.number, "id_number": card.id_number, "kind": "temporary"}).encode()


async def parts_for(client: Client, card: TestCard, target: str = PATH + "?via=desk") -> Parts:
    authorization = f"Bearer {await client.token()}"
    return parts_of(Signing.of(client.file), host_of(client), target, report_of(card), authorization)


async def written(gateway: Running) -> tuple[int, int]:
    """(operations, claimed keys) in the database."""
    connection = await asyncpg.connect(gateway.environment["DATABASE_URL"])
    try:
        row = await connection.fetchrow(
            "SELECT (SELECT count(*) FROM operation) AS operations, (SELECT count(*) FROM idempotency_key) AS keys"
        )
    finally:
        await connection.close()
    assert row is not None
    return row["operations"], row["keys"]


class Message(NamedTuple):
    """A request as the independent library reads it."""

    method: str
    url: str
    headers: dict[str, str]


# --- what is accepted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "?via=desk&n=1", "?a=%2F&b=%20c", "??"])
@pytest.mark.parametrize("algorithm", ORACLE)
async def test_what_an_independent_library_signs_is_accepted(
    gateway: Running, signers: dict[str, Client], algorithm: str, query: str
) -> None:
    client, body = signers[algorithm], report_of(await add_card(gateway))
    signing = Signing.of(client.file)
    url = f"{gateway.url}{PATH}{query}"
    headers = {
        "Host": host_of(client), "Authorization": f"Bearer {await client.token()}",
        "Idempotency-Key": f"oracle-{time.time_ns()}", "Content-Digest": digest_of(body),
        "Content-Type": "application/json",
    }  # fmt: skip
    HTTPMessageSigner(
        signature_algorithm=ORACLE[algorithm],
        key_resolver=MappingKeyResolver(public_keys={}, private_keys={signing.kid: signing.secret}),
    ).sign(
        message := Message("POST", url, headers), key_id=signing.kid, label="sig1", tag="yikatong-v1",
        covered_component_ids=COMPONENTS, created=dt.datetime.now(dt.UTC), body=body, use_existing_digest=True,
    )  # fmt: skip
    # the library's order of parameters is its own; ours is agreed
    lines = {name.replace("-", "_").lower(): value for name, value in message.headers.items()}
    answer = await send_raw(gateway.port, request("POST", PATH + query, body, **lines))
    assert answer.status == 200, (answer.body, message.headers["Signature-Input"])


@pytest.mark.parametrize("query", ["", "?via=desk&n=1", "?a=%2F&b=%20c"])
@pytest.mark.parametrize("algorithm", ORACLE)
async def test_the_base_that_is_kept_is_the_one_of_an_independent_library(
    gateway: Running, signers: dict[str, Client], algorithm: str, query: str
) -> None:
    """What our side rebuilt and stored as evidence; and the library accepts the request itself."""
    client, card = signers[algorithm], await add_card(gateway)
    sent = (await parts_for(client, card, PATH + query)).sign()
    answer = await send_raw(gateway.port, sent.raw())
    assert answer.status == 200, answer.body
    kept = (await evidence(gateway, json.loads(answer.body)["reference"]))[FACTS_BYTES:]
    assert kept.partition(b"\0")[2] == sent.body
    message = Message("POST", f"{gateway.url}{PATH}{query}", {name: value.decode() for name, value in sent.headers})
    resolver = MappingKeyResolver(
        public_keys={(signing := Signing.of(client.file)).kid: signing.secret.public_key()}, private_keys={}
    )
    (result,) = HTTPMessageVerifier(signature_algorithm=ORACLE[algorithm], key_resolver=resolver).verify(
        message,
        body=sent.body,
        expect_tag="yikatong-v1",
        require_components=COMPONENTS,
        max_age=dt.timedelta(seconds=300),
    )
    theirs = [f"{name}: {value}" for name, value in result.covered_components.items()]
    assert kept.partition(b"\0")[0].decode().split("\n") == theirs


async def evidence(gateway: Running, reference: str) -> bytes:
    """The unsealed proof of an operation."""
    connection = await asyncpg.connect(gateway.environment["DATABASE_URL"])
    try:
        sealed = await connection.fetchval("SELECT proof_sealed FROM operation WHERE reference = $1", UUID(reference))
        sealer = Sealer()
        sealer.add(await data_keys.load(connection), open_folder(gateway.data_dir / "keys"))
    finally:
        await connection.close()
    return sealer.open(PROOF_COLUMN, UUID(reference).bytes, sealed)


@pytest.mark.parametrize("digest", DIGESTS)
@pytest.mark.parametrize("algorithm", SIGNERS)
async def test_both_digests_are_accepted(
    gateway: Running, signers: dict[str, Client], algorithm: str, digest: str
) -> None:
    parts = await parts_for(signers[algorithm], await add_card(gateway))
    answer = await send_raw(gateway.port, parts._replace(digest=digest_of(parts.body, digest)).sign().raw())
    assert answer.status == 200, answer.body


async def test_the_other_signature_of_ecdsa_is_the_same_effect(gateway: Running, bureau: Client) -> None:
    """(r, n - s) is as good as (r, s), and half of all honest signatures are so: the key makes it a replay."""
    sent = (await parts_for(bureau, await add_card(gateway))).sign()
    first = await send_raw(gateway.port, sent.raw())
    before = await written(gateway)
    raw = base64.b64decode(sent.value("Signature")[6:-1])
    other = raw[:32] + (P256_ORDER - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
    second = await send_raw(
        gateway.port, sent.with_header("Signature", b"sig1=:" + base64.b64encode(other) + b":").raw()
    )
    assert (first.status, second.status) == (200, 200) and first.body == second.body
    assert second.header("Idempotency-Replayed") == "true" and await written(gateway) == before


# --- what is not ------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What became of a set of mutants."""

    statuses: Counter[int]
    accepted: list[str]
    telling: list[str]
    """Answers of 401 that are not one of the two that everybody gets."""


async def try_all(client: Client, other: Client, card: TestCard) -> tuple[Verdict, Raw, int]:
    """Send every mutant of one good request, then the good request itself."""
    port = client.gateway.port
    parts = await parts_for(client, card)
    found = mutants(parts, Signing.of(other.file))
    others_token = parts._replace(authorization=f"Bearer {await other.token()}")
    _, minted = await client.ask_token()
    same_caller = f"Bearer {minted['access_token']}".encode()
    good = parts.sign()
    found |= {
        "another caller's token under it": good.with_header("Authorization", others_token.authorization.encode()),
        "another caller's token, signed by us": others_token.sign(),
        "another token of ours": good.with_header("Authorization", same_caller),
        "another key": good.with_header("Idempotency-Key", b"another-key"),
        "by the key that gets tokens": parts._replace(signing=_token_key(client)).sign(),
    }
    bare = {"x_request_id": "x", "idempotency_key": "k"}
    refused = await send_raw(port, request("POST", PATH, parts.body, authorization=parts.authorization, **bare))
    nobody = await send_raw(port, request("POST", PATH, parts.body, **bare))
    assert b'"invalid_signature"' in refused.body and refused.header("WWW-Authenticate") == "Bearer"
    assert b'"unauthorised"' in nobody.body
    statuses: Counter[int] = Counter()
    accepted, telling = [], []
    for name, sent in found.items():
        answer = await send_raw(port, sent.raw())
        statuses[answer.status] += 1
        if not 400 <= answer.status < 500:
            accepted.append(f"{answer.status} {name}")
        elif answer.status == 401 and answer.body not in (refused.body, nobody.body):
            telling.append(name)
        elif answer.status == 422:
            accepted.append(f"422 {name}: it came past the signature")
    return Verdict(statuses, accepted, telling), await send_raw(port, good.raw()), len(found)


def _token_key(client: Client) -> Signing:
    """The key of a caller's client assertions, in place of its signing key."""
    block = client.file["private_jwk"]
    names = {"EdDSA": "ed25519", "ES256": "ecdsa-p256-sha256"}
    own = {"alg": names[client.file["alg"]], "kid": client.file["signing"]["kid"], "private_jwk": block}
    return Signing.of({"signing": own})


@pytest.mark.parametrize("algorithm", SIGNERS)
async def test_no_mutant_of_a_signed_request_has_an_effect(
    gateway: Running, signers: dict[str, Client], merchant: Client, algorithm: str
) -> None:
    card = await add_card(gateway)
    client = signers[algorithm]
    other = signers["ecdsa-p256-sha256" if algorithm == "ed25519" else "ed25519"]
    before, log = await written(gateway), len(gateway.log)
    verdict, good, count = await try_all(client, other, card)
    print(f"\n{algorithm}: {count} mutants, {len(verdict.accepted)} accepted, {dict(sorted(verdict.statuses.items()))}")
    assert verdict.accepted == [] and verdict.telling == []
    assert count == sum(verdict.statuses.values()) >= MUTANTS_LEAST
    assert verdict.statuses[401] >= MUTANTS_LEAST * 3 // 4
    assert good.status == 200, "what they are mutants of is good"
    after = await written(gateway)
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1), "the good one, and nothing else"
    assert "request failed" not in gateway.log[log:] and "a loop has failed" not in gateway.log[log:]
    assert json.loads(good.body)["social_security"]["status"] == "accepted", "no mutant had reported the card before"


async def test_an_empty_query_is_not_the_same_as_none(gateway: Running, kiosk: Client) -> None:
    """RFC 9421 §2.2.7 signs both as "?"; who holds one signature must not have two requests."""
    good = (await parts_for(kiosk, await add_card(gateway), PATH)).sign()
    assert (await send_raw(gateway.port, good._replace(target=PATH.encode() + b"?").raw())).status == 401
    assert (await send_raw(gateway.port, good.raw())).status == 200


@pytest.fixture(params=["signature_unchecked", "digest_not_compared"])
async def planted(
    request: pytest.FixtureRequest, postgres: Any, template: str, tmp_path: Path
) -> AsyncIterator[Running]:
    database = await make_database(postgres, template)
    running = await start_gateway(tmp_path / "data", database, WORKERS="1", **plant(request.param))
    yield running
    await running.stop()
    await drop_database(postgres, database)


async def test_control_a_gateway_that_does_not_check_lets_mutants_in(planted: Running) -> None:
    async with Client(planted, "demo-kiosk") as kiosk, Client(planted, "demo-bureau") as bureau:
        verdict, _, count = await try_all(kiosk, bureau, await add_card(planted))
    print(f"\n{len(verdict.accepted)} of {count} accepted")
    assert len(verdict.accepted) >= 5


@pytest.mark.parametrize("algorithm", SIGNERS)
@pytest.mark.parametrize(("offset", "status"), [(-290, 200), (299, 200), (-302, 401), (302, 401)])
async def test_the_clock_may_be_off_by_300_seconds(
    gateway: Running, signers: dict[str, Client], algorithm: str, offset: int, status: int
) -> None:
    parts = await parts_for(signers[algorithm], await add_card(gateway))
    answer = await send_raw(gateway.port, parts._replace(created=str(int(time.time()) + offset)).sign().raw())
    assert answer.status == status, answer.body


@pytest.fixture(scope="module")
async def optional(postgres: Any, template: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """A kiosk that may leave its signature out."""
    folder = tmp_path_factory.mktemp("optional")
    config = folder / "config"
    shutil.copytree(ROOT / "config", config)
    text = (config / "callers.toml").read_text()
    mark = 'signing_keys_file = "sandbox/callers/public/demo-kiosk.signing.json"\n'
    assert mark in text
    (config / "callers.toml").write_text(text.replace(mark, mark + 'signature = "optional"\n'))
    database = await make_database(postgres, template)
    running = await start_gateway(folder / "data", database, WORKERS="1", CONFIG_DIR=str(config))
    async with Client(running, "demo-kiosk") as client:
        yield client
    await running.stop()
    await drop_database(postgres, database)


async def test_a_caller_that_need_not_sign_may_leave_it_out(optional: Client) -> None:
    sent = (await parts_for(optional, await add_card(optional.gateway))).sign()
    bare = sent.without("Signature").without("Signature-Input").without("Content-Digest")
    answer = await send_raw(optional.gateway.port, bare.raw())
    assert answer.status == 200, answer.body
    assert (await send_raw(optional.gateway.port, bare.without("Idempotency-Key").raw())).status == 400


async def test_it_must_sign_all_the_same_to_change_its_keys(optional: Client) -> None:
    before = await written(optional.gateway)  # whoever holds its token for ten minutes would have it for ever
    for body in ({"use": "token", "retire": "demo-kiosk-1"}, {"use": "signing", "retire": "demo-kiosk-signing-1"}):
        sent = await optional.post("/v1/callers/self/keys", body, **{"Idempotency-Key": "bare"})
        assert (sent[0], sent[1]["code"]) == (401, "invalid_signature")
    assert await written(optional.gateway) == before


async def test_what_it_does_send_is_checked(optional: Client, gateway: Running) -> None:
    """Mutants that still have a Signature or a Signature-Input; leaving both out is its right."""
    parts = await parts_for(optional, await add_card(optional.gateway))
    async with Client(gateway, "demo-bureau") as bureau:
        found = mutants(parts, Signing.of(bureau.file))
    present = {
        name: sent
        for name, sent in found.items()
        if {"signature", "signature-input"} & {header.lower() for header, _ in sent.headers}
    }
    before, refused = await written(optional.gateway), 0
    for name, sent in present.items():
        answer = await send_raw(optional.gateway.port, sent.raw())
        assert 400 <= answer.status < 500 and answer.status != 422, (name, answer.body)
        refused += answer.status == 401
    assert len(present) >= MUTANTS_LEAST and refused >= MUTANTS_LEAST * 3 // 4
    assert await written(optional.gateway) == before
    assert (await send_raw(optional.gateway.port, parts.sign().raw())).status == 200


@pytest.mark.parametrize("keyed", [False, True], ids=["without a key", "with a key"])
@pytest.mark.parametrize("how", ["good", "half: no Signature", "half: no Signature-Input", "wrong", "empty", "none"])
async def test_a_signature_under_a_verify_is_checked_too(merchant: Client, how: str, keyed: bool) -> None:
    body = json.dumps(verify_body(CARDS[0].number, CARDS[0].identifier)).encode()
    parts = parts_of(
        Signing.of(merchant.file), host_of(merchant), "/v1/cards/verify", body, f"Bearer {await merchant.token()}"
    )
    sent = parts.sign()
    if how.startswith("half"):
        sent = sent.without(how.rpartition(" ")[2])
    elif how == "wrong":
        sent = sent.with_header("Signature", b"sig1=:" + base64.b64encode(bytes(64)) + b":")
    elif how == "empty":
        sent = sent.with_header("Signature", b"").with_header("Signature-Input", b"")
    elif how == "none":
        sent = sent.without("Signature").without("Signature-Input").without("Content-Digest")
    if not keyed:  # a signature covers it
        sent = sent.without("Idempotency-Key")
    answers = [await send_raw(merchant.gateway.port, sent.raw(), used=used) for used in (False, True)]
    good = how == "none" or (how == "good" and keyed)
    assert {answer.status for answer in answers} == {200 if good else 401}, answers


async def test_a_caller_without_signing_keys_cannot_sign(gateway: Running, kiosk: Client) -> None:
    """Nor does the key of another one help it."""
    async with Client(gateway, "demo-transit") as transit:
        assert "signing" not in transit.file
        body = json.dumps(verify_body(CARDS[0].number, CARDS[0].identifier, "transit.bus")).encode()
        parts = parts_of(
            Signing.of(kiosk.file), host_of(transit), "/v1/cards/verify", body, f"Bearer {await transit.token()}"
        )
        assert (await send_raw(gateway.port, parts.sign().raw())).status == 401


async def test_checking_many_bad_signatures_does_not_hold_up_the_honest(gateway: Running, kiosk: Client) -> None:
    """A flood of wrong signatures, each of which is checked in full, beside verifies that must all be answered."""
    parts = await parts_for(kiosk, new_card())
    bad = parts.sign().with_header("Signature", b"sig1=:" + base64.b64encode(bytes(64)) + b":").raw()
    flood = [asyncio.create_task(send_raw(gateway.port, bad)) for _ in range(200)]
    verdicts = [await kiosk.verify(CARDS[0].number, CARDS[0].identifier, "kiosk.service") for _ in range(20)]
    assert {answer.status for answer in await asyncio.gather(*flood)} == {401}
    assert {verdict["reason"] for verdict in verdicts} == {"ok"}
