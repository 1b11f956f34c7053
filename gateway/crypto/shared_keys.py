"""Keys shared with a partner: of which kind one is, a setting of the key, is known here alone.

SM2 takes 0.4 to 2 ms an operation: a key that is `slow` belongs in a thread. Any thread may use a key.
"""

import base64
import binascii
import hmac

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES, SM4
from cryptography.hazmat.primitives.ciphers.modes import CBC, ECB
from cryptography.hazmat.primitives.padding import PKCS7

from gateway.crypto import sm2
from gateway.crypto.ciphers import hmac_sm3
from gateway.crypto.sm2_forms import CiphertextForm, Forms, SignatureForm
from gateway.domain.partners import CryptoRefused, KeyKind, PartnerKey

_CIPHER_KEY_BYTES = {"sm4-cbc": (16,), "aes-cbc": (16, 32), "aes-ecb": (16, 32)}
_MAC_KEY_BYTES = {"mac-sm4": (16,), "mac-3des": (16,)}
_HMAC_KEY_BYTES_MAX = 512


class SharedKey:
    """One key; a kind overrides what it can do."""

    slow = False

    def sign(self, message: bytes) -> bytes:
        raise CryptoRefused("a key of this kind does not sign")

    def verify(self, message: bytes, signature: bytes) -> bool:
        raise CryptoRefused("a key of this kind does not verify")

    def encrypt(self, plaintext: bytes, iv: bytes) -> bytes:
        raise CryptoRefused("a key of this kind does not encrypt")

    def decrypt(self, ciphertext: bytes, iv: bytes) -> bytes:
        raise CryptoRefused("a key of this kind does not decrypt")

    def mac(self, message: bytes) -> bytes:
        raise CryptoRefused("a key of this kind makes no mac")


class Sm2Key(SharedKey):
    """Ours (private and public) signs and decrypts; the partner's (public) verifies and encrypts. The iv is unused."""

    slow = True

    def __init__(self, public: bytes, secret: bytes | None, forms: Forms) -> None:
        """Raises ValueError."""
        self._private = sm2.PrivateKey(secret, public, forms) if secret is not None else None
        self._public = self._private.public if self._private else sm2.PublicKey(public, forms)

    def sign(self, message: bytes) -> bytes:
        if self._private is None:
            raise CryptoRefused("only the public part of this key is here")
        return self._private.sign(message)

    def verify(self, message: bytes, signature: bytes) -> bool:
        return self._public.verify(message, signature)

    def encrypt(self, plaintext: bytes, iv: bytes) -> bytes:
        try:
            return self._public.encrypt(plaintext)
        except ValueError as error:
            raise CryptoRefused(str(error)) from None

    def decrypt(self, ciphertext: bytes, iv: bytes) -> bytes:
        if self._private is None:
            raise CryptoRefused("only the public part of this key is here")
        try:
            return self._private.decrypt(ciphertext)
        except sm2.DoesNotDecrypt:
            raise CryptoRefused("does not decrypt") from None


class CbcKey(SharedKey):
    """SM4 or AES, CBC with PKCS #7 padding. What is wrong with a ciphertext is not told (padding oracles).

    Whoever can alter the ciphertext can alter the plaintext: only inside what is signed, where the partner allows it.
    `aes-ecb` is for platforms that know nothing better (Java's default): its iv is unused.
    """

    def __init__(self, kind: KeyKind, secret: bytes) -> None:
        self._cipher = SM4(secret) if kind == "sm4-cbc" else AES(secret)
        self._ecb = kind == "aes-ecb"

    def encrypt(self, plaintext: bytes, iv: bytes) -> bytes:
        if len(iv) != 16:
            raise CryptoRefused("an iv has 16 bytes")
        padder = PKCS7(128).padder()
        encryptor = Cipher(self._cipher, self._mode(iv)).encryptor()
        return encryptor.update(padder.update(plaintext) + padder.finalize()) + encryptor.finalize()

    def decrypt(self, ciphertext: bytes, iv: bytes) -> bytes:
        if len(iv) != 16 or not ciphertext or len(ciphertext) % 16:
            raise CryptoRefused("does not decrypt")
        decryptor = Cipher(self._cipher, self._mode(iv)).decryptor()
        unpadder = PKCS7(128).unpadder()
        try:
            padded = decryptor.update(ciphertext) + decryptor.finalize()
            return unpadder.update(padded) + unpadder.finalize()
        except ValueError:
            raise CryptoRefused("does not decrypt") from None

    def _mode(self, iv: bytes) -> CBC | ECB:
        return ECB() if self._ecb else CBC(iv)  # noqa: S305 - the partner's choice


class HmacKey(SharedKey):
    def __init__(self, kind: KeyKind, secret: bytes) -> None:
        self._kind, self._secret = kind, secret

    def mac(self, message: bytes) -> bytes:
        """20 bytes of SHA-1, 32 of SHA-256 and SM3."""
        if self._kind == "hmac-sm3":
            return hmac_sm3(self._secret, message)
        return hmac.digest(self._secret, message, "sha1" if self._kind == "hmac-sha1" else "sha256")

    def verify(self, message: bytes, signature: bytes) -> bool:
        return hmac.compare_digest(self.mac(message), signature)


class BlockMacKey(SharedKey):
    """Macs of ISO 8583 (F64), message padded with zeros to whole blocks, iv of zeros.

    mac-sm4: CBC-MAC, 16 bytes (a dialect takes the first 8). mac-3des: ANSI X9.19 (ISO 9797-1 algorithm 3), 8 bytes.
    """

    def __init__(self, kind: KeyKind, secret: bytes) -> None:
        self._kind, self._secret = kind, secret

    def mac(self, message: bytes) -> bytes:
        size = 16 if self._kind == "mac-sm4" else 8
        padded = message + bytes(-len(message) % size) or bytes(size)
        if self._kind == "mac-sm4":
            encryptor = Cipher(SM4(self._secret), CBC(bytes(16))).encryptor()
            return encryptor.update(padded)[-16:]
        left = self._secret[:8] * 3  # three times one key is single DES
        encryptor = Cipher(TripleDES(left), CBC(bytes(8))).encryptor()
        chained = encryptor.update(padded[:-8])[-8:] if len(padded) > 8 else bytes(8)
        last = Cipher(TripleDES(self._secret + self._secret[:8]), CBC(chained)).encryptor()
        return last.update(padded[-8:])

    def verify(self, message: bytes, signature: bytes) -> bool:
        """A mac may be cut to no less than 8 bytes."""
        return len(signature) >= 8 and hmac.compare_digest(self.mac(message)[: len(signature)], signature)


def read_key(block: PartnerKey, text: str) -> SharedKey:
    """A key of its text. Raises ValueError saying what is wrong, never the text."""
    if block.kind == "sm2":
        parts = [_decode(block, word) for word in text.split()]
        if len(parts) not in (1, 2):
            raise ValueError("expected `<private> <public>`, or a public key")
        forms = Forms(SignatureForm(block.signature), CiphertextForm(block.ciphertext), block.user_id.encode())
        return Sm2Key(parts[-1], parts[0] if len(parts) == 2 else None, forms)
    secret = _decode(block, text.strip())
    if block.kind in _CIPHER_KEY_BYTES:
        _check_length(secret, _CIPHER_KEY_BYTES[block.kind])
        return CbcKey(block.kind, secret)
    if block.kind in _MAC_KEY_BYTES:
        _check_length(secret, _MAC_KEY_BYTES[block.kind])
        return BlockMacKey(block.kind, secret)
    if not 1 <= len(secret) <= _HMAC_KEY_BYTES_MAX:
        raise ValueError(f"a key of this kind has 1 to {_HMAC_KEY_BYTES_MAX} bytes")
    return HmacKey(block.kind, secret)


def _check_length(secret: bytes, lengths: tuple[int, ...]) -> None:
    if len(secret) not in lengths:
        raise ValueError(f"a key of this kind has {' or '.join(map(str, lengths))} bytes")


def _decode(block: PartnerKey, text: str) -> bytes:
    try:
        if block.encoding == "hex":
            return bytes.fromhex(text)
        if block.encoding == "base64":
            return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise ValueError(f"not {block.encoding}") from None
    return text.encode()
