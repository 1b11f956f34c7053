"""The case of the signed open-bank dialect; the bank's side is written from domain.md §4.1, over literal contents."""

import datetime as dt
import json
from collections.abc import Mapping
from uuid import UUID

from adapters.bank_signed_http import Adapter
from gateway.domain.cards import LossKind
from gateway.domain.masking import Secret
from gateway.domain.operations import (
    AccountCheck,
    Balance,
    BatchLine,
    BatchTransfer,
    CheckFile,
    NotifyLoss,
    Operation,
    Purchase,
    QueryStatus,
    Refund,
    Reverse,
    Transfer,
)
from gateway.domain.outcome import Approved, DeclineCode, Outcome
from gateway.partners.contract import HttpReply, HttpRequest, WireRequest
from tests.contract.case import NONCE, NOW, SM2_OURS, Case, Example, Shared, crypto_for

KEYS = {
    "sign": Shared("sm2", SM2_OURS),
    "encrypt": Shared("sm4-cbc", "0123456789abcdeffedcba9876543210"),
    "partner": Shared(
        "sm2",
        "f6543f610e5e25f6eb46171c284e81ea4697fb05117439384270f4dcdc8b1e46"
        " 04c49d2f734b0a352151a7a5550e002ae7af08b25e86934521b15748489910dc82"
        "73685b2b13c32c4b08a39c1aa9a0c2bf017b1670a6643e08e3c67f4ff9717718",
    ),
}
CRYPTO = crypto_for(KEYS)
IV = bytes.fromhex("f0e1d2c3b4a5968778695a4b3c2d1e0f")

AT = NOW - dt.timedelta(minutes=10)
"""Of the operations: old enough for a "not found" to be believed."""
OURS, OTHER, ORIGINAL = (f"0199f00000007000800000000000000{n}" for n in (1, 2, 3))
ASKED = NONCE.hex()
"""A question's message id is the try's own."""
WHEN = '"mesgDate":"20261123","mesgTime":"095000000"'
WHEN_ASKED = '"mesgDate":"20261123","mesgTime":"100000000"'
PAYER, PAYEE, NAME, ID_NUMBER = "6217000000000000004", "6217000000000000012", "张三丰", "330424190001010016"


def request(path: str, content: str, message_id: str = OURS) -> HttpRequest:
    """What the bank's documents ask for, the IV in front."""
    sealed = (NONCE + CRYPTO.encrypt("encrypt", content.encode(), NONCE)).hex().upper()
    headers = {
        "x-aob-appID": "yikatong",
        "x-aob-bankID": "330424",
        "x-aob-interaction-id": ASKED,
        "x-customer-user-agent": "yikatong-gateway",
        "x-idempotency-key": message_id,
    }
    body = f'{{"bizContent":"{sealed}"}}'
    text = "{" + "".join(f'"{name}":"{value}",' for name, value in headers.items()) + body[1:]
    signature = CRYPTO.sign("sign", text.encode()).hex().upper()
    more = {"x-aob-signature": signature, "Content-Type": "application/json; charset=utf-8"}
    return HttpRequest("POST", path, headers | more, body.encode())


def reply(content: str) -> HttpReply:
    """Sealed and signed by the bank; header names as HTTP/1.1 servers like to write them."""
    sealed = (IV + CRYPTO.encrypt("encrypt", content.encode(), IV)).hex().upper()
    text = f'{{"x-aob-bankID":"330424","x-aob-interaction-id":"{ASKED}","bizContent":"{sealed}"}}'
    signature = CRYPTO.sign("partner", text.encode()).hex().upper()
    headers = {"X-Aob-Bankid": "330424", "X-Aob-Interaction-Id": ASKED, "X-Aob-Signature": signature}
    return HttpReply(200, headers, f'{{"bizContent":"{sealed}"}}'.encode())


def good(more: str, message_id: str = OURS) -> HttpReply:
    return reply(f'{{"mesgId":"{message_id}","dealCode":"000000","dealMsg":"交易成功"{more}}}')


def refused(code: str, message_id: str = OURS) -> HttpReply:
    return reply(f'{{"mesgId":"{message_id}","dealCode":"{code}","dealMsg":"{NAME}的交易失败"}}')


CODES = {
    "100001": DeclineCode.INVALID_CARD,
    "100002": DeclineCode.LOST_CARD,
    "100003": DeclineCode.NAME_MISMATCH,
    "100004": DeclineCode.INSUFFICIENT_FUNDS,
    "100005": DeclineCode.LIMIT_EXCEEDED,
    "100006": DeclineCode.NOT_FOUND,
    "100007": DeclineCode.NOT_ALLOWED,
    "100008": DeclineCode.DO_NOT_HONOUR,
    "900001": DeclineCode.PARTNER_FAILURE,
}


def example(
    name: str, op: Operation, path: str, fields: str, done: str, outcome: Outcome, pending: str = "",
    unknown: tuple[str, ...] = (), declined: Mapping[str, tuple[str, DeclineCode]] = {},
) -> Example:  # fmt: skip
    """`fields` are those of the request, `done` and `pending` of the replies, `unknown` of more replies."""
    is_query = isinstance(op, QueryStatus)
    asked, when = (ASKED, WHEN_ASKED) if is_query else (OURS, WHEN)
    # a refused question says nothing of what it asked after, unless that was never seen
    clear = {code for code, why in CODES.items() if why is DeclineCode.NOT_FOUND or not is_query}
    codes = {code: (refused(code, asked), CODES[code]) for code in sorted(clear)}
    return Example(
        name=name,
        op=op,
        request=request(path, f'{{"mesgId":"{asked}",{when},{fields}}}', asked),
        approved=good(done, asked),
        outcome=outcome,
        declined=codes | {code: (good(fields, asked), why) for code, (fields, why) in declined.items()},
        unknown=(
            refused("777777", asked),
            refused(" 000000", asked),
            *(refused(code, asked) for code in sorted(CODES.keys() - clear)),
            reply(f'{{"mesgId":"{asked}"}}'),
            reply(f'{{"dealCode":"000000"{done}}}'),
            reply('["000000"]'),
            *(good(more, asked) for more in unknown),
        ),
        late=good(done, OTHER),
        pending=good(pending, asked) if pending else None,
    )


DONE = ',"dealStatus":"1","tranAmt":"12.34","failCode":"","bankSeqNo":"B000000000001"'
FAILED = ',"dealStatus":"2","failCode":'
UNCLEAR = (
    "",
    ',"dealStatus":"9"',
    ',"dealStatus":1',
    ',"dealStatus":"1","tranAmt":"12.35"',
    ',"dealStatus":"1","tranAmt":"1234"',
    ',"dealStatus":"1","bankSeqNo":"张三"',
)
MONEY = {
    "2/100004": (FAILED + '"100004"', DeclineCode.INSUFFICIENT_FUNDS),
    "2/555555": (FAILED + '"555555"', DeclineCode.PARTNER_FAILURE),
}
PENDING = ',"dealStatus":"0","tranAmt":"12.34"'

PURCHASE = Purchase(
    reference=UUID(OURS), at=AT, account=Secret(PAYER), amount_fen=1234, merchant_id="M-0001", terminal_id="P-0001",
    order_id="ORDER-1", trace=1,
)  # fmt: skip
ORIGINAL_PURCHASE = Purchase(
    reference=UUID(ORIGINAL), at=AT, account=Secret(PAYER), amount_fen=1234, merchant_id="M-0001",
    terminal_id="P-0001", order_id="ORDER-1", trace=1,
)  # fmt: skip
TRANSFER = Transfer(
    reference=UUID(OURS), at=AT, from_account=Secret(PAYER), to_account=Secret(PAYEE), to_name=Secret(NAME),
    amount_fen=1234, purpose="补贴",
)  # fmt: skip
BATCH = BatchTransfer(
    reference=UUID(OURS), at=AT, from_account=Secret(PAYER), batch_no="PAY-202611",
    lines=(BatchLine(1, Secret(PAYEE), Secret(NAME), 500_000), BatchLine(2, Secret(PAYER), Secret(NAME), 1)),
    total_fen=500_001,
)  # fmt: skip
LOSS = NotifyLoss(
    reference=UUID(OURS), at=AT, account=Secret(PAYER), id_number=Secret(ID_NUMBER), kind=LossKind.TEMPORARY,
    release=False,
)  # fmt: skip

BATCH_DONE = (
    ',"batchNo":"PAY-202611","totalCnt":2,"sumAmt":"5000.01","dealStatus":"1","bankSeqNo":"B000000000001",'
    '"transList":[{"seqNo":1,"dealStatus":"1","failCode":""},{"seqNo":2,"dealStatus":"2","failCode":"100001"}]'
)
BATCH_OUTCOME = Approved(
    "B000000000001",
    {
        "paid_count": 1,
        "paid_fen": 500_000,
        "lines": [
            {"line": 1, "state": "approved", "code": ""},
            {"line": 2, "state": "declined", "code": "invalid_card"},
        ],
    },
)
BATCH_UNCLEAR = (
    BATCH_DONE.replace('"seqNo":2', '"seqNo":1'),
    BATCH_DONE.replace('"seqNo":2', '"seqNo":3'),
    BATCH_DONE.replace("PAY-202611", "PAY-202610"),
    BATCH_DONE.replace('"dealStatus":"2"', '"dealStatus":"7"'),
    ',"dealStatus":"1"',
)
BATCH_PENDING = BATCH_DONE.replace('"dealStatus":"2"', '"dealStatus":"0"')

DAY = f',"tranDate":"20261122","fileContent":"2|12.35\\n{OURS}|12.34|1\\n{OTHER}|0.01|3\\n"'
DAY_OUTCOME = Approved(
    facts={
        "count": 2,
        "total_fen": 1235,
        "lines": [
            {"reference": "0199f000-0000-7000-8000-000000000001", "amount_fen": 1234, "state": "approved"},
            {"reference": "0199f000-0000-7000-8000-000000000002", "amount_fen": 1, "state": "reversed"},
        ],
    }
)


def query(original: Operation) -> QueryStatus:
    return QueryStatus(reference=original.reference, at=original.at, original=original)


def reference(built: WireRequest) -> str:
    """By the bank's own reading of a request."""
    assert isinstance(built, HttpRequest)
    raw = bytes.fromhex(json.loads(built.body)["bizContent"])
    content = json.loads(CRYPTO.decrypt("encrypt", raw[16:], raw[:16]))
    asks_of_another = "/sel" in built.target or "reversal" in built.target
    found: str = content["origMesgId" if asks_of_another else "mesgId"]
    return found


_LINES = (
    f'[{{"seqNo":1,"rcvAcct":"{PAYEE}","rcvName":"{NAME}","tranAmt":"5000.00"}},'
    f'{{"seqNo":2,"rcvAcct":"{PAYER}","rcvName":"{NAME}","tranAmt":"0.01"}}]'
)
_OF_OURS = f'"origMesgId":"{OURS}"'
_OF_ORIGINAL = f'"origMesgId":"{ORIGINAL}"'

EXAMPLES = (
    example(
        "account_check",
        AccountCheck(
            reference=UUID(OURS), at=AT, account=Secret(PAYER), name=Secret(NAME), id_number=Secret(ID_NUMBER)
        ),
        "/V1/P01501/S01/checkacctname",
        f'"acctNo":"{PAYER}","acctName":"{NAME}","idType":"01","idNo":"{ID_NUMBER}"',
        "",
        Approved(),
    ),
    example(
        "balance",
        Balance(reference=UUID(OURS), at=AT, account=Secret(PAYER), trace=1),
        "/V1/P01502/S01/balance",
        f'"acctNo":"{PAYER}"',
        ',"balance":"-0.05","available":"100.00"',
        Approved(facts={"balance_fen": -5, "available_fen": 10_000}),
        unknown=("", ',"balance":"1.005","available":"1.00"', ',"balance":"1e3","available":"1.00"'),
    ),
    example(
        "transfer", TRANSFER, "/V1/P01503/S01/singletrans",
        f'"tranType":"01","payAcct":"{PAYER}","rcvAcct":"{PAYEE}","rcvName":"{NAME}","tranAmt":"12.34","remark":"补贴"',
        DONE, Approved("B000000000001"), PENDING, UNCLEAR, MONEY,
    ),
    example(
        "purchase", PURCHASE, "/V1/P01503/S01/singletrans",
        f'"tranType":"02","payAcct":"{PAYER}","rcvAcct":"6217000000000009001","rcvName":"海盐停车","tranAmt":"12.34",'
        '"merchantNo":"M-0001","terminalNo":"P-0001","orderNo":"ORDER-1"',
        DONE, Approved("B000000000001"), PENDING, UNCLEAR, MONEY,
    ),
    example(
        "reversal", Reverse(reference=UUID(OURS), at=AT, original=ORIGINAL_PURCHASE), "/V1/P01507/S01/reversal",
        f'{_OF_ORIGINAL},"tranAmt":"12.34"', DONE, Approved("B000000000001"), PENDING, UNCLEAR, MONEY,
    ),
    example(
        "refund", Refund(reference=UUID(OURS), at=AT, original=ORIGINAL_PURCHASE, amount_fen=1200, trace=2),
        "/V1/P01508/S01/refund", f'{_OF_ORIGINAL},"tranAmt":"12.00"', DONE.replace("12.34", "12.00"),
        Approved("B000000000001"), ',"dealStatus":"0"', UNCLEAR, MONEY,
    ),
    example(
        "batch", BATCH, "/V1/P01505/S01/batchtrans",
        f'"batchNo":"PAY-202611","payAcct":"{PAYER}","sumAmt":"5000.01","totalCnt":2,"transList":{_LINES}',
        BATCH_DONE, BATCH_OUTCOME, BATCH_PENDING, BATCH_UNCLEAR, MONEY,
    ),
    example(
        "loss", LOSS, "/V1/P01509/S01/lossnotice", f'"acctNo":"{PAYER}","idNo":"{ID_NUMBER}","operType":"2"',
        ',"dealStatus":"1"', Approved(), ',"dealStatus":"0"', ("", ',"dealStatus":"9"'), MONEY,
    ),
    example(
        "release",
        NotifyLoss(
            reference=UUID(OURS), at=AT, account=Secret(PAYER), id_number=Secret(ID_NUMBER), kind=LossKind.FORMAL,
            release=True,
        ),
        "/V1/P01509/S01/lossnotice", f'"acctNo":"{PAYER}","idNo":"{ID_NUMBER}","operType":"4"',
        ',"dealStatus":"1"', Approved(),
    ),
    example(
        "check_file", CheckFile(reference=UUID(OURS), at=AT, day=dt.date(2026, 11, 22)), "/V1/P01511/S01/checkacct",
        '"tranDate":"20261122"', DAY, DAY_OUTCOME,
        unknown=(
            DAY.replace("20261122", "20261121"), DAY.replace("2|12.35", "3|12.35"), DAY.replace("12.35", "12.36"),
            DAY.replace("|3", "|4"), DAY.replace("12.34|1", "12.34"), ',"tranDate":"20261122","fileContent":""',
        ),
    ),
    example(
        "query of a transfer", query(TRANSFER), "/V1/P01504/S01/selsingletrans", _OF_OURS,
        DONE, Approved("B000000000001"), PENDING, UNCLEAR, MONEY,
    ),
    example(
        "query of a purchase", query(PURCHASE), "/V1/P01504/S01/selsingletrans", _OF_OURS,
        DONE, Approved("B000000000001"), PENDING, UNCLEAR, MONEY,
    ),
    example(
        "query of a batch", query(BATCH), "/V1/P01506/S01/selbatchtrans", f'{_OF_OURS},"batchNo":"PAY-202611"',
        BATCH_DONE, BATCH_OUTCOME, BATCH_PENDING, BATCH_UNCLEAR, MONEY,
    ),
    example(
        "query of a loss", query(LOSS), "/V1/P01510/S01/sellossnotice", _OF_OURS,
        ',"dealStatus":"1"', Approved(), ',"dealStatus":"0"', ("",), MONEY,
    ),
)  # fmt: skip

CASE = Case(
    adapter=Adapter,
    dialect={
        "app_id": "yikatong",
        "bank_id": "330424",
        "merchants": {"M-0001": {"account": "6217000000000009001", "name": "海盐停车"}},
    },
    keys=KEYS,
    reference=reference,
    examples=EXAMPLES,
    secrets=(NAME,),
)
