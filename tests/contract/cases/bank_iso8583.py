"""A bank by ISO 8583. Requests are literal; replies are put together field by field here, not by the adapter's kit.

Checked by hand against 银联 POS (domain.md §4.2): digits two to a byte, an odd count filled with 0 on the right, their
lengths in BCD, texts in ASCII, a bitmap of 8 bytes, a mac of 8 bytes over all before it (SM4-CBC-MAC, cut).
"""

from uuid import UUID

from adapters.bank_iso8583 import Adapter
from gateway.domain.masking import Secret
from gateway.domain.operations import Balance, LinkMessage, Purchase, Refund, Reverse, SettleTotals
from gateway.domain.outcome import Approved, DeclineCode
from gateway.partners.contract import LinkFrame, WireRequest
from tests.contract.case import NOW, Case, Example, Shared, crypto_for

KEYS = {"mac": Shared("mac-sm4", "0123456789abcdeffedcba9876543210")}
BANK = crypto_for(KEYS)

PURCHASE = Purchase(
    reference=UUID("0199f000-0000-7000-8000-000000000001"),
    at=NOW,
    account=Secret("6217330424000000018"),
    amount_fen=1250,
    merchant_id="898330448169999",
    terminal_id="TILL0001",
    order_id="O1",
    trace=7,
)
OWN = "0199f000000070008000000000000002"
REFERENCE = PURCHASE.reference.hex

# the parts of messages, in hex
ACCOUNT = "1962173304240000000180"  # F2
AMOUNT = "000000001250"  # F4
WHEN = "0000071000001123"  # F11, F12, F13
ENTRY = "032000"  # F22, F25
TILL = b"TILL0001".hex() + b"898330448169999".hex()  # F41, F42
GATEWAY = b"GATEWAY1".hex() + b"898330448161001".hex()
YUAN = b"156".hex()  # F49


def private(*references: str) -> str:
    """F59"""
    text = "".join(references).encode()
    return f"{len(text):04}" + text.hex()


def request(parts: str, mac: str) -> LinkFrame:
    return LinkFrame(bytes.fromhex(parts + mac))


def reply(kind: str, code: str, parts: dict[int, str], *, sealed: bool = True) -> LinkFrame:
    """The bank's message: type, bitmap, fields in order, mac."""
    fields = dict(sorted({**parts, 39: code.encode().hex()}.items()))
    bits = sum(1 << (64 - number) for number in fields) | int(sealed)
    message = bytes.fromhex(kind + f"{bits:016x}" + "".join(fields.values()))
    return LinkFrame(message + BANK.mac("mac", message)[:8] if sealed else message)


def echo(processing: str, amount: str, reference: str, trace: str = "000007", till: str = TILL) -> dict[int, str]:
    found = {3: processing, 11: trace, 12: "100000", 13: "1123", 41: till[:16], 42: till[16:], 49: YUAN}
    return found | ({4: amount} if amount else {}) | {59: private(reference)}


RETRIEVAL = {37: b"000000000042".hex()}
BOUGHT = echo("000000", AMOUNT, REFERENCE)
UNDONE = echo("000000", AMOUNT, OWN + REFERENCE)
GIVEN = echo("200000", "000000000500", OWN + REFERENCE, trace="000008")
ASKED = echo("310000", "", OWN, trace="000009", till=GATEWAY)
SETTLED = {n: v for n, v in echo("", "", OWN, trace="000010", till=GATEWAY).items() if n != 3} | {15: "1122"}

MEANINGS = {
    "05": DeclineCode.DO_NOT_HONOUR, "14": DeclineCode.INVALID_CARD, "25": DeclineCode.NOT_FOUND,
    "30": DeclineCode.PARTNER_FAILURE, "41": DeclineCode.LOST_CARD, "51": DeclineCode.INSUFFICIENT_FUNDS,
    "54": DeclineCode.EXPIRED_CARD, "55": DeclineCode.WRONG_PIN, "61": DeclineCode.LIMIT_EXCEEDED,
    "75": DeclineCode.PIN_TRIES_EXCEEDED, "91": DeclineCode.PARTNER_FAILURE, "94": DeclineCode.DUPLICATE,
    "96": DeclineCode.PARTNER_FAILURE, "A0": DeclineCode.PARTNER_FAILURE,
}  # fmt: skip


def declined(kind: str, parts: dict[int, str]) -> dict[str, tuple[LinkFrame, DeclineCode]]:
    return {code: (reply(kind, code, parts), meaning) for code, meaning in MEANINGS.items()}


def unclear(kind: str, parts: dict[int, str]) -> tuple[LinkFrame, ...]:
    """Codes that nobody knows; another type of message; another amount, card, day, reference; no mac; no F11."""
    altered = ({4: "000000001251"}, {2: "1962173304240000000260"}, {13: "1122"}, {59: private("f" * 32)})
    return (
        reply(kind, "68", parts),
        reply(kind, "zz", parts),
        reply("0810", "00", parts),
        *(reply(kind, "00", parts | one) for one in altered),
        reply(kind, "00", parts, sealed=False),
        reply(kind, "00", {number: part for number, part in parts.items() if number != 11}),
    )


def amounts(fen: int) -> dict[int, str]:
    """F54: booked and available."""
    text = f"1001156C{fen + 100:012}1002156C{fen:012}".encode()
    return {54: f"{len(text):04}" + text.hex()}


def totals(verdict: str) -> dict[int, str]:
    """F48"""
    text = f"000000001250001000000000500001{verdict}".encode() + b"0" * 31
    return {48: "0062" + text.hex()}


def network(message_type: str, code: str) -> LinkFrame:
    """F11, F12, F13, F41, F42, F60: no mac."""
    parts = "0038000000c000100000011000001123" + GATEWAY + "0011"
    return LinkFrame(bytes.fromhex(f"{message_type}{parts}00000001{code}0"))


def network_reply(message_type: str) -> LinkFrame:
    return reply(message_type, "00", {11: "000001", 41: GATEWAY[:16], 42: GATEWAY[16:]}, sealed=False)


def reference(built: WireRequest) -> str:
    """Of F59: that of the purchase in a reversal, else our own, which goes first."""
    body = bytes(built.body)
    field = body.index(b"156") + 3
    length = int(body[field : field + 2].hex())
    text = body[field + 2 : field + 2 + length].decode()
    return text[-32:] if body.startswith(b"\x04") else text[:32]


CASE = Case(
    adapter=Adapter,
    dialect={"merchant_id": "898330448161001", "terminal_id": "GATEWAY1"},
    keys=KEYS,
    reference=reference,
    no_query="ISO 8583 has no such message: what is unknown is reversed",
    examples=(
        Example(
            name="purchase",
            op=PURCHASE,
            request=request(
                "0200" "7038048000c08031" + ACCOUNT + "000000" + AMOUNT + WHEN + ENTRY + TILL + YUAN
                + private(REFERENCE) + "0011" "220000010000",
                "d5ba4b4dbe36b289",
            ),
            approved=reply("0210", "00", BOUGHT | RETRIEVAL | {38: b"A00042".hex()}),
            outcome=Approved("000000000042", {"auth_code": "A00042"}),
            declined=declined("0210", BOUGHT),
            unknown=unclear("0210", BOUGHT),
            late=reply("0210", "00", echo("000000", AMOUNT, OWN, trace="000006")),
        ),
        Example(
            name="reversal",
            op=Reverse(reference=UUID(OWN), at=NOW, original=PURCHASE),
            request=request(
                "0400" "7038048002c08039" + ACCOUNT + "000000" + AMOUNT + WHEN + ENTRY + b"98".hex() + TILL + YUAN
                + private(OWN, REFERENCE) + "0011" "220000010000" "0016" "0000010000071123",
                "6776a75a49df0884",
            ),
            approved=reply("0410", "00", UNDONE | RETRIEVAL),
            outcome=Approved("000000000042"),
            declined={"25": (reply("0410", "25", UNDONE | RETRIEVAL), DeclineCode.NOT_FOUND)},
            unknown=(*unclear("0410", UNDONE), *(reply("0410", code, UNDONE) for code in MEANINGS if code != "25")),
            late=reply("0410", "00", echo("000000", AMOUNT, OWN, trace="000006")),
        ),
        Example(
            name="refund",
            op=Refund(reference=UUID(OWN), at=NOW, original=PURCHASE, amount_fen=500, trace=8),
            request=request(
                "0220" "7038048000c08039" + ACCOUNT + "200000" "000000000500" "000008" "100000" "1123" + ENTRY + TILL
                + YUAN + private(OWN, REFERENCE) + "0011" "250000010000" "0016" "0000010000071123",
                "ca50c0eadd5e0213",
            ),
            approved=reply("0230", "00", GIVEN | RETRIEVAL),
            outcome=Approved("000000000042"),
            declined=declined("0230", GIVEN),
            unknown=unclear("0230", GIVEN),
            late=reply("0230", "00", echo("200000", "000000000500", OWN + REFERENCE)),
        ),
        Example(
            name="balance",
            op=Balance(reference=UUID(OWN), at=NOW, account=PURCHASE.account, trace=9),
            request=request(
                "0200" "6038048000c08031" + ACCOUNT + "310000" "000009" "100000" "1123" + ENTRY + GATEWAY + YUAN
                + private(OWN) + "0011" "010000010000",
                "6fa3061052ddae74",
            ),
            approved=reply("0210", "00", ASKED | amounts(8750)),
            outcome=Approved("", {"balance_fen": 8750}),
            declined=declined("0210", ASKED),
            unknown=(*unclear("0210", ASKED | amounts(1)), reply("0210", "00", ASKED)),
            late=reply("0210", "00", ASKED | {11: "000007"} | amounts(1)),
        ),
        Example(
            name="settlement",
            op=SettleTotals(
                reference=UUID(OWN), at=NOW, day=NOW.date().replace(day=22), trace=10,
                debit_fen=1250, debits=1, credit_fen=500, credits=1,
            ),
            request=request(
                "0500" "003a000000c18031" "000010" "100000" "1123" "1122" + GATEWAY
                + totals("0")[48] + YUAN + private(OWN) + "0011" "000000012010",
                "43ee34ef1aaa1308",
            ),
            approved=reply("0510", "00", SETTLED | totals("2")),
            outcome=Approved("", {"balanced": 0}),
            declined=declined("0510", SETTLED),
            unknown=(*unclear("0510", SETTLED), reply("0510", "00", SETTLED | totals("3"))),
            late=reply("0510", "00", SETTLED | {11: "000007"} | totals("1")),
        ),
    ),
    link={
        LinkMessage.SIGN_ON: (network("0800", "001"), network_reply("0810")),
        LinkMessage.ECHO: (network("0820", "301"), network_reply("0830")),
        LinkMessage.SIGN_OFF: (network("0820", "002"), network_reply("0830")),
    },
    secrets=("1002156C000000008750", "000000008750"),
)  # fmt: skip
