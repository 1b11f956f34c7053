"""SM2 by the system's OpenSSL 3 through ctypes: its EVP interface, no more than is needed.

The expensive call of each operation frees the GIL (CDLL); the cheap ones around it keep it (PyDLL), because a thread
that gives the GIL up may wait 5 ms for it while the event loop is busy.
"""

import ctypes
import secrets
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_long, c_size_t, c_void_p
from typing import Any

from gateway.crypto.sm2_forms import (
    CiphertextForm,
    N,
    SignatureForm,
    der_ciphertext,
    der_signature,
    read_ciphertext,
    read_signature,
)

_LIBRARY = "libcrypto.so.3"
# SubjectPublicKeyInfo and PKCS #8 of an SM2 key, up to the key's own bytes
_ALGORITHM = bytes.fromhex("301306072a8648ce3d020106082a811ccf5501822d")
_PUBLIC = bytes.fromhex("3059") + _ALGORITHM + bytes.fromhex("034200")
_PRIVATE = bytes.fromhex("308187020100") + _ALGORITHM + bytes.fromhex("046d306b0201010420")
_PRIVATE_POINT = bytes.fromhex("a144034200")
_PRIVATE_ALONE = bytes.fromhex("3041020100") + _ALGORITHM + bytes.fromhex("042730250201010420")
_DER_SPARE = 32
"""A DER ciphertext is at most so much longer than X‖Y‖C3‖C2."""

_KEPT: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ERR_clear_error": (None, ()),
    "OpenSSL_version": (c_char_p, (c_int,)),
    "EVP_MD_fetch": (c_void_p, (c_void_p, c_char_p, c_char_p)),
    "EVP_MD_CTX_new": (c_void_p, ()),
    "EVP_MD_CTX_free": (None, (c_void_p,)),
    "EVP_PKEY_free": (None, (c_void_p,)),
    "EVP_PKEY_is_a": (c_int, (c_void_p, c_char_p)),
    "EVP_PKEY_CTX_new_from_pkey": (c_void_p, (c_void_p, c_void_p, c_char_p)),
    "EVP_PKEY_CTX_free": (None, (c_void_p,)),
    "EVP_PKEY_CTX_set1_id": (c_int, (c_void_p, c_char_p, c_int)),
    "EVP_PKEY_get_octet_string_param": (c_int, (c_void_p, c_char_p, c_char_p, c_size_t, POINTER(c_size_t))),
    "EVP_PKEY_encrypt_init": (c_int, (c_void_p,)),
    "EVP_PKEY_decrypt_init": (c_int, (c_void_p,)),
    "EVP_DigestSignInit": (c_int, (c_void_p, POINTER(c_void_p), c_void_p, c_void_p, c_void_p)),
    "EVP_DigestVerifyInit": (c_int, (c_void_p, POINTER(c_void_p), c_void_p, c_void_p, c_void_p)),
    "d2i_PUBKEY": (c_void_p, (c_void_p, POINTER(c_char_p), c_long)),
    "d2i_AutoPrivateKey": (c_void_p, (c_void_p, POINTER(c_char_p), c_long)),
}
_FREEING: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "EVP_DigestSign": (c_int, (c_void_p, c_char_p, POINTER(c_size_t), c_char_p, c_size_t)),
    "EVP_DigestVerify": (c_int, (c_void_p, c_char_p, c_size_t, c_char_p, c_size_t)),
    "EVP_PKEY_encrypt": (c_int, (c_void_p, c_char_p, POINTER(c_size_t), c_char_p, c_size_t)),
    "EVP_PKEY_decrypt": (c_int, (c_void_p, c_char_p, POINTER(c_size_t), c_char_p, c_size_t)),
}


class LibCryptoError(Exception):
    """A call that cannot fail on sound arguments did: no SM2 in this library, or no memory."""


class _Key:
    """An EVP_PKEY, freed with its object; read-only, so that threads may share it."""

    def __init__(self, functions: dict[str, Any], pointer: int) -> None:
        self.pointer = pointer
        # not at exit: the process's memory goes anyway, and a thread may still verify
        weakref.finalize(self, functions["EVP_PKEY_free"], pointer).atexit = False


class LibCrypto:
    """The backend. Raises OSError without the library, AttributeError or LibCryptoError if it lacks what we need."""

    name = "libcrypto"
    frees_interpreter = True

    def __init__(self, library: str = _LIBRARY) -> None:
        self._call: dict[str, Any] = {}
        for loaded, wanted in ((ctypes.PyDLL(library), _KEPT), (ctypes.CDLL(library), _FREEING)):
            for name, (result, arguments) in wanted.items():
                function = getattr(loaded, name)
                function.restype, function.argtypes = result, arguments
                self._call[name] = function
        self.version = self._call["OpenSSL_version"](0).decode()
        self._sm3 = self._call["EVP_MD_fetch"](None, b"SM3", None)  # for the life of the process
        if not self._sm3:
            self._call["ERR_clear_error"]()
            raise LibCryptoError(f"{self.version} has no SM3")

    def takes(self, user_id: bytes) -> bool:
        return True

    def public(self, point: bytes) -> _Key:
        return self._key("d2i_PUBKEY", _PUBLIC + point)

    def private(self, secret: bytes, point: bytes) -> _Key:
        return self._key("d2i_AutoPrivateKey", _PRIVATE + secret + _PRIVATE_POINT + point)

    def generate(self) -> tuple[bytes, bytes]:
        """(private key, 32 bytes; public point)."""
        secret = (1 + secrets.randbelow(N - 2)).to_bytes(32, "big")
        key = self._key("d2i_AutoPrivateKey", _PRIVATE_ALONE + secret)  # OpenSSL works out the point
        point, length = ctypes.create_string_buffer(65), c_size_t()
        self._must(
            "EVP_PKEY_get_octet_string_param",
            self._call["EVP_PKEY_get_octet_string_param"](key.pointer, b"pub", point, 65, byref(length)) == 1,
        )
        return secret, point.raw[: length.value]

    def verify(self, key: _Key, user_id: bytes, message: bytes, raw: bytes) -> bool:
        signature = der_signature(raw)
        with self._digest("EVP_DigestVerifyInit", key, user_id) as context:
            good: bool = self._call["EVP_DigestVerify"](context, signature, len(signature), message, len(message)) == 1
        if not good:
            self._call["ERR_clear_error"]()  # the queue is the thread's: Python's ssl module would read it
        return good

    def sign(self, key: _Key, user_id: bytes, message: bytes) -> bytes:
        signature, length = ctypes.create_string_buffer(80), c_size_t(80)
        with self._digest("EVP_DigestSignInit", key, user_id) as context:
            self._must(
                "EVP_DigestSign",
                self._call["EVP_DigestSign"](context, signature, byref(length), message, len(message)) == 1,
            )
        return read_signature(SignatureForm.DER, signature.raw[: length.value])

    def encrypt(self, key: _Key, plaintext: bytes) -> bytes:
        sealed = self._crypt("encrypt", key, plaintext, 96 + len(plaintext) + _DER_SPARE)
        if sealed is None:
            raise LibCryptoError("EVP_PKEY_encrypt")
        return read_ciphertext(CiphertextForm.C1C3C2_DER, sealed)

    def decrypt(self, key: _Key, raw: bytes) -> bytes | None:
        der = der_ciphertext(raw)
        return self._crypt("decrypt", key, der, len(der))

    def _crypt(self, what: str, key: _Key, text: bytes, room: int) -> bytes | None:
        context = self._call["EVP_PKEY_CTX_new_from_pkey"](None, key.pointer, None)
        self._must("EVP_PKEY_CTX_new_from_pkey", context)
        try:
            self._must(what, self._call[f"EVP_PKEY_{what}_init"](context) == 1)
            out, length = ctypes.create_string_buffer(room), c_size_t(room)
            if self._call[f"EVP_PKEY_{what}"](context, out, byref(length), text, len(text)) != 1:
                self._call["ERR_clear_error"]()
                return None
            return out.raw[: length.value]
        finally:
            self._call["EVP_PKEY_CTX_free"](context)

    @contextmanager
    def _digest(self, start: str, key: _Key, user_id: bytes) -> Iterator[int]:
        """A context that signs or verifies over SM3(Z ‖ message), Z being of this user id and the key."""
        context: int = self._call["EVP_MD_CTX_new"]()
        self._must("EVP_MD_CTX_new", context)
        try:
            inner = c_void_p()
            self._must(start, self._call[start](context, byref(inner), self._sm3, None, key.pointer) == 1)
            set_id = self._call["EVP_PKEY_CTX_set1_id"](inner, user_id, len(user_id))
            self._must("EVP_PKEY_CTX_set1_id", set_id == 1)
            yield context
        finally:
            self._call["EVP_MD_CTX_free"](context)

    def _key(self, parse: str, der: bytes) -> _Key:
        pointer = self._call[parse](None, byref(c_char_p(der)), len(der))
        self._call["ERR_clear_error"]()  # of the decoders that it tried
        self._must(parse, pointer)
        key = _Key(self._call, pointer)
        self._must("EVP_PKEY_is_a", self._call["EVP_PKEY_is_a"](pointer, b"SM2") == 1)
        return key

    def _must(self, what: str, result: object) -> None:
        if not result:
            self._call["ERR_clear_error"]()
            raise LibCryptoError(what)
