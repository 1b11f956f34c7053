"""The case of the example dialect; `python -m gateway new-adapter` copies it."""

from uuid import UUID

import msgspec

from gateway.domain.masking import Secret
from gateway.domain.operations import Purchase, QueryStatus, Reverse
from gateway.domain.outcome import Approved, DeclineCode
from gateway.partners.contract import HttpReply, HttpRequest, WireRequest
from tests.contract.case import NOW, Case, Example, Shared, crypto_for
from tests.contract.dialects.example import Adapter

KEYS = {"mac": Shared("hmac-sha256", "00112233445566778899aabbccddeeff")}
PARTNER = crypto_for(KEYS)

PURCHASE = Purchase(
    reference=UUID("0199f000-0000-7000-8000-000000000001"),
    at=NOW,
    account=Secret("6217000000000000001"),
    amount_fen=1250,
    merchant_id="M1",
    terminal_id="T1",
    order_id="O1",
    trace=1,
)
REFERENCE = "0199f000000070008000000000000001"
ANOTHER = "0199f000000070008000000000000002"


def request(kind: str, mac: str) -> HttpRequest:
    body = (
        f'{{"kind":"{kind}","reference":"{REFERENCE}","merchant_id":"M1","amount_fen":1250,'
        '"account":"6217000000000000001","at":"20261123100000"}'
    ).encode()
    return HttpRequest("POST", "/operations", {"Content-Type": "application/json", "X-Mac": mac}, body)


def reply(code: str, *, reference: str = REFERENCE, more: str = "") -> HttpReply:
    """As the partner would say it."""
    body = f'{{"reference":"{reference}","code":"{code}"{more}}}'.encode()
    return HttpReply(200, {"Content-Type": "application/json", "X-Mac": PARTNER.mac("mac", body).hex()}, body)


def reference(built: WireRequest) -> str:
    return str(msgspec.json.decode(built.body)["reference"])


DECLINED = {
    "14": (reply("14"), DeclineCode.INVALID_CARD),
    "25": (reply("25"), DeclineCode.NOT_FOUND),
    "51": (reply("51"), DeclineCode.INSUFFICIENT_FUNDS),
}
UNKNOWN = (reply("77"), reply("00", reference=""))

CASE = Case(
    adapter=Adapter,
    dialect={"merchant_id": "M1"},
    keys=KEYS,
    reference=reference,
    examples=(
        Example(
            name="purchase",
            op=PURCHASE,
            request=request("pay", "7f27897a5b59460721e45f826e28c0b0b0b7da9e9b4372c9707d6ef330408263"),
            approved=reply("00", more=',"balance_fen":8750'),
            outcome=Approved(REFERENCE, {"balance_fen": 8750}),
            declined=DECLINED,
            unknown=UNKNOWN,
            late=reply("00", reference=ANOTHER),
            pending=reply("P"),
        ),
        Example(
            name="reversal",
            op=Reverse(reference=UUID(ANOTHER), at=NOW, original=PURCHASE),
            request=request("undo", "bea49438b380ba9d4379d73f80bb635902f32bd06513957eeab57df3056a68e4"),
            approved=reply("00"),
            outcome=Approved(REFERENCE),
            declined=DECLINED,
            unknown=UNKNOWN,
            late=reply("00", reference=ANOTHER),
        ),
        Example(
            name="query",
            op=QueryStatus(reference=UUID(REFERENCE), at=NOW, original=PURCHASE),
            request=request("ask", "7a89e45740715454736d370d5d173e623857347ce0894189aab8ad36ea8508b9"),
            approved=reply("00"),
            outcome=Approved(REFERENCE),
            declined=DECLINED,
            unknown=UNKNOWN,
            late=reply("00", reference=ANOTHER),
            pending=reply("P"),
        ),
    ),
)
