"""SM2 with SM3 (GB/T 32918): signatures and the wrapping of keys, by OpenSSL or, where it has none, by gmssl-fast.

Every operation takes 0.4 to 2 ms: off the event loop with it (lane.py).
"""

from functools import cache
from typing import Any, NamedTuple, Protocol

from gateway.crypto.sm2_forms import (
    DEFAULT_USER_ID,
    PLAINTEXT_MAX_BYTES,
    STANDARD,
    USER_ID_MAX_BYTES,
    Forms,
    N,
    read_ciphertext,
    read_point,
    read_signature,
    write_ciphertext,
    write_signature,
)
from gateway.crypto.sm2_gmssl import GmsslFast
from gateway.crypto.sm2_libcrypto import LibCrypto, LibCryptoError


class Backend(Protocol):
    """A library that computes; points, signatures and ciphertexts come to it checked, in the forms of sm2_forms.py."""

    name: str
    version: str
    frees_interpreter: bool
    """Whether other threads run while it computes."""

    def takes(self, user_id: bytes) -> bool: ...
    def public(self, point: bytes) -> Any: ...
    def private(self, secret: bytes, point: bytes) -> Any: ...
    def generate(self) -> tuple[bytes, bytes]: ...
    def verify(self, key: Any, user_id: bytes, message: bytes, raw: bytes) -> bool: ...
    def sign(self, key: Any, user_id: bytes, message: bytes) -> bytes: ...
    def encrypt(self, key: Any, plaintext: bytes) -> bytes: ...
    def decrypt(self, key: Any, raw: bytes) -> bytes | None: ...


class Chosen(NamedTuple):
    """The backend of this process, and why it is not OpenSSL if it is not."""

    backend: Backend
    reason: str

    def __str__(self) -> str:
        chosen = f"{self.backend.name} ({self.backend.version})"
        return f"{chosen}: slower, for {self.reason}" if self.reason else chosen


class DoesNotDecrypt(Exception):
    """A ciphertext is malformed, of another form, altered, or for another key."""


class PublicKey:
    """A public key, parsed once; any thread may use it."""

    def __init__(self, public: bytes, forms: Forms = STANDARD, backend: Backend | None = None) -> None:
        """`public` is 04‖X‖Y or compressed. Raises ValueError: off the curve, or settings that the backend lacks."""
        self._backend = backend or chosen().backend
        if not 1 <= len(forms.user_id) <= USER_ID_MAX_BYTES:
            raise ValueError(f"a user id has 1 to {USER_ID_MAX_BYTES} bytes")
        if not self._backend.takes(forms.user_id):
            raise ValueError(f"{self._backend.name} knows the default user id alone: install OpenSSL 3")
        self.forms = forms
        self.point = read_point(public)
        self._key = self._backend.public(self.point)

    def verify(self, message: bytes, signature: bytes) -> bool:
        """False for anything but a good signature in this key's form."""
        try:
            raw = read_signature(self.forms.signature, signature)
        except ValueError:
            return False
        return self._backend.verify(self._key, self.forms.user_id, message, raw)

    def encrypt(self, plaintext: bytes) -> bytes:
        """Raises ValueError for nothing or more than PLAINTEXT_MAX_BYTES."""
        if not 1 <= len(plaintext) <= PLAINTEXT_MAX_BYTES:
            raise ValueError(f"SM2 encrypts 1 to {PLAINTEXT_MAX_BYTES} bytes")
        return write_ciphertext(self.forms.ciphertext, self._backend.encrypt(self._key, plaintext))


class PrivateKey:
    """A private key with its public one, parsed once; any thread may use it."""

    def __init__(
        self,
        secret: bytes,
        public: bytes,
        forms: Forms = STANDARD,
        backend: Backend | None = None,
    ) -> None:
        """`secret` is 32 bytes. Raises ValueError: out of range, or not the private key of `public`."""
        self.public = PublicKey(public, forms, backend)
        self.forms = forms
        self._backend = self.public._backend
        if len(secret) != 32 or not 1 <= int.from_bytes(secret, "big") <= N - 2:
            raise ValueError("a private key is 32 bytes, from 1 to n - 2")
        self._key = self._backend.private(secret, self.public.point)
        if not self.public.verify(b"", self.sign(b"")):
            raise ValueError("the private key is not that of the public key")

    def sign(self, message: bytes) -> bytes:
        return write_signature(self.forms.signature, self._backend.sign(self._key, self.forms.user_id, message))

    def decrypt(self, ciphertext: bytes) -> bytes:
        """Raises DoesNotDecrypt."""
        try:
            raw = read_ciphertext(self.forms.ciphertext, ciphertext)
        except ValueError as error:
            raise DoesNotDecrypt(str(error)) from None
        plaintext = self._backend.decrypt(self._key, raw)
        if plaintext is None:
            raise DoesNotDecrypt("altered, or for another key")
        return plaintext


def generate(backend: Backend | None = None) -> tuple[bytes, bytes]:
    """A new (private key, 32 bytes; public key, 04‖X‖Y)."""
    return (backend or chosen().backend).generate()


@cache
def chosen() -> Chosen:
    """OpenSSL if the system has one that does SM2 right, else gmssl-fast; tried once, at the first use."""
    try:
        backend = LibCrypto()
        if works(backend):
            return Chosen(backend, "")
        reason = f"{backend.version} fails the standard's example"
    except (OSError, AttributeError, LibCryptoError) as error:
        reason = f"no OpenSSL 3 with SM2 here: {error}"
    return Chosen(GmsslFast(), reason)


# the examples of GB/T 32918.5
_SECRET = bytes.fromhex("3945208f7b2144b13f36e38ac6d39f95889393692860b51a42fb81ef4df7c5b8")
_POINT = bytes.fromhex(
    "0409f9df311e5421a150dd7d161e4bc5c672179fad1833fc076bb08ff356f35020"
    "ccea490ce26775a52dc6ea718cc1aa600aed05fbf35e084a6632f6072da9ad13"
)
_SIGNATURE = bytes.fromhex(
    "f5a03b0648d2c4630eeac513e1bb81a15944da3827d5b74143ac7eaceee720b3"
    "b1b6aa29df212fd8763182bc0d421ca1bb9038fd1f7f42d4840b69c485bbc1aa"
)
_CIPHERTEXT = bytes.fromhex(
    "04ebfc718e8d1798620432268e77feb6415e2ede0e073c0f4f640ecd2e149a73"
    "e858f9d81e5430a57b36daab8f950a3c64e6ee6a63094d99283aff767e124df0"
    "59983c18f809e262923c53aec295d30383b54e39d609d160afcb1908d0bd8766"
    "21886ca989ca9c7d58087307ca93092d651efa"
)


def works(backend: Backend) -> bool:
    """Whether the standard's signature and ciphertext are taken, and an altered one is not."""
    public, private = backend.public(_POINT), backend.private(_SECRET, _POINT)
    return (
        backend.verify(public, DEFAULT_USER_ID, b"message digest", _SIGNATURE)
        and not backend.verify(public, DEFAULT_USER_ID, b"message digesT", _SIGNATURE)
        and backend.decrypt(private, _CIPHERTEXT) == b"encryption standard"
        and backend.decrypt(private, _CIPHERTEXT[:-1] + b"\0") is None
    )
