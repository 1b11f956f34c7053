"""How SM2 keys, signatures and ciphertexts are written (GB/T 32918, GM/T 0009); everything read here is checked.

Inside, a point is 04‖X‖Y (65 bytes), a signature r‖s (64 bytes), a ciphertext X‖Y‖C3‖C2 (96 bytes and the plaintext's).
"""

from enum import StrEnum
from typing import NamedTuple

from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

# the curve of GB/T 32918.5
P = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFF
A = P - 3
B = 0x28E9FA9E9D9F5E344D5A9E4BCF6509A7F39789F515AB8F92DDBCBD414D940E93
N = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123

DEFAULT_USER_ID = b"1234567812345678"
USER_ID_MAX_BYTES = 128
PLAINTEXT_MAX_BYTES = 255
"""SM2 wraps keys; GmSSL's buffer holds no more, and both backends take the same."""


class SignatureForm(StrEnum):
    DER = "der"  # SEQUENCE {r, s}
    RAW = "raw"  # r‖s, 64 bytes


class CiphertextForm(StrEnum):
    C1C3C2_DER = "c1c3c2-der"  # SEQUENCE {X, Y, C3, C2} of GM/T 0009
    C1C3C2_RAW = "c1c3c2-raw"  # 04‖X‖Y‖C3‖C2
    C1C2C3_RAW = "c1c2c3-raw"  # 04‖X‖Y‖C2‖C3, the order before 2012


class Forms(NamedTuple):
    """The settings of a key: partners differ in them (domain.md §4.1)."""

    signature: SignatureForm = SignatureForm.DER
    ciphertext: CiphertextForm = CiphertextForm.C1C3C2_DER
    user_id: bytes = DEFAULT_USER_ID


STANDARD = Forms()


@asn1.sequence
class _Ciphertext:
    x: int
    y: int
    c3: bytes
    c2: bytes


def read_point(raw: bytes) -> bytes:
    """04‖X‖Y of 04‖X‖Y or a compressed point. Raises ValueError: not on the curve, infinity, a coordinate >= p."""
    if len(raw) == 65 and raw[0] == 4:
        x, y = int.from_bytes(raw[1:33], "big"), int.from_bytes(raw[33:], "big")
        if x >= P or y >= P or (y * y - _right_side(x)) % P:
            raise ValueError("not a point of the curve")
        return bytes(raw)
    if len(raw) == 33 and raw[0] in (2, 3):
        x = int.from_bytes(raw[1:], "big")
        square = _right_side(x)
        y = pow(square, (P + 1) // 4, P)  # p = 3 mod 4; no point of the curve has y = 0, its order is prime
        if x >= P or (y * y - square) % P:
            raise ValueError("not a point of the curve")
        return b"\x04" + raw[1:] + (y if y & 1 == raw[0] & 1 else P - y).to_bytes(32, "big")
    raise ValueError("a public key is 04‖X‖Y (65 bytes) or compressed (33)")


def read_signature(form: SignatureForm, signature: bytes) -> bytes:
    """r‖s. Raises ValueError: another form, DER that is not the shortest, r or s of 0 or >= n, r + s = n."""
    if form is SignatureForm.DER:
        r, s = decode_dss_signature(signature)
    elif len(signature) == 64:
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    else:
        raise ValueError("a signature is 64 bytes")
    if not (0 < r < N and 0 < s < N) or r + s == N:
        raise ValueError("r or s is out of range")
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def write_signature(form: SignatureForm, raw: bytes) -> bytes:
    return der_signature(raw) if form is SignatureForm.DER else raw


def der_signature(raw: bytes) -> bytes:
    return encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))


def read_ciphertext(form: CiphertextForm, ciphertext: bytes) -> bytes:
    """X‖Y‖C3‖C2. Raises ValueError: another form, a point off the curve, more or less than SM2 is used for."""
    if form is CiphertextForm.C1C3C2_DER:
        parts = asn1.decode_der(_Ciphertext, ciphertext)
        if not (0 <= parts.x < P and 0 <= parts.y < P) or len(parts.c3) != 32:
            raise ValueError("a part is out of range")
        point, rest = b"\x04" + parts.x.to_bytes(32, "big") + parts.y.to_bytes(32, "big"), parts.c3 + parts.c2
    else:
        point, rest = ciphertext[:65], ciphertext[65:]
        if form is CiphertextForm.C1C2C3_RAW:
            rest = rest[-32:] + rest[:-32]
    if len(point) != 65 or not 1 <= len(rest) - 32 <= PLAINTEXT_MAX_BYTES:
        raise ValueError("not of a length that SM2 ciphertexts have here")
    return read_point(point)[1:] + rest


def write_ciphertext(form: CiphertextForm, raw: bytes) -> bytes:
    x, y, c3, c2 = raw[:32], raw[32:64], raw[64:96], raw[96:]
    if form is CiphertextForm.C1C3C2_DER:
        return der_ciphertext(raw)
    return b"\x04" + x + y + (c3 + c2 if form is CiphertextForm.C1C3C2_RAW else c2 + c3)


def der_ciphertext(raw: bytes) -> bytes:
    x, y = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:64], "big")
    return asn1.encode_der(_Ciphertext(x=x, y=y, c3=raw[64:96], c2=raw[96:]))


def _right_side(x: int) -> int:
    return (x * x * x + A * x + B) % P
