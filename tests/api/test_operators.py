"""What operators see: a port of their own, readiness, metrics that add up over workers."""

import asyncio
import json
from collections import Counter
from typing import Any

import aiohttp
import pytest

from gateway import __version__
from gateway.api.routes import ROUTES
from gateway.config_watch import Component
from gateway.domain.anomaly_rules import RuleName
from gateway.domain.benefits import Refusal
from gateway.domain.cards import Medium
from gateway.domain.errors import PROBLEMS
from gateway.domain.payments import PaymentKind, PaymentState
from gateway.domain.points import TransferKind
from gateway.domain.reconciliation import Finding
from gateway.domain.redemptions import RedemptionState
from gateway.domain.verdicts import VERDICT_OF, Reason, Verdict
from gateway.flows.redeem_points import CancelRedemption, CommitRedemption, ReservePoints
from gateway.flows.report_loss import ReleaseLoss, ReportLoss
from gateway.flows.rotate_caller_key import RotateCallerKey
from gateway.flows.verify_card import VerifyOnce
from gateway.settings import load
from tests.registry import CARDS
from tests.running import Client, Running, Samples, eventually, labelled, request, send_raw, verify_body

OK = CARDS[0]
PATH = "/v1/cards/verify"
Asked = tuple[str, str, str, str, str]
"""verdict, reason, medium, field, caller."""


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.text()


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_the_operators_port_is_not_the_callers(operated: Running, path: str) -> None:
    assert (await get(operated.ops_url + path))[0] == 200
    assert (await get(operated.url + path))[0] == 404
    assert (await get(operated.ops_url + "/v1/usage-events"))[0] == 404


async def test_ready_says_what_was_looked_at(operated: Running) -> None:
    status, text = await get(f"{operated.ops_url}/readyz")
    report = json.loads(text)
    assert status == 200 and report["ready"] is True
    assert report["checks"] == {"serving": "ok", "database": "ok", "signing_keys": "ok"}
    assert json.loads((await get(f"{operated.ops_url}/healthz"))[1]) == {"alive": True}


async def test_keys_that_others_may_read_are_not_ready(operated: Running) -> None:
    keys = operated.data_dir / "keys"
    keys.chmod(0o755)
    try:
        status, text = await get(f"{operated.ops_url}/readyz")
    finally:
        keys.chmod(0o700)
    report = json.loads(text)
    assert status == 503 and report["ready"] is False
    assert "others may read it" in report["checks"]["signing_keys"]
    assert (await get(f"{operated.ops_url}/readyz"))[0] == 200


async def send_each(running: Running, asks: list[tuple[Client, str, dict[str, Any], bool]]) -> set[str]:
    """Send verdict requests, each on a new connection; returns the processes that answered (from their request ids)."""
    processes = set()
    for client, key, body, with_key in asks:
        headers = await client.authorization() | ({"Idempotency-Key": key} if with_key else {})
        authorization = headers.pop("Authorization")
        sent = request("POST", PATH, json.dumps(body).encode(), authorization=authorization, **headers)
        answer = await send_raw(running.port, sent, used=True)
        assert answer.status == 200, answer
        processes.add((answer.header("X-Request-Id") or "").partition("-")[0])
    return processes


def mix(merchant: Client, bank: Client) -> tuple[list[tuple[Client, str, dict[str, Any], bool]], Counter[Asked]]:
    """A mix of requests with what must be counted for it."""
    asks, expected = [], Counter[Asked]()
    number = 0
    for client, scene, field in ((merchant, "parking.exit", "parking"), (bank, "bank.counter", "bank")):
        for card in CARDS:
            for turn in range(4):
                number += 1
                asks.append((client, f"m-{number}", verify_body(card.number, card.identifier, scene), turn == 3))
                medium = "second_gen" if card.generation == 2 else "third_gen"
                expected[VERDICT_OF[card.reason], card.reason, medium, field, client.name] += 1
    for _ in range(5):
        asks.append((merchant, "", verify_body("QX0000000", OK.identifier), False))
        expected["refused", "unrecognised", "none", "parking", merchant.name] += 1
        code = {"type": "ecard_code", "code": "12345678"}
        asks.append((merchant, "", {"presentation": code, "scene": "parking.exit", "terminal_id": "P"}, False))
        expected["unknown", "platform_unavailable", "ecard", "parking", merchant.name] += 1
    return asks, expected


def verdicts(samples: Samples) -> dict[Asked, float]:
    return {
        (found["verdict"], found["reason"], found["medium"], found["field"], found["caller"]): amount
        for (name, labels), amount in samples.items()
        if name == "yikatong_verdicts_total" and (found := dict(labels))
    }


async def test_what_two_workers_count_adds_up(operated: Running) -> None:
    async with Client(operated, "demo-merchant") as merchant, Client(operated, "demo-bank") as bank:
        asks, expected = mix(merchant, bank)
        assert len(await send_each(operated, asks)) == 2, "both workers answered"
    sent = sum(expected.values())

    async def all_counted() -> Samples | None:
        samples = await operated.metrics()
        answered = labelled(samples, "yikatong_http_request_seconds_count").get((PATH,), 0)
        return samples if min(sum(verdicts(samples).values()), answered) >= sent else None  # each is written by itself

    samples = await eventually(all_counted, 10, "all verdicts are in the metrics")
    assert samples is not None
    assert verdicts(samples) == expected
    requests = labelled(samples, "yikatong_http_requests_total")
    assert requests[PATH, "200"] == sent
    assert labelled(samples, "yikatong_http_request_seconds_count")[PATH,] == sent
    assert 0 < labelled(samples, "yikatong_http_request_seconds_sum")[PATH,] < 60
    in_batches = sum(not with_key for *_, with_key in asks)
    assert labelled(samples, "yikatong_verify_batch_size_sum") == {(): in_batches}
    batches = labelled(samples, "yikatong_verify_batch_size_count")[()]
    assert 0 < batches <= in_batches
    for name in ("wait_seconds", "seconds"):
        assert labelled(samples, f"yikatong_verify_batch_{name}_count") == {(): batches}
    assert labelled(samples, "yikatong_tokens_issued_total") == {("demo-merchant",): 1, ("demo-bank",): 1}


async def test_gauges_and_build_info(operated: Running) -> None:
    async with Client(operated, "demo-merchant") as merchant:
        await merchant.verify(OK.number, OK.identifier)
    samples = await operated.metrics()
    assert labelled(samples, "yikatong_build_info") == {(__version__,): 1}
    assert labelled(samples, "yikatong_verify_queue") == {(): 0}
    assert labelled(samples, "yikatong_pool_free") == {(): 2 * load({}).gateway.database.pool_size}
    assert labelled(samples, "yikatong_feed_lag_seconds") == {(): 0}


async def test_open_connections_are_counted(operated: Running) -> None:
    opened = [await asyncio.open_connection("127.0.0.1", operated.port) for _ in range(20)]

    async def seen() -> bool:
        return labelled(await operated.metrics(), "yikatong_http_connections").get((), 0) >= 20

    try:
        assert await eventually(seen, 5, "20 open connections in the metrics")
    finally:
        for _, writer in opened:
            writer.close()


async def test_a_refused_entry_is_counted_once(operated: Running) -> None:
    before = labelled(await operated.metrics(), "yikatong_refused_entry_total")
    sent = {"Bearer x": "bad_token", None: "no_token"}
    for authorization in sent:
        for _ in range(5):
            raw = request("POST", PATH, b"{}", authorization=authorization)
            answer = await send_raw(operated.port, raw, used=True)
            assert answer.status == 401

    async def counted() -> dict[tuple[str, ...], float] | None:
        found = labelled(await operated.metrics(), "yikatong_refused_entry_total")
        return found if all(found.get((why,), 0) >= before.get((why,), 0) + 5 for why in sent.values()) else None

    after = await eventually(counted, 10, "the refused requests are in the metrics")
    assert after is not None
    assert {why: after[why,] - before.get((why,), 0) for why in sent.values()} == {"bad_token": 5, "no_token": 5}


async def test_requests_over_a_quota_are_counted(operated: Running) -> None:
    refused = 0
    async with Client(operated, "demo-limited") as limited:
        for _ in range(30):
            status, _, _ = await limited.post(PATH, verify_body("QX0000000", "0" * 32))
            refused += status == 429

    async def counted() -> bool:
        return labelled(await operated.metrics(), "yikatong_rate_limited_total") == {("demo-limited",): refused}

    assert refused > 0 and await eventually(counted, 10, f"{refused} refused requests in the metrics")


KINDS = {VerifyOnce.name, ReportLoss.name, ReleaseLoss.name, RotateCallerKey.name, *PaymentKind, *TransferKind}
KINDS |= {ReservePoints.name, CommitRedemption.name, CancelRedemption.name}
ALLOWED: dict[str, set[str]] = {
    "verdict": set(Verdict), "reason": set(Reason), "medium": {*Medium, "none"},
    "route": {route.path for route in ROUTES} | {"none"},
    "status": {str(status) for status, _ in PROBLEMS.values()} | {"200"},
    "code": set(PROBLEMS),
    "result": {*Refusal, "granted", "taken", "refused", "read", "failed", "done", "replayed", *PROBLEMS},
    "rule": set(RuleName), "finding": set(Finding), "component": set(Component),
    "kind": KINDS, "state": {*PaymentState, *RedemptionState}, "version": {__version__},
    "why": {"no_token", "bad_token", "expired_token", "unknown_caller", "scope", "unknown_client", "bad_assertion",
            "replayed_assertion", "bad_signature", "retired_key"},
}  # fmt: skip


async def test_nothing_that_is_sent_becomes_a_label(operated: Running) -> None:
    mark = "110105194912310021"

    async def requests() -> float:
        return sum(labelled(await operated.metrics(), "yikatong_http_requests_total").values())

    before = await requests()
    async with Client(operated, "demo-merchant") as merchant:
        await merchant.ask_token(merchant.assertion(merchant.claims(iss=mark, sub=mark)))
        await merchant.post(PATH, verify_body(OK.number, OK.identifier, f"a.b{mark[:5]}"))
        await merchant.verify(OK.number, OK.identifier, terminal_id=mark)
    for method in ("GET", "PURGE", "POST"):
        await send_raw(operated.port, request(method, f"/{mark}", x_request_id=mark, user_agent=mark))

    async def counted() -> bool:
        return await requests() >= before + 4

    assert await eventually(counted, 10, "both token requests and both verdict requests are in the metrics")
    settings = load({})
    allowed = ALLOWED | {
        "caller": set(settings.callers),
        "field": {scene.field for scene in settings.scenes.values()},
        "benefit": set(settings.benefits),
        "bank": set(settings.gateway.payments.routes),
    }
    samples = await operated.metrics()
    found = {(name, value) for _, labels in samples for name, value in labels if name != "le"}
    assert [pair for pair in found if pair[1] not in allowed[pair[0]]] == []
    assert len(samples) < 2000 and mark not in (await get(f"{operated.ops_url}/metrics"))[1]
