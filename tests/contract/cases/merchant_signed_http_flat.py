"""Another merchant of the dialect, with other names for everything: flat, signed with SM2, amounts in yuan.

It has no name for when an operation was made.
"""

import json
from typing import Any

from adapters.merchant_signed_http import Adapter
from gateway.partners.contract import HttpReply, HttpRequest, WireRequest
from tests.contract.case import NONCE, SM2_OURS, Case, Shared, crypto_for
from tests.contract.cases.merchant_signed_http import HOLDER, OURS, PLATE, SOON, TIME, examples

KEYS = {"sign": Shared("sm2", SM2_OURS), "partner": Shared("sm2", SM2_OURS, user_id="merchant")}
CRYPTO = crypto_for(KEYS)


def _request(target: str, fields: str) -> HttpRequest:
    body = f'{{"serialNo":"{OURS}"{fields}}}'.encode()
    signature = CRYPTO.sign("sign", f"POST\n{target}\n{TIME}\n{NONCE.hex()}\n".encode() + body).hex()
    headers = {
        "X-Party": "330424", "X-Timestamp": TIME, "X-Nonce": NONCE.hex(), "X-Signature": signature,
        "Content-Type": "application/json; charset=utf-8",
    }  # fmt: skip
    return HttpRequest("POST", target, headers, body)


def _reply(code: Any, more: str = "", reference: str = OURS) -> HttpReply:
    # a merchant's codes are words: the numbers of the other case are put into this one's
    word = {0: "OK", "1": "WAIT", "4": "NO_SUCH", 7: "CLOSED"}.get(code) if isinstance(code, int | str) else None
    return signed(f'{{"orderNo":"{reference}","state":{json.dumps(word or f"{code}?")}{more}}}'.encode())


def signed(body: bytes) -> HttpReply:
    signature = CRYPTO.sign("partner", f"{NONCE.hex()}\n".encode() + body).hex().upper()
    return HttpReply(200, {"Content-Type": "application/json", "X-Signature": signature}, body)


_CAR = f',"lane":"P-0002","plateNo":"{PLATE}","slip":"K-17"'
PARTS = {
    "entry": ("/in-out", f',"lane":"P-0001","plateNo":"{PLATE}","inOut":"entry","validUntil":"{SOON}"'),
    "exit": ("/in-out", f'{_CAR},"inOut":"exit","validUntil":"{SOON}"'),
    "fee": ("/charge", _CAR),
    "guest": (
        "/guests",
        f',"lane":"H-0001","bookingNo":"B-2026-1","guestName":"{HOLDER}","discountRate":90,"actBefore":"{SOON}"',
    ),
    "bill": ("/bills", f',"lane":"D-0001","slip":"K-18","total":"88.05","minus":"3.00","actBefore":"{SOON}"'),
    "query": ("/state", ""),
}
DIALECT = {
    "party": "330424", "signed": "sm2", "amounts": "yuan", "done": "OK", "pending": "WAIT",
    "declines": {"NO_SUCH": "not_found", "CLOSED": "not_allowed"},
    "paths": {
        "open_barrier": "/in-out", "parking_fee": "/charge", "hotel_check_in": "/guests", "till_discount": "/bills",
        "query_status": "/state",
    },
    "fields": {
        "reference": "serialNo", "at": "", "terminal_id": "lane", "way": "inOut", "plate": "plateNo", "ticket": "slip",
        "open_before": "validUntil", "act_before": "actBefore",
        "booking": "bookingNo", "holder": "guestName", "rate_percent": "discountRate",
        "amount_fen": "total", "discount_fen": "minus",
    },
    "answers": {"reference": "orderNo", "status": "state", "fee_fen": "due"},
}  # fmt: skip


def reference(built: WireRequest) -> str:
    return str(json.loads(built.body)["serialNo"])


CASE = Case(
    adapter=Adapter, dialect=DIALECT, keys=KEYS, reference=reference, secrets=(PLATE, HOLDER),
    examples=examples(
        _request, _reply, PARTS, ',"due":"15.00"', (signed(b"{}"),),
        ("", ',"due":"-1.00"', ',"due":1500', ',"due":"15"', ',"due":null'),
    ),
)  # fmt: skip
