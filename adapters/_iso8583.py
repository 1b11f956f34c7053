"""The ISO 8583 wire kit: fields as data, packed and read by pyiso8583. Numbers in ASCII, or in BCD (银联 POS)."""

import re
from collections.abc import Mapping
from typing import Any, Final, Literal

import iso8583

Numbers = Literal["ascii", "bcd"]
Fields = dict[str, str]
"""By field number as text; `t` is the message type. Binary fields are upper-case hex."""

FIELDS: Final[Mapping[str, str]] = {
    "2": "n..19", "3": "n6", "4": "n12", "7": "n10", "11": "n6", "12": "n6", "13": "n4", "14": "n4", "15": "n4",
    "22": "n3", "23": "n3", "25": "n2", "26": "n2", "32": "n..11", "33": "n..11", "35": "z..37", "36": "z...104",
    "37": "an12", "38": "an6", "39": "an2", "41": "an8", "42": "an15", "43": "an40", "44": "an..25", "48": "an...322",
    "49": "an3", "52": "b8", "53": "n16", "54": "an...240", "55": "b...255", "57": "an...999", "58": "an...999",
    "59": "an...600", "60": "n...17", "61": "n...29", "62": "an...512", "63": "an...163", "64": "b8", "66": "n1",
    "70": "n3", "90": "n42", "100": "n..11", "128": "b8",
}  # fmt: skip
"""`n` digits, `z` track data, `an` text, `b` bytes; dots: the digits of a length that goes before (银联 POS, F1 to F64;
ISO 8583:1987 above). A message with any other field is unreadable."""


class Unreadable(Exception):
    """Not a message of this dialect, or not packed as FIELDS says. Holds nothing of the message."""


class Unpackable(Exception):
    """A value does not fit its field. The text names the field, never the value."""


class Codec:
    """Packs and reads messages. Without state."""

    def __init__(self, numbers: Numbers) -> None:
        self._packed = numbers == "bcd"
        bitmap = {"data_enc": "b", "len_enc": "ascii", "len_type": 0, "max_len": 8}
        self._spec: dict[str, Any] = {
            "h": {"data_enc": "ascii", "len_enc": "ascii", "len_type": 0, "max_len": 0},
            "t": _field_spec("n4", numbers),
            "p": bitmap,
            "1": bitmap,
        } | {number: _field_spec(form, numbers) for number, form in FIELDS.items()}

    def pack(self, fields: Mapping[str, str]) -> bytes:
        """Raises Unpackable."""
        for number, value in fields.items():
            if number != "t" and not _fits(FIELDS[number], value):
                raise Unpackable(f"F{number} does not fit")
        try:
            packed, _ = iso8583.encode(dict(fields), self._spec)
        except iso8583.EncodeError as error:
            raise Unpackable(f"F{error.field} does not fit") from None
        return bytes(packed)

    def read(self, message: bytes) -> Fields:
        """Raises Unreadable."""
        try:
            fields, _ = iso8583.decode(message, self._spec)
        except (iso8583.DecodeError, KeyError):
            raise Unreadable from None
        return fields

    def message_type(self, message: bytes) -> str:
        """Four digits, if it is a message; without reading the rest."""
        return message[:2].hex() if self._packed else message[:4].decode("latin-1")


def _field_spec(form: str, numbers: Numbers) -> dict[str, Any]:
    kind, dots, longest = _parts(form)
    packed = numbers == "bcd"
    length = {"len_enc": "bcd", "len_type": (dots + 1) // 2} if packed else {"len_enc": "ascii", "len_type": dots}
    if kind == "b" or kind == "an" or not packed:
        # latin-1: what the partner writes in its free texts (GBK) is carried, not understood
        return {"data_enc": "b" if kind == "b" else "latin-1", "max_len": longest} | length
    return {"data_enc": "b", "len_count": "nibbles", "right_pad": "0", "max_len": longest} | length


def _fits(form: str, value: str) -> bool:
    kind, dots, longest = _parts(form)
    length = len(value) // 2 if kind == "b" else len(value)
    text = r"[0-9]+" if kind == "n" else r"[0-9A-F]+" if kind == "b" else r"[0-9=D]+" if kind == "z" else r"[ -~]+"
    return (length <= longest if dots else length == longest) and re.fullmatch(text, value) is not None


def _parts(form: str) -> tuple[str, int, int]:
    """`n..19` -> n, 2, 19"""
    kind = form.rstrip("0123456789.")
    rest = form[len(kind) :]
    return kind, rest.count("."), int(rest.lstrip("."))
