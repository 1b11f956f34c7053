"""Banks of the signed open-bank pattern (domain.md §4.1, 温州银行 [S]); the envelope is in _signed_envelope.py.

Established: the envelope, mesgId / mesgDate / mesgTime, dealCode / dealMsg, dealStatus 0/1/2, and of a batch batchNo,
sumAmt, totalCnt, transList. The other field names are proposals [G]; paths, codes and forms are settings.
"""

import datetime as dt
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec

from adapters._amounts import Amounts
from adapters._signed_envelope import ENCRYPT, PARTNER, SIGN, Envelope, Unreadable, open_reply, seal
from adapters._signed_redaction import redacted
from gateway.domain.operations import (
    AccountCheck,
    Balance,
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
from gateway.domain.outcome import Approved, DeclineCode, Declined, Outcome, Pending, Unknown
from gateway.domain.times import CHINA
from gateway.partners.contract import CallContext, CannotBuild, HttpReply, HttpRequest, Transport, WireReply

_IDENTITY_CARD: Final = "01"  # AAC058 (domain.md §1.3)
_LOSS_VERBS: Final = {"temporary": "2", "formal": "3"}  # 服务动词 2临时挂失 3正式挂失 4解挂 (domain.md §1.4)
_RELEASE_VERB: Final = "4"

Path = Annotated[str, msgspec.Meta(pattern=r"^(/[A-Za-z0-9._-]{1,40}){0,8}\Z")]
Code = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z_-]{1,10}\Z")]
Text = Annotated[str, msgspec.Meta(max_length=64)]
Account = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{8,32}\Z")]
State = Literal["pending", "done", "failed", "reversed"]


class Paths(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`/V1/P015xx/S01/name` [S]; the numbers are placeholders [G]. Empty: this bank has no such service."""

    account_check: Path = "/V1/P01501/S01/checkacctname"
    balance: Path = "/V1/P01502/S01/balance"
    transfer: Path = "/V1/P01503/S01/singletrans"
    transfer_query: Path = "/V1/P01504/S01/selsingletrans"
    batch: Path = "/V1/P01505/S01/batchtrans"
    batch_query: Path = "/V1/P01506/S01/selbatchtrans"
    reversal: Path = "/V1/P01507/S01/reversal"
    refund: Path = "/V1/P01508/S01/refund"
    loss: Path = "/V1/P01509/S01/lossnotice"
    loss_query: Path = "/V1/P01510/S01/sellossnotice"
    check_file: Path = "/V1/P01511/S01/checkacct"


class Merchant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a merchant's purchases are paid to."""

    account: Account
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=60)]


_DECLINES: Final = {
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
"""[G]. A code for "seen before" does not belong here: what was seen before may have been done."""

_DEAL_STATUSES: Final[dict[Code, State]] = {"0": "pending", "1": "done", "2": "failed"}
_FILE_STATES: Final[dict[Code, State]] = {**_DEAL_STATUSES, "3": "reversed"}


class BankSettings(Envelope, frozen=True, kw_only=True, forbid_unknown_fields=True):
    paths: Paths = Paths()
    amounts: Amounts = Amounts.YUAN
    merchants: Mapping[str, Merchant] = {}
    """By merchant_id; a purchase at another cannot be built."""
    success_code: Code = "000000"
    declines: Mapping[Code, DeclineCode] = msgspec.field(default_factory=lambda: dict(_DECLINES))
    """dealCode -> why; a code that is neither here nor success_code is Unknown."""
    deal_statuses: Mapping[Code, State] = msgspec.field(default_factory=lambda: dict(_DEAL_STATUSES))
    """Of a transfer and its query: that there are 0/1/2 is established, which is which is not."""
    file_states: Mapping[Code, State] = msgspec.field(default_factory=lambda: dict(_FILE_STATES))
    absent_after_s: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 120
    """A query's or reversal's "not found" is believed so long after the original: until then that may be on its way."""
    batch_lines_max: Annotated[int, msgspec.Meta(ge=1, le=5000)] = 1000
    """An answer takes about 150 bytes a line of the block's body_max_bytes."""


class _Answer(msgspec.Struct, rename="camel"):
    mesg_id: Text
    deal_code: Code


class _Done(_Answer):
    """Of a transfer, purchase, refund, reversal, loss notice, and the queries of them."""

    deal_status: Code
    tran_amt: Text = ""
    fail_code: Text = ""
    bank_seq_no: Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z-]{0,40}\Z")] = ""


class _Funds(_Answer):
    balance: Text
    available: Text


class _Line(msgspec.Struct, rename="camel"):
    seq_no: int
    deal_status: Code
    fail_code: Text = ""


class _Batch(_Done):
    batch_no: Text = ""
    trans_list: list[_Line] = []


class _File(_Answer):
    tran_date: Text
    file_content: str


class Adapter:
    """See the file's docstring."""

    TRANSPORT: ClassVar = Transport.HTTP
    OPERATIONS: ClassVar[frozenset[type[Operation]]] = frozenset(
        {AccountCheck, Balance, Transfer, BatchTransfer, Purchase, Reverse, Refund, NotifyLoss, CheckFile, QueryStatus}
    )
    offered = OPERATIONS
    KEYS: ClassVar = frozenset({SIGN, ENCRYPT, PARTNER})
    Settings: ClassVar[type[msgspec.Struct]] = BankSettings

    def __init__(self, settings: BankSettings) -> None:
        """Raises ValueError."""
        if settings.success_code in settings.declines:
            raise ValueError("declines: has success_code")
        self._settings = settings
        self._amounts = settings.amounts

    def build(self, op: Operation, ctx: CallContext) -> HttpRequest:
        path, fields = self._content(op)
        if not path:
            raise CannotBuild("this bank has no such service")
        message_id = _message_id(op, ctx)
        # the same message in every retry; a question has no retries, each is a new one
        at = (ctx.now if isinstance(op, QueryStatus) else op.at).astimezone(CHINA)
        content = {"mesgId": message_id, "mesgDate": f"{at:%Y%m%d}", "mesgTime": f"{at:%H%M%S%f}"[:9], **fields}
        return seal(self._settings, path, content, message_id, ctx)

    def parse(self, op: Operation, ctx: CallContext, reply: WireReply) -> Outcome:
        try:
            if not isinstance(reply, HttpReply):
                raise Unreadable("not an HTTP answer")
            return self._outcome(op, ctx, open_reply(self._settings, ctx, reply))
        except Unreadable as why:
            return Unknown(str(why))
        except (msgspec.DecodeError, ValueError, LookupError, RecursionError):
            return Unknown("a field of the answer is missing or malformed")

    def query_for(self, op: Operation) -> QueryStatus | None:
        """None for what changes nothing, and for a reversal: it is sent again instead."""
        paths = self._settings.paths
        has = {
            Transfer: paths.transfer_query,
            Purchase: paths.transfer_query,
            Refund: paths.transfer_query,
            BatchTransfer: paths.batch_query,
            NotifyLoss: paths.loss_query,
        }
        return QueryStatus(reference=op.reference, at=op.at, original=op) if has.get(type(op)) else None

    def redact(self, wire: bytes) -> str:
        return redacted(wire)

    def _content(self, op: Operation) -> tuple[str, dict[str, Any]]:
        """(path, the content's own fields). Raises CannotBuild."""
        paths = self._settings.paths
        match op:
            case AccountCheck():
                person = {"acctName": op.name.reveal(), "idType": _IDENTITY_CARD, "idNo": op.id_number.reveal()}
                return paths.account_check, {"acctNo": op.account.reveal()} | person
            case Balance():
                return paths.balance, {"acctNo": op.account.reveal()}
            case Transfer():
                return paths.transfer, self._transfer(op)
            case Purchase():
                return paths.transfer, self._purchase(op)
            case BatchTransfer():
                return paths.batch, self._batch(op)
            case Reverse():
                original = op.original
                fields = {"origMesgId": original.reference.hex, "tranAmt": self._amounts.text(original.amount_fen)}
                return paths.reversal, fields
            case Refund():
                if op.amount_fen > op.original.amount_fen:
                    raise CannotBuild("a refund is at most the purchase")
                fields = {"origMesgId": op.original.reference.hex, "tranAmt": self._amounts.text(op.amount_fen)}
                return paths.refund, fields
            case NotifyLoss():
                verb = _RELEASE_VERB if op.release else _LOSS_VERBS[op.kind]
                return paths.loss, {"acctNo": op.account.reveal(), "idNo": op.id_number.reveal(), "operType": verb}
            case CheckFile():
                return paths.check_file, {"tranDate": f"{op.day:%Y%m%d}"}
            case QueryStatus():
                return self._query(op.original)
        raise CannotBuild("not an operation of this dialect")

    def _transfer(self, op: Transfer) -> dict[str, Any]:
        return {
            "tranType": "01",
            "payAcct": op.from_account.reveal(),
            "rcvAcct": op.to_account.reveal(),
            "rcvName": op.to_name.reveal(),
            "tranAmt": self._amounts.text(op.amount_fen),
            "remark": op.purpose,
        }

    def _purchase(self, op: Purchase) -> dict[str, Any]:
        """A transfer to the merchant's account; our reference makes its repetitions one."""
        merchant = self._settings.merchants.get(op.merchant_id)
        if merchant is None:
            raise CannotBuild("the merchant has no account in this partner's block")
        return {
            "tranType": "02",
            "payAcct": op.account.reveal(),
            "rcvAcct": merchant.account,
            "rcvName": merchant.name,
            "tranAmt": self._amounts.text(op.amount_fen),
            "merchantNo": op.merchant_id,
            "terminalNo": op.terminal_id,
            "orderNo": op.order_id,
        }

    def _batch(self, op: BatchTransfer) -> dict[str, Any]:
        lines = op.lines
        if not 1 <= len(lines) <= self._settings.batch_lines_max:
            raise CannotBuild(f"a batch has 1 to {self._settings.batch_lines_max} lines")
        if len({line.line for line in lines}) < len(lines) or sum(line.amount_fen for line in lines) != op.total_fen:
            raise CannotBuild("the lines are not each numbered once, or do not sum to the total")
        return {
            "batchNo": op.batch_no,
            "payAcct": op.from_account.reveal(),
            "sumAmt": self._amounts.text(op.total_fen),
            "totalCnt": len(lines),
            "transList": [
                {
                    "seqNo": line.line,
                    "rcvAcct": line.to_account.reveal(),
                    "rcvName": line.to_name.reveal(),
                    "tranAmt": self._amounts.text(line.amount_fen),
                }
                for line in lines
            ],
        }

    def _query(self, original: Operation) -> tuple[str, dict[str, Any]]:
        paths, fields = self._settings.paths, {"origMesgId": original.reference.hex}
        if isinstance(original, BatchTransfer):
            return paths.batch_query, fields | {"batchNo": original.batch_no}
        if isinstance(original, NotifyLoss):
            return paths.loss_query, fields
        if isinstance(original, Transfer | Purchase | Refund):
            return paths.transfer_query, fields
        raise CannotBuild("the bank keeps no state of such an operation")

    def _outcome(self, op: Operation, ctx: CallContext, content: bytes) -> Outcome:
        """Raises Unreadable, msgspec.DecodeError, ValueError, LookupError."""
        answer = msgspec.json.decode(content, type=_Answer)
        if answer.mesg_id != _message_id(op, ctx):
            raise Unreadable("the answer to another message")
        if answer.deal_code != self._settings.success_code:
            return self._refusal(op, ctx, answer.deal_code)
        match op:
            case AccountCheck():
                return Approved()
            case Balance():
                funds = msgspec.json.decode(content, type=_Funds)
                return Approved(
                    facts={
                        "balance_fen": self._amounts.fen(funds.balance),
                        "available_fen": self._amounts.fen(funds.available),
                    }
                )
            case CheckFile():
                return self._day(op, msgspec.json.decode(content, type=_File))
        asked = op.original if isinstance(op, QueryStatus) else op
        if isinstance(asked, BatchTransfer):
            return self._batch_state(asked, msgspec.json.decode(content, type=_Batch))
        return self._state(asked, msgspec.json.decode(content, type=_Done))

    def _refusal(self, op: Operation, ctx: CallContext, code: str) -> Outcome:
        decline = self._settings.declines.get(code)
        if decline is None:
            return Unknown(f"dealCode {code} is not in the table")
        if decline is DeclineCode.NOT_FOUND and isinstance(op, QueryStatus | Reverse):
            young = ctx.now - op.original.at < dt.timedelta(seconds=self._settings.absent_after_s)
            return Pending() if young else Declined(decline)  # it may be on its way: the bank did well to say so
        if isinstance(op, QueryStatus):
            return Unknown(f"dealCode {code}: the question is refused, which says nothing of what was asked after")
        return Declined(decline)

    def _state(self, asked: Operation, done: _Done) -> Outcome:
        amount = asked.original.amount_fen if isinstance(asked, Reverse) else getattr(asked, "amount_fen", None)
        if done.tran_amt and self._amounts.fen(done.tran_amt) != amount:
            raise Unreadable("the bank has another amount for this reference")
        match self._settings.deal_statuses.get(done.deal_status):
            case "done":
                return Approved(done.bank_seq_no)
            case "pending":
                return Pending()
            case "failed":
                return Declined(self._why(done.fail_code))
        return Unknown("dealStatus is not in the table")

    def _batch_state(self, asked: BatchTransfer, batch: _Batch) -> Outcome:
        """Approved when every line has its end, good or bad: facts `paid_count`, `paid_fen`, `lines`."""
        state = self._settings.deal_statuses.get(batch.deal_status)
        if state != "done":
            return self._state(asked, batch)
        amounts = {line.line: line.amount_fen for line in asked.lines}
        if batch.batch_no != asked.batch_no or sorted(line.seq_no for line in batch.trans_list) != sorted(amounts):
            raise Unreadable("not the lines of this batch")
        lines: list[Any] = []
        paid = [0, 0]
        for line in batch.trans_list:
            match self._settings.deal_statuses.get(line.deal_status):
                case "done":
                    paid = [paid[0] + 1, paid[1] + amounts[line.seq_no]]
                    lines.append({"line": line.seq_no, "state": "approved", "code": ""})
                case "failed":
                    lines.append({"line": line.seq_no, "state": "declined", "code": self._why(line.fail_code).value})
                case "pending":
                    return Pending()
                case _:
                    return Unknown("dealStatus of a line is not in the table")
        return Approved(batch.bank_seq_no, {"paid_count": paid[0], "paid_fen": paid[1], "lines": lines})

    def _why(self, code: str) -> DeclineCode:
        """Of what the bank says failed: that it did is clear, though its code may not be."""
        return self._settings.declines.get(code, DeclineCode.PARTNER_FAILURE)

    def _day(self, op: CheckFile, file: _File) -> Outcome:
        """`count|sum`, then `reference|amount|state` each [G]; a file whose totals do not fit is held whole."""
        if file.tran_date != f"{op.day:%Y%m%d}":
            raise Unreadable("the file of another day")
        header, *texts = file.file_content.removesuffix("\n").split("\n")
        count, total = header.split("|")
        lines: list[Any] = []
        for text in texts:
            reference, amount, code = text.split("|")
            if not re.fullmatch("[0-9A-Za-z-]{1,64}", reference):
                raise ValueError
            lines.append({
                "reference": _canonical(reference), "amount_fen": self._amounts.fen(amount),
                "state": _FILE_WORDS[self._settings.file_states[code]],
            })  # fmt: skip
        if int(count) != len(lines) or self._amounts.fen(total) != sum(line["amount_fen"] for line in lines):
            raise Unreadable("the file's totals are not those of its lines")
        return Approved(facts={"count": len(lines), "total_fen": self._amounts.fen(total), "lines": lines})


_FILE_WORDS: Final = {"pending": "pending", "done": "approved", "failed": "declined", "reversed": "reversed"}


def _message_id(op: Operation, ctx: CallContext) -> str:
    """Our reference; a question is asked many times about one reference, so it takes the try's own number."""
    return ctx.nonce.hex() if isinstance(op, QueryStatus) else op.reference.hex


def _canonical(reference: str) -> str:
    """Ours as a UUID is written; another's as it is."""
    ours = re.fullmatch("([0-9a-f]{8})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{12})", reference.lower())
    return "-".join(ours.groups()) if ours else reference
