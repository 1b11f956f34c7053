"""SM2 by gmssl-fast (GmSSL in a wheel), where the system has no OpenSSL 3 with SM2.

It knows the default user id alone, holds the GIL for as long as it computes, and writes a line to stderr for what it
refuses: a fallback.
"""

from importlib.metadata import version

from gmssl_fast import SM2, GmsslError, GmsslValueError

from gateway.crypto.sm2_forms import DEFAULT_USER_ID

_REFUSALS = (GmsslError, GmsslValueError)  # neither is the other's parent


class GmsslFast:
    """The backend; about 0.5k verifications a second."""

    name = "gmssl-fast"
    frees_interpreter = False

    def __init__(self) -> None:
        self.version = version("gmssl-fast")

    def takes(self, user_id: bytes) -> bool:
        return user_id == DEFAULT_USER_ID

    def public(self, point: bytes) -> SM2:
        return _parsed(SM2(public_key=point.hex()))

    def private(self, secret: bytes, point: bytes) -> SM2:
        return _parsed(SM2(private_key=secret.hex(), public_key=point.hex()))

    def generate(self) -> tuple[bytes, bytes]:
        made = SM2.generate()
        assert made.private_key_hex is not None and made.public_key_hex is not None
        return bytes.fromhex(made.private_key_hex), bytes.fromhex(made.public_key_hex)

    def verify(self, key: SM2, user_id: bytes, message: bytes, raw: bytes) -> bool:
        try:
            return key.verify(message, raw)
        except _REFUSALS:
            return False

    def sign(self, key: SM2, user_id: bytes, message: bytes) -> bytes:
        return key.sign(message)

    def encrypt(self, key: SM2, plaintext: bytes) -> bytes:
        return key.encrypt(plaintext)

    def decrypt(self, key: SM2, raw: bytes) -> bytes | None:
        try:
            return key.decrypt(raw)
        except _REFUSALS:
            return None


def _parsed(key: SM2) -> SM2:
    """Parsed now, not at the first use. Raises ValueError."""
    try:
        key._key()
    except _REFUSALS:
        raise ValueError("not an SM2 key") from None
    return key
