"""The case of the usage feed over signed HTTP; the subscriber's side is written from the dialect's text."""

import base64
import datetime as dt
import hashlib
import json
from typing import Any
from uuid import UUID

from adapters.usage_feed_http import Adapter
from gateway.domain.operations import DeliverUsage
from gateway.domain.outbox import FeedItem
from gateway.domain.outcome import Approved
from gateway.domain.usage import UsageEvent, UsageResult
from gateway.partners.contract import HttpReply, HttpRequest, WireRequest
from tests.contract.case import NONCE, NOW, SM2_OURS, Case, Example, Shared, crypto_for

KEYS = {
    "sign": Shared("sm2", SM2_OURS),
    "partner": Shared(
        "sm2",
        "f6543f610e5e25f6eb46171c284e81ea4697fb05117439384270f4dcdc8b1e46"
        " 04c49d2f734b0a352151a7a5550e002ae7af08b25e86934521b15748489910dc82"
        "73685b2b13c32c4b08a39c1aa9a0c2bf017b1670a6643e08e3c67f4ff9717718",
    ),
}
CRYPTO = crypto_for(KEYS)
BATCH, OTHER = "0199f000-0000-7000-8000-000000000001", "0199f000-0000-7000-8000-000000000002"
FIRST, SECOND = "0199f000-0000-7000-8000-00000000000a", "0199f000-0000-7000-8000-00000000000b"
CARD_REF = "k00112233445566778899aabbccddeeff"
AT = dt.datetime.fromisoformat("2026-11-23T09:59:58+08:00")

OP = DeliverUsage(
    reference=UUID(BATCH), at=NOW, sequence=12,
    items=(
        FeedItem(4711, UsageEvent(
            FIRST, "verify", "demo-merchant", "parking.exit", "P-0001", AT, AT, "valid", "ok", CARD_REF, "third_gen",
            "330424")),
        FeedItem(4712, UsageEvent(
            SECOND, "usage", "demo-bank", "market.till", "M-0001", AT, AT, card_ref=CARD_REF, medium="third_gen",
            region="330424", result=UsageResult.SUCCESS, amount_fen=1250, caller_event_id="b-1"), redelivery=True),
    ),
)  # fmt: skip
BODY = (
    '{"batch":"0199f000-0000-7000-8000-000000000001","subscriber":"county-330424","sequence":12,"count":2}\n'
    '{"position":4711,"event":{"event_id":"0199f000-0000-7000-8000-00000000000a","kind":"verify",'
    '"caller":"demo-merchant","scene":"parking.exit","terminal_id":"P-0001","occurred_at":"2026-11-23T09:59:58+08:00",'
    '"recorded_at":"2026-11-23T09:59:58+08:00","verdict":"valid","reason":"ok",'
    '"card_ref":"k00112233445566778899aabbccddeeff","medium":"third_gen","region":"330424"}}\n'
    '{"position":4712,"event":{"event_id":"0199f000-0000-7000-8000-00000000000b","kind":"usage",'
    '"caller":"demo-bank","scene":"market.till","terminal_id":"M-0001","occurred_at":"2026-11-23T09:59:58+08:00",'
    '"recorded_at":"2026-11-23T09:59:58+08:00","card_ref":"k00112233445566778899aabbccddeeff","medium":"third_gen",'
    '"region":"330424","result":"success","amount_fen":1250,"caller_event_id":"b-1"},"redelivery":true}\n'
)


def request() -> HttpRequest:
    digest = f"sha-256=:{base64.b64encode(hashlib.sha256(BODY.encode()).digest()).decode()}:"
    message = f"POST\n/usage-events\n1795399200\n{NONCE.hex()}\n{digest}\n"
    headers = {
        "Content-Type": "application/x-ndjson",
        "Content-Digest": digest,
        "X-Feed-Timestamp": "1795399200",
        "X-Feed-Nonce": "000102030405060708090a0b0c0d0e0f",
        "X-Feed-Signature": base64.b64encode(CRYPTO.sign("sign", message.encode())).decode(),
    }
    return HttpRequest("POST", "/usage-events", headers, BODY.encode())


def reply(document: Any, nonce: bytes = NONCE) -> HttpReply:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    message = f"{nonce.hex()}\n{base64.b64encode(hashlib.sha256(body).digest()).decode()}\n"
    signature = base64.b64encode(CRYPTO.sign("partner", message.encode())).decode()
    return HttpReply(200, {"Content-Type": "application/json", "X-Feed-Signature": signature}, body)


def answer(**changes: Any) -> dict[str, Any]:
    return {"batch": BATCH, "received": 2, "accepted": 2, "duplicates": [], "refused": []} | changes


REFUSED = [{"event_id": FIRST, "code": "unknown_scene"}]


def batch_of(request: WireRequest) -> str:
    batch: str = json.loads(request.body.partition(b"\n")[0])["batch"]
    return batch


CASE = Case(
    adapter=Adapter,
    dialect={"subscriber": "county-330424"},
    keys=KEYS,
    reference=batch_of,
    secrets=(CARD_REF, "P-0001"),
    no_query="a batch is sent again instead: the subscriber knows its events",
    examples=(
        Example(
            name="all accepted",
            op=OP,
            request=request(),
            approved=reply(answer()),
            outcome=Approved(facts={"duplicates": 0, "refused": []}),
            declined={},
            unknown=(
                reply(answer(received=1, accepted=1)),
                reply(answer(accepted=1)),
                reply(answer(accepted=3)),
                reply(answer(duplicates=[FIRST])),
                reply(answer(accepted=1, duplicates=[OTHER])),
                reply(answer(accepted=0, duplicates=[FIRST, FIRST])),
                reply(answer(accepted=1, duplicates=[FIRST], refused=REFUSED)),
                reply(answer(accepted=1, refused=[{"event_id": FIRST, "code": "Not A Code"}])),
                reply(answer(accepted=1, refused=[{"event_id": FIRST}])),
                reply(answer(received=-2)),
                reply({"batch": BATCH}),
                reply(b"not JSON"),
                reply(answer(), bytes(16)),  # signed for another try
            ),
            late=reply(answer(batch=OTHER)),
        ),
        Example(
            name="one there already, one refused",
            op=OP,
            request=request(),
            approved=reply(answer(accepted=0, duplicates=[SECOND], refused=REFUSED)),
            outcome=Approved(facts={"duplicates": 1, "refused": [[FIRST, "unknown_scene"]]}),
            declined={},
            unknown=(reply(answer(accepted=1, duplicates=[SECOND], refused=REFUSED)),),
            late=reply(answer(batch=OTHER)),
        ),
    ),
)  # fmt: skip
