"""What of the signed open-bank pattern's messages may be logged."""

import re
from typing import Any, Final

import msgspec

_DEPTH_MAX = 8


def _matches(pattern: str) -> Any:
    return re.compile(pattern, re.ASCII).fullmatch


_never: Final = _matches("(?!)")
_SHOWN: Final = (
    dict.fromkeys(("mesgId", "origMesgId"), _matches("[0-9a-f]{32}"))
    | dict.fromkeys(("mesgDate", "mesgTime", "tranDate"), _matches("[0-9]{8,9}"))
    | dict.fromkeys(("dealCode", "failCode", "dealStatus", "operType", "tranType"), _matches("[0-9A-Z]{1,8}"))
    | dict.fromkeys(("tranAmt", "sumAmt"), _matches(r"[0-9]{1,11}(\.[0-9]{2})?"))
    | dict.fromkeys(
        ("bizContent", "signature", "acctNo", "acctName", "idType", "idNo", "payAcct", "rcvAcct", "rcvName", "remark",
         "merchantNo", "terminalNo", "orderNo", "batchNo", "totalCnt", "transList", "seqNo", "balance", "available",
         "bankSeqNo", "fileContent", "dealMsg"), _never)
)  # fmt: skip


def redacted(wire: bytes) -> str:
    """JSON with its structure and the names that are known; of the values those that look as their name says.

    What is not known is masked, names too: a list of what to hide would miss what a bank adds.
    """
    try:
        value = msgspec.json.decode(wire)
        return msgspec.json.encode(_redacted(value, "", _DEPTH_MAX)).decode()
    except (msgspec.DecodeError, ValueError, RecursionError):
        return f"({len(wire)} bytes that are not JSON)"


def _redacted(value: Any, name: str, depth: int) -> Any:
    if isinstance(value, dict) and depth:
        masked = {key: _redacted(one, key, depth - 1) for key, one in value.items() if key in _SHOWN}
        return masked | ({"…": "***"} if len(masked) < len(value) else {})
    if isinstance(value, list) and depth:
        return [_redacted(one, name, depth - 1) for one in value[:3]] + [f"… {len(value)} in all"]
    return value if isinstance(value, str) and name in _SHOWN and _SHOWN[name](value) else "***"
