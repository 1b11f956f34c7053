"""A simulated bank of the signed open-bank pattern (domain.md §4.1): its bytes, over HTTP on loopback.

    python -m gateway.sandbox.peers.open_bank_host --port 7101 --control-port 7102 --book <file> --keys <folder>

A port of 0 takes a free one; a line `ready <port> <control port>` says that it serves. It ends with its parent. The
keys folder is made at the first start: `bank.key` is the bank's own; `sign.key`, `encrypt.key` and `partner.key` are
what a gateway's config block names. It is written from the reference, not from the adapter: two readings of one text.
"""

import asyncio
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from aiohttp import web

from gateway.crypto import sm2
from gateway.crypto.key_files import write_private
from gateway.crypto.shared_keys import SharedKey, read_key
from gateway.domain.partners import PartnerKey
from gateway.sandbox.peers.control import (
    Book,
    BookLine,
    Faults,
    Met,
    arguments,
    control_application,
    deliver,
    serve_until_told,
    started,
    under_faults,
)
from gateway.sandbox.peers.open_bank_ledger import OK, Ledger, Payment, Refused

BODY_MAX_BYTES = 4 * 1024 * 1024
OPENING_FEN = 1_000_000
BAD_SIGNATURE, BAD_FORMAT = "800001", "800002"
SIGNED_HEADERS = (
    "Authorization", "x-aob-appID", "x-aob-bankID", "x-aob-customer-last-logger-time", "x-aob-customer-ip-address",
    "x-aob-interaction-id", "x-aob-access-token", "x-customer-user-agent", "x-idempotency-key",
)  # fmt: skip
_STATUS = {"approved": "1", "pending": "0", "declined": "2", "reversed": "2"}
_REVERSED = "100007"

Content = dict[str, Any]


class Keys(NamedTuple):
    """The bank's side of the keys."""

    own: sm2.PrivateKey
    gateway: sm2.PublicKey
    shared: SharedKey


def open_keys(folder: Path) -> Keys:
    """Make what is missing, and read."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("bank", "sign"):
        if not (folder / f"{name}.key").exists():
            secret, point = sm2.generate()
            write_private(folder / f"{name}.key", f"{secret.hex()} {point.hex()}\n")
    if not (folder / "encrypt.key").exists():
        write_private(folder / "encrypt.key", secrets.token_hex(16) + "\n")
    own, gateway = ([bytes.fromhex(h) for h in (folder / f"{n}.key").read_text().split()] for n in ("bank", "sign"))
    write_private(folder / "partner.key", own[1].hex() + "\n")
    shared = read_key(PartnerKey(kind="sm4-cbc"), (folder / "encrypt.key").read_text())
    return Keys(sm2.PrivateKey(own[0], own[1]), sm2.PublicKey(gateway[1]), shared)


class NotOurs(Exception):
    """A request that is not signed, sealed or shaped as it must be: refused unsigned, nothing done."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class OpenBank:
    """The bank's services, by the last part of their path."""

    def __init__(self, keys: Keys, ledger: Ledger, faults: Faults) -> None:
        self._keys, self._ledger, self._faults = keys, ledger, faults

    def application(self) -> web.Application:
        app = web.Application(client_max_size=BODY_MAX_BYTES)
        app.router.add_post("/V1/{service}/S01/{name}", under_faults(self._faults, self._act))
        return app

    async def _act(self, request: web.Request, body: bytes, met: Met) -> web.Response:
        name = request.match_info["name"]
        try:
            content = self._open(request.headers, body)
            decline = met["decline"].code if "decline" in met else ""
            answer = self._serve(name, content, decline)
            if "duplicate" in met:  # the network brings the request twice, and the answer too
                answer = self._serve(name, content, decline)
        except NotOurs as refusal:
            refused = {"dealCode": refusal.code, "dealMsg": refusal.message}
            return web.json_response(refused, status=refusal.status)
        sealed, headers = self._seal(answer, request.headers, forged="bad_signature" in met)
        return await deliver(request, sealed, headers, met)

    def _open(self, headers: Mapping[str, str], body: bytes) -> Content:
        """The content of a request. Raises NotOurs."""
        try:
            sealed = json.loads(body)["bizContent"]
            signature = bytes.fromhex(headers.get("x-aob-signature", ""))
            present = {name: headers[name] for name in SIGNED_HEADERS if name in headers}
            text = _compact(present | {"bizContent": sealed})
        except (ValueError, KeyError, TypeError, RecursionError):
            raise NotOurs(400, BAD_FORMAT, "报文格式错误") from None
        if not self._keys.gateway.verify(text, signature):
            raise NotOurs(401, BAD_SIGNATURE, "验签失败")
        try:
            raw = bytes.fromhex(sealed)
            content: Content = json.loads(self._keys.shared.decrypt(raw[16:], raw[:16]))
            UUID(content["mesgId"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise NotOurs(400, BAD_FORMAT, "报文格式错误") from None
        return content

    def _seal(self, content: Content, asked: Mapping[str, str], forged: bool) -> tuple[bytes, dict[str, str]]:
        """(body, headers) of an answer: sealed and signed as requests are, with the request's interaction id."""
        iv = secrets.token_bytes(16)
        text = (iv + self._keys.shared.encrypt(_compact(content), iv)).hex().upper()
        headers = {name: asked[name] for name in ("x-aob-bankID", "x-aob-interaction-id") if name in asked}
        message = _compact(headers | {"bizContent": text}) + (b" " if forged else b"")
        headers["x-aob-signature"] = self._keys.own.sign(message).hex().upper()
        return _compact({"bizContent": text}), headers | {"Content-Type": "application/json; charset=utf-8"}

    def _serve(self, name: str, content: Content, decline: str) -> Content:
        """The content of the answer; what it did is in the book when this returns. Raises NotOurs."""
        service = {
            "checkacctname": self._check_account, "balance": self._balance, "singletrans": self._pay,
            "selsingletrans": self._payment_state, "batchtrans": self._batch, "selbatchtrans": self._batch_state,
            "reversal": self._reverse, "refund": self._refund, "lossnotice": self._loss,
            "sellossnotice": self._loss_state, "checkacct": self._check_file,
        }.get(name)  # fmt: skip
        if service is None:
            raise NotOurs(404, BAD_FORMAT, "无此服务")
        common = {"mesgId": content["mesgId"], "dealCode": OK, "dealMsg": "交易成功"}
        try:
            return common | service(content, decline)
        except Refused as refusal:
            return common | {"dealCode": refusal.code, "dealMsg": "交易失败"}
        except (ValueError, KeyError, TypeError, AttributeError):
            return common | {"dealCode": BAD_FORMAT, "dealMsg": "报文格式错误"}

    def _check_account(self, content: Content, decline: str) -> Content:
        _refuse(decline)
        self._ledger.check_owner(content["acctNo"], content["acctName"], content["idNo"])
        return {}

    def _balance(self, content: Content, decline: str) -> Content:
        _refuse(decline)
        balance = _yuan(self._ledger.balance_fen(content["acctNo"]))
        return {"balance": balance, "available": balance}

    def _pay(self, content: Content, decline: str) -> Content:
        kind = {"01": "transfer", "02": "purchase"}[content["tranType"]]
        payment = Payment(
            _reference(content["mesgId"]), kind, content["mesgDate"], content["payAcct"], content["rcvAcct"],
            _fen(content["tranAmt"]),
        )  # fmt: skip
        line = self._ledger.pay(payment, decline)
        if line.state == "declined":
            raise Refused(line.facts["code"])
        return _payment(line)

    def _payment_state(self, content: Content, decline: str) -> Content:
        _refuse(decline)
        return _payment(self._ledger.state(_reference(content["origMesgId"])))

    def _reverse(self, content: Content, decline: str) -> Content:
        reference, original = _reference(content["mesgId"]), _reference(content["origMesgId"])
        self._ledger.reverse(reference, original, content["mesgDate"], decline)
        return {"dealStatus": "1", "bankSeqNo": _sequence(reference)}

    def _refund(self, content: Content, decline: str) -> Content:
        line = self._ledger.refund(
            _reference(content["mesgId"]), _reference(content["origMesgId"]), _fen(content["tranAmt"]),
            content["mesgDate"], decline,
        )  # fmt: skip
        if line.state == "declined":
            raise Refused(line.facts["code"])
        return _payment(line)

    def _batch(self, content: Content, decline: str) -> Content:
        lines = [
            {"line": int(one["seqNo"]), "account": one["rcvAcct"], "amount_fen": _fen(one["tranAmt"])}
            for one in content["transList"]
        ]
        line = self._ledger.accept_batch(
            _reference(content["mesgId"]), content["batchNo"], content["payAcct"], _fen(content["sumAmt"]),
            int(content["totalCnt"]), lines, content["mesgDate"], decline,
        )  # fmt: skip
        if line.state == "declined":
            raise Refused(line.facts["code"])
        return _batch(line)

    def _batch_state(self, content: Content, decline: str) -> Content:
        _refuse(decline)
        return _batch(self._ledger.batch_state(_reference(content["origMesgId"]), content["batchNo"]))

    def _loss(self, content: Content, decline: str) -> Content:
        verb = content["operType"]
        if verb not in ("2", "3", "4"):
            raise ValueError
        line = self._ledger.notify_loss(
            _reference(content["mesgId"]), content["acctNo"], content["idNo"], verb, content["mesgDate"], decline
        )
        if line.state == "declined":
            raise Refused(line.facts["code"])
        return {"dealStatus": "1"}

    def _loss_state(self, content: Content, decline: str) -> Content:
        _refuse(decline)
        line = self._ledger.loss_state(_reference(content["origMesgId"]))
        return {"dealStatus": _STATUS[line.state], "failCode": line.facts["code"]}

    def _check_file(self, content: Content, decline: str) -> Content:
        _refuse(decline)
        return {"tranDate": content["tranDate"], "fileContent": self._ledger.check_file(content["tranDate"], _yuan)}


def _payment(line: BookLine) -> Content:
    failed = _REVERSED if line.state == "reversed" else line.facts["code"]
    return {
        "dealStatus": _STATUS[line.state], "tranAmt": _yuan(line.amount_fen), "failCode": failed,
        "bankSeqNo": _sequence(line.reference),
    }  # fmt: skip


def _batch(line: BookLine) -> Content:
    lines = [
        {"seqNo": one["line"], "dealStatus": _STATUS[one["state"]], "failCode": one["code"]}
        for one in line.facts.get("lines", ())
    ]
    totals = {"batchNo": line.facts["number"], "totalCnt": len(lines), "sumAmt": _yuan(line.amount_fen)}
    state = {"dealStatus": _STATUS[line.state], "failCode": line.facts["code"], "bankSeqNo": _sequence(line.reference)}
    return totals | state | {"transList": lines}


def _refuse(decline: str) -> None:
    if decline:
        raise Refused(decline)


def _compact(content: Content) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _reference(message_id: str) -> str:
    return str(UUID(message_id))


def _sequence(reference: str) -> str:
    """The bank's own number of a transaction."""
    return f"B{reference.replace('-', '')[-12:].upper()}"


def _yuan(fen: int) -> str:
    return f"{'-' if fen < 0 else ''}{abs(fen) // 100}.{abs(fen) % 100:02d}"


def _fen(yuan: str) -> int:
    """Raises ValueError."""
    whole, _, part = yuan.partition(".")
    if not (whole.isdecimal() and part.isdecimal() and len(part) == 2) or int(whole + part) == 0:
        raise ValueError
    return int(whole + part)


async def serve(port: int, control_port: int, book_file: Path, keys_folder: Path) -> None:
    """Until SIGTERM or SIGINT."""
    book, faults = Book(book_file), Faults()
    bank = OpenBank(open_keys(keys_folder), Ledger(book, OPENING_FEN), faults)
    await serve_until_told(bank.application(), port, control_application(faults, book), control_port)
    book.close()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--keys", type=Path, required=True)
    given = started(parser)
    asyncio.run(serve(given.port, given.control_port, given.book, given.keys))


if __name__ == "__main__":
    main()
