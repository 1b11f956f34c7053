"""The case of the national e-card platform. Golden ciphertexts and signatures are of the openssl command line:

openssl enc -aes-128-ecb -K 00112233445566778899aabbccddeeff -a -A
openssl dgst -sha1 -hmac sandbox-secret -binary | openssl base64 -A
"""

import base64
import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from adapters.ecard_platform import Adapter
from gateway.domain.masking import Secret
from gateway.domain.operations import EcardSignLevel, ScanLogin, ScanLoginState, VerifyEcardCode
from gateway.domain.outcome import Approved, DeclineCode
from gateway.partners.contract import HttpReply, HttpRequest, WireRequest
from tests.contract.case import NOW, Case, Example, Shared, crypto_for

KEYS = {
    "signing": Shared("hmac-sha1", "sandbox-secret", encoding="text"),
    "body": Shared("aes-ecb", "00112233445566778899aabbccddeeff"),
}
PLATFORM = crypto_for(KEYS)
CODE = "3304240001123456789012"
ID_NUMBER, NAME, CARD_NUMBER = "330499196001010014", "张三丰", "AB1234567"
ABOUT: dict[str, Any] = {"reference": UUID("0199f000-0000-7000-8000-000000000001"), "at": NOW}


def request(api: str, signature: str, security: str) -> HttpRequest:
    headers = {
        "Content-Type": "application/json",
        "_api_name": api,
        "_api_version": "1.0.0",
        "_api_access_key": "county-330424",
        "_api_timestamp": "1795399200000",
        "_api_signature": signature,
    }
    return HttpRequest("POST", "/CSB", headers, f'{{"security":"{security}"}}'.encode())


def reply(code: str | int | None, result: Mapping[str, Any] | str | None = None) -> HttpReply:
    """As the platform would say it."""
    document: dict[str, object] = {"msgCode": code, "msg": "操作完成"}
    if result is not None:
        plain = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        sealed = PLATFORM.encrypt("body", plain.encode(), bytes(16))
        document["result"] = {"encrypt": base64.b64encode(sealed).decode()}
    return raw(document)


def raw(document: object, status: int = 200) -> HttpReply:
    body = json.dumps(document, ensure_ascii=False).encode()
    return HttpReply(status, {"Content-Type": "application/json;charset=UTF-8"}, body)


def what_is_asked(built: WireRequest) -> str:
    """The dialect has no reference: what is asked is all that the platform could know a question by."""
    sealed = base64.b64decode(json.loads(built.body)["security"])
    return PLATFORM.decrypt("body", sealed, bytes(16)).decode()


PERSON = {"aac002": ID_NUMBER, "aac003": NAME, "aaz500": CARD_NUMBER}
DECLINED = {
    "100001": (reply("100001"), DeclineCode.CODE_EXPIRED),
    "100002": (reply("100002"), DeclineCode.CODE_REPLAYED),
    "100003": (reply(100003), DeclineCode.CODE_INVALID),
    "100004": (reply("100004"), DeclineCode.NOT_FOUND),
    "100005": (reply("100005"), DeclineCode.NAME_MISMATCH),
    "100006": (reply("100006"), DeclineCode.NOT_ALLOWED),
}
BUS_FAILURE = {"code": 503, "csbCode": 503, "message": "service unavailable", "requestId": "0a1b"}
UNKNOWN = (
    reply("999999"),
    reply(""),
    reply(None, PERSON),
    reply("000000"),
    reply("000000", {}),
    reply("000000", "[]"),
    reply("000000", "不是 JSON"),
    raw({"msgCode": "000000", "result": {"encrypt": "not base64"}}),
    raw({"msgCode": "000000", "result": "text"}),
    raw(BUS_FAILURE),
    raw(BUS_FAILURE, 503),
    raw({"msgCode": "000000"}, 500),
)

CASE = Case(
    adapter=Adapter,
    dialect={
        "access_key": "county-330424", "channel_no": "3304240001", "access_no": "3304240002", "system_name": "yikatong",
    },
    keys=KEYS,
    reference=what_is_asked,
    secrets=(ID_NUMBER, NAME, CARD_NUMBER, CODE),
    unsigned="domain.md §2.3: replies are enciphered and not signed; only TLS says who answered",
    no_echo="a reply does not repeat what was asked",
    no_query="a question carries no reference of ours; it has no effect but that a code is used up",
    examples=(
        Example(
            name="verify an e-card code",
            op=VerifyEcardCode(**ABOUT, code=Secret(CODE)),
            request=request(
                "qrcode_valid_encrypt", "dXH4hfgPVw9e26Ww5A3sKq+xoBg=",
                "XH80JJjqWj+mLOZCVPPjdNBe3YMKsrxcpbd8pPIf+/fQqpIr5hY6SXYRzPR4o9nQX8NxwuzaEBJdcW/83UdcR09Z"
                "mr+uSDVYGV+bH2h09sQ=",
            ),
            approved=reply("000000", PERSON),
            outcome=Approved(
                facts={"id_number": Secret(ID_NUMBER), "card_number": Secret(CARD_NUMBER), "name": Secret(NAME)}
            ),
            declined=DECLINED,
            unknown=(
                *UNKNOWN,
                reply("000001"),
                reply("000000", PERSON | {"aac002": "330499196001010015"}),  # a wrong check digit
                reply("000000", PERSON | {"aac003": None}),
                reply("000000", PERSON | {"aaz500": "AB123456"}),
                reply("000000", PERSON | {"aaz501": "CD7654321"}),  # two values of one shape
            ),
            late=None,
        ),
        Example(
            name="number and identifier swapped",
            op=VerifyEcardCode(**ABOUT, code=Secret(CODE)),
            request=request(
                "qrcode_valid_encrypt", "dXH4hfgPVw9e26Ww5A3sKq+xoBg=",
                "XH80JJjqWj+mLOZCVPPjdNBe3YMKsrxcpbd8pPIf+/fQqpIr5hY6SXYRzPR4o9nQX8NxwuzaEBJdcW/83UdcR09Z"
                "mr+uSDVYGV+bH2h09sQ=",
            ),
            approved=reply(
                "000000", PERSON | {"aaz500": "330424D15600000500000000000000A1", "aaz501": CARD_NUMBER, "more": 1}
            ),
            outcome=Approved(
                facts={"id_number": Secret(ID_NUMBER), "card_number": Secret(CARD_NUMBER), "name": Secret(NAME)}
            ),
            declined=DECLINED,
            unknown=UNKNOWN,
            late=None,
        ),
        Example(
            name="sign level",
            op=EcardSignLevel(**ABOUT, name=Secret(NAME), id_number=Secret(ID_NUMBER), region="330424"),
            request=request(
                "sign_info", "v6H6YWN4CvE1kScgfSBucbMSmdM=",
                "0mHs7w68pavR7sihtgs94iTStk/UD19HrTYt1ViXkSv9FeVSCDwLZQ5nItMIAxSOM9jzci9vyMNMij4WsFHJiyLV"
                "ufq87jrIzHcvenDWAodqszcMOkIYHN8YwHN8F7RF",
            ),
            approved=reply("000000", {"signNo": "S0001", "signLevel": 2}),
            outcome=Approved(facts={"sign_level": 2, "sign_number": Secret("S0001")}),
            declined=DECLINED,
            unknown=(*UNKNOWN, reply("000000", {"signNo": "S0001", "signLevel": "3"}), reply("000001")),
            late=None,
        ),
        Example(
            name="scan login",
            op=ScanLogin(**ABOUT),
            request=request(
                "qrcode_channel_encrypt", "X6/nFfecIslHPwpnCK17JmCUdRc=",
                "0mHs7w68pavR7sihtgs94kAL5GTbPcApzAQJz5j14qnaLZCMdRl4of76kjZaSkmYIuJOspjaiPLCvYrPM69MfNPV"
                "pYw8Nv2b6YPwYYNQ7as=",
            ),
            approved=reply("000000", {"qrCode": CODE}),
            outcome=Approved(facts={"shown": CODE}),
            declined=DECLINED,
            unknown=(*UNKNOWN, reply("000000", {"qrCode": "<script>"}), reply("000001")),
            late=None,
        ),
        Example(
            name="scan login state",
            op=ScanLoginState(**ABOUT, shown=CODE),
            request=request(
                "qrcode_channel_query_encrypt", "R7itqEcQ39DCjBq73FBB6sL1KTo=",
                "0mHs7w68pavR7sihtgs94kAL5GTbPcApzAQJz5j14qnaLZCMdRl4of76kjZaSkmYmr4wewNWL9eQfCkoY5YIPvJA"
                "d+wCzK0FhpOmHXXZVDX80s2QzcPhhr50OwvH+Ycm",
            ),
            approved=reply("000000", {"aac002": ID_NUMBER.lower(), "esscNo": "E0001"}),
            outcome=Approved(facts={"id_number": Secret(ID_NUMBER), "ecard_number": Secret("E0001")}),
            declined=DECLINED,
            unknown=(*UNKNOWN, reply("000000", {"esscNo": "E0001"})),
            late=None,
            pending=reply("000001"),
        ),
    ),
)  # fmt: skip
