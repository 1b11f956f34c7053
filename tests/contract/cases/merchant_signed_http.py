"""The case of the merchants' dialect: a merchant that puts everything into objects, with an HMAC of SM3 in base64.

merchant_signed_http_flat.py is another one, with other names for everything.
"""

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from adapters.merchant_signed_http import Adapter
from gateway.domain.masking import Secret
from gateway.domain.operations import HotelCheckIn, OpenBarrier, Operation, ParkingFee, QueryStatus, TillDiscount, Way
from gateway.domain.outcome import Approved, DeclineCode
from gateway.partners.contract import HttpReply, HttpRequest, WireRequest
from tests.contract.case import NONCE, NOW, Case, Example, Shared, crypto_for

OURS, OTHER = "0199f000-0000-7000-8000-000000000001", "0199f000-0000-7000-8000-000000000002"
PLATE, HOLDER = "浙F12345", "*三"
TIME, SOON = "2026-11-23T10:00:00+08:00", "2026-11-23T10:00:30+08:00"

KEYS = {
    "sign": Shared("hmac-sm3", "00112233445566778899aabbccddeeff"),
    "partner": Shared("hmac-sm3", "ffeeddccbbaa99887766554433221100"),
}
CRYPTO = crypto_for(KEYS)

ENTRY = OpenBarrier(
    reference=UUID(OURS), at=NOW, terminal_id="P-0001", way=Way.ENTRY, plate=Secret(PLATE), ticket="",
    open_before=NOW.replace(second=30),
)  # fmt: skip
EXIT = OpenBarrier(
    reference=UUID(OURS), at=NOW, terminal_id="P-0002", way=Way.EXIT, plate=Secret(PLATE), ticket="K-17",
    open_before=NOW.replace(second=30),
)  # fmt: skip
FEE = ParkingFee(reference=UUID(OURS), at=NOW, terminal_id="P-0002", plate=Secret(PLATE), ticket="K-17")
GUEST = HotelCheckIn(
    reference=UUID(OURS), at=NOW, terminal_id="H-0001", booking="B-2026-1", holder=Secret(HOLDER), rate_percent=90,
    act_before=NOW.replace(second=30),
)  # fmt: skip
BILL = TillDiscount(
    reference=UUID(OURS), at=NOW, terminal_id="D-0001", ticket="K-18", amount_fen=8805, discount_fen=300,
    act_before=NOW.replace(second=30),
)  # fmt: skip


def query(original: Operation) -> QueryStatus:
    return QueryStatus(reference=original.reference, at=original.at, original=original)


def _headers(signature: bytes) -> dict[str, str]:
    return {
        "X-App": "yikatong", "X-When": TIME, "X-Once": NONCE.hex(), "X-Sign": base64.b64encode(signature).decode(),
        "Content-Type": "application/json; charset=utf-8",
    }  # fmt: skip


def _request(target: str, data: str) -> HttpRequest:
    body = f'{{"head":{{"requestId":"{OURS}","time":"{TIME}"}}{data}}}'.encode()
    signature = CRYPTO.mac("sign", f"POST\n{target}\n{TIME}\n{NONCE.hex()}\n".encode() + body)
    return HttpRequest("POST", target, _headers(signature), body)


def _reply(code: Any, more: str = "", reference: str = OURS) -> HttpReply:
    body = f'{{"head":{{"requestId":"{reference}"}},"result":{{"code":{json.dumps(code)}{more}}}}}'.encode()
    return signed(body)


def signed(body: bytes) -> HttpReply:
    signature = base64.b64encode(CRYPTO.mac("partner", f"{NONCE.hex()}\n".encode() + body)).decode()
    return HttpReply(200, {"Content-Type": "application/json", "X-Sign": signature}, body)


def examples(
    request: Callable[[str, str], HttpRequest], reply: Callable[..., HttpReply],
    parts: Mapping[str, tuple[str, str]], fee: str, unclear: tuple[HttpReply, ...], bad_fees: tuple[str, ...],
) -> tuple[Example, ...]:  # fmt: skip
    """`parts`: target and the operation's own part of the request, `fee`: of the answer, by a merchant's own words."""
    operations: dict[str, Operation] = {
        "entry": ENTRY, "exit": EXIT, "fee": FEE, "guest": GUEST, "bill": BILL, "query of an entry": query(ENTRY),
        "query of a guest": query(GUEST), "query of a bill": query(BILL),
    }  # fmt: skip
    made = []
    for name, op in operations.items():
        more, facts = (fee, {"fee_fen": 1500}) if op is FEE else ("", {})
        made.append(
            Example(
                name=name, op=op, request=request(*parts["query" if name.startswith("query") else name]),
                approved=reply(0, more), outcome=Approved("", facts),
                declined={
                    "4": (reply("4"), DeclineCode.NOT_FOUND), "7": (reply(7), DeclineCode.NOT_ALLOWED),
                },
                unknown=(
                    reply("99"), reply(None), reply(True), reply([]), reply(0.0),
                    *(reply(0, bad) for bad in bad_fees if op is FEE), *unclear,
                ),
                late=reply(0, more, OTHER), pending=reply("1"),
            )
        )  # fmt: skip
    return tuple(made)


_CAR = f',"gate":{{"no":"P-0002","plate":"{PLATE}","ticket":"K-17"'
PARTS = {
    "entry": ("/gate/open", f',"gate":{{"no":"P-0001","plate":"{PLATE}","direction":"1","until":"{SOON}"}}'),
    "exit": ("/gate/open", f'{_CAR},"direction":"2","until":"{SOON}"}}'),
    "fee": ("/gate/fee", _CAR + "}"),
    "guest": (
        "/desk/guest",
        f',"gate":{{"no":"H-0001"}},"guest":{{"order":"B-2026-1","name":"{HOLDER}","rate":90}},"until":"{SOON}"',
    ),
    "bill": (
        "/till/bill",
        f',"gate":{{"no":"D-0001","ticket":"K-18"}},"bill":{{"sum":8805,"off":300}},"until":"{SOON}"',
    ),
    "query": ("/ask", ""),
}
DIALECT = {
    "party": "yikatong", "signature_form": "base64", "done": "0", "pending": "1",
    "declines": {"4": "not_found", "7": "not_allowed"}, "words": {"entry": "1", "exit": "2"},
    "paths": {
        "open_barrier": "/gate/open", "parking_fee": "/gate/fee", "hotel_check_in": "/desk/guest",
        "till_discount": "/till/bill", "query_status": "/ask",
    },
    "headers": {"party": "X-App", "at": "X-When", "nonce": "X-Once", "signature": "X-Sign"},
    "fields": {
        "reference": "head.requestId", "at": "head.time", "terminal_id": "gate.no", "way": "gate.direction",
        "plate": "gate.plate", "ticket": "gate.ticket", "open_before": "gate.until", "act_before": "until",
        "booking": "guest.order",
        "holder": "guest.name", "rate_percent": "guest.rate", "amount_fen": "bill.sum", "discount_fen": "bill.off",
    },
    "answers": {"reference": "head.requestId", "status": "result.code", "fee_fen": "result.toPay"},
}  # fmt: skip


def reference(built: WireRequest) -> str:
    return str(json.loads(built.body)["head"]["requestId"])


CASE = Case(
    adapter=Adapter, dialect=DIALECT, keys=KEYS, reference=reference, secrets=(PLATE, HOLDER),
    examples=examples(
        _request, _reply, PARTS, ',"toPay":1500',
        (signed(b"{}"), signed(b"[]"), signed(f'{{"head":"{OURS}","result":0}}'.encode())),
        ("", ',"toPay":-1', ',"toPay":"1500"', ',"toPay":true', ',"toPay":1e3', ',"toPay":99999999999'),
    ),
)  # fmt: skip
