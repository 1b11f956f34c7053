"""SM3, SM4 and AES-GCM: the standards' figures, another implementation, and what must not open."""

import os
from collections.abc import Callable

import gmalg
import gmssl_fast
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.crypto.ciphers import (
    Aead,
    Aes256Gcm,
    DoesNotOpen,
    Sm4Gcm,
    hmac_sm3,
)
from gateway.crypto.digests import DIGESTS, running, sm3
from gateway.crypto.shared_keys import read_key
from gateway.domain.partners import CryptoRefused, PartnerKey

SM4_KEY = bytes.fromhex("0123456789abcdeffedcba9876543210")


def sm4_cbc_encrypt(key: bytes, iv: bytes, plaintext: bytes) -> bytes:
    return read_key(PartnerKey(kind="sm4-cbc"), key.hex()).encrypt(plaintext, iv)


def sm4_cbc_decrypt(key: bytes, iv: bytes, ciphertext: bytes) -> bytes:
    return read_key(PartnerKey(kind="sm4-cbc"), key.hex()).decrypt(ciphertext, iv)


def test_sm3_of_the_standards_examples() -> None:
    """GB/T 32905."""
    assert sm3(b"abc").hex() == "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"
    assert sm3(b"abcd" * 16).hex() == "debe9ff92275b8a138604889c18e5a4d6fdb70e5387e5765293dcba39c0c5732"


def test_hmac_sm3_of_the_published_figure() -> None:
    """reliability.md §5.4; Wycheproof's cases are in tests/vectors."""
    message = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"
    wanted = "be190a66f210be0df56c243d5c1a53e9301fd3f0313244a412f6ae97ab7fe407"
    assert hmac_sm3(bytes(range(1, 33)), message).hex() == wanted


@settings(max_examples=30)
@given(st.binary(max_size=300))
def test_sm3_agrees_with_two_others(message: bytes) -> None:
    other = gmalg.SM3()
    other.update(message)
    assert sm3(message) == other.value() == gmssl_fast.sm3(message)


@pytest.mark.parametrize("name", DIGESTS)
def test_a_digest_by_parts_is_that_of_the_whole(name: str) -> None:
    digest = running(name)
    for part in (b"social", b"", b" security"):
        digest.update(part)
    assert digest.finalize() == DIGESTS[name](b"social security")


def test_sm4_a_million_times() -> None:
    """GB/T 32907: the cipher applied again and again to one block; CBC over zeros after it does just that."""
    once = sm4_cbc_encrypt(SM4_KEY, SM4_KEY, b"")  # to see that padding is there: one whole block of it
    assert len(once) == 16
    chain = sm4_cbc_encrypt(SM4_KEY, SM4_KEY, bytes(16 * 1_000_000))
    assert chain[:16].hex() == "681edf34d206965e86b3e94f536e4246"
    assert chain[16 * 999_999 :][:16].hex() == "595298c7c6fd271f0402f804c33d3f66"


@settings(max_examples=20)
@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16), st.binary(max_size=100))
def test_sm4_cbc_agrees_with_others_both_ways(key: bytes, iv: bytes, plaintext: bytes) -> None:
    sealed = sm4_cbc_encrypt(key, iv, plaintext)
    padding = 16 - len(plaintext) % 16
    padded, block, chained = plaintext + bytes([padding]) * padding, iv, b""
    for start in range(0, len(padded), 16):
        block = gmalg.SM4(key).encrypt(bytes(a ^ b for a, b in zip(block, padded[start : start + 16], strict=True)))
        chained += block
    assert sealed == chained == gmssl_fast.SM4(key, iv=iv).encrypt(plaintext)[16:]
    assert sm4_cbc_decrypt(key, iv, sealed) == plaintext


@given(st.binary(max_size=100))
def test_sm4_cbc_garbage_is_refused_or_is_some_plaintext(ciphertext: bytes) -> None:
    try:
        plaintext = sm4_cbc_decrypt(SM4_KEY, SM4_KEY, ciphertext)
    except CryptoRefused:
        return
    assert sm4_cbc_encrypt(SM4_KEY, SM4_KEY, plaintext) == ciphertext


def test_sm4_gcm_of_rfc_8998() -> None:
    nonce = bytes.fromhex("00001234567800000000abcd")
    associated = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    plaintext = b"".join(bytes([byte]) * 8 for byte in bytes.fromhex("aabbccddeeffeeaa"))
    sealed = Sm4Gcm(SM4_KEY).encrypt(nonce, plaintext, associated)
    assert sealed[-16:].hex() == "83de3541e4c2b58177e065a9bf7b62ec"
    assert Sm4Gcm(SM4_KEY).decrypt(nonce, sealed, associated) == plaintext


CIPHERS: dict[str, Callable[[], Aead]] = {
    "SM4-GCM": lambda: Sm4Gcm(os.urandom(16)),
    "AES-256-GCM": lambda: Aes256Gcm(os.urandom(32)),
}
each_cipher = pytest.mark.parametrize("make", CIPHERS.values(), ids=CIPHERS)
NONCE = bytes(12)


@each_cipher
@given(plaintext=st.binary(max_size=100), associated=st.binary(max_size=50))
def test_what_is_encrypted_opens_in_its_context_alone(
    make: Callable[[], Aead], plaintext: bytes, associated: bytes
) -> None:
    cipher = make()
    sealed = cipher.encrypt(NONCE, plaintext, associated)
    assert cipher.decrypt(NONCE, sealed, associated) == plaintext
    for other, nonce, context in (
        (make(), NONCE, associated),
        (cipher, b"\1" * 12, associated),
        (cipher, NONCE, associated + b"\0"),
    ):
        with pytest.raises(DoesNotOpen):
            other.decrypt(nonce, sealed, context)


@each_cipher
def test_a_tag_that_was_cut_to_any_length_does_not_open(make: Callable[[], Aead]) -> None:
    """GCM by parts takes tags from 4 bytes on; here the last 16 bytes are the tag, whatever they are."""
    cipher = make()
    for plaintext in (b"", b"card"):
        sealed = cipher.encrypt(NONCE, plaintext, b"")
        for length in range(len(sealed)):
            with pytest.raises(DoesNotOpen):
                cipher.decrypt(NONCE, sealed[:length], b"")


@each_cipher
@pytest.mark.parametrize("length", [0, 8, 11, 13, 16])
def test_a_nonce_has_twelve_bytes(make: Callable[[], Aead], length: int) -> None:
    cipher = make()
    with pytest.raises(ValueError):
        cipher.encrypt(bytes(length), b"card", b"")
    with pytest.raises(DoesNotOpen):
        cipher.decrypt(bytes(length), cipher.encrypt(NONCE, b"card", b""), b"")


@each_cipher
@given(garbage=st.binary(max_size=64))
def test_garbage_does_not_open(make: Callable[[], Aead], garbage: bytes) -> None:
    with pytest.raises(DoesNotOpen):
        make().decrypt(NONCE, garbage, b"")


@pytest.mark.parametrize(("cipher", "length"), [(Sm4Gcm, 15), (Sm4Gcm, 32), (Aes256Gcm, 16), (Aes256Gcm, 31)])
def test_a_key_has_its_length(cipher: type[Sm4Gcm | Aes256Gcm], length: int) -> None:
    with pytest.raises(ValueError):
        cipher(bytes(length))
