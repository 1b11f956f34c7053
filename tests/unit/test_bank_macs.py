"""MACs of bank links: published examples, and the SM4 form against another implementation."""

import gmalg
import pytest

from gateway.crypto.shared_keys import read_key
from gateway.domain.partners import KeyKind, PartnerKey

KEY = bytes.fromhex("0123456789abcdeffedcba9876543210")


def x9_19_mac(key: bytes, message: bytes) -> bytes:
    return read_key(PartnerKey(kind="mac-3des"), key.hex()).mac(message)


def sm4_cbc_mac(key: bytes, message: bytes) -> bytes:
    return read_key(PartnerKey(kind="mac-sm4"), key.hex()).mac(message)


@pytest.mark.parametrize(
    ("message", "mac"),
    [(b"Now is the time for all ", "a1c72e74ea3fa9b6"), (b"Now is the time for it", "2e2b1428cc78254f")],
)
def test_x9_19_gives_the_examples_of_iso_9797_1(message: bytes, mac: str) -> None:
    assert x9_19_mac(KEY, message).hex() == mac


def test_x9_19_of_one_block_and_of_nothing() -> None:
    assert len({x9_19_mac(KEY, b"12345678"), x9_19_mac(KEY, b"12345679"), x9_19_mac(KEY, b"")}) == 3


def test_sm4_of_one_block_is_the_standards_example() -> None:
    # GB/T 32907 example 1: key and plaintext alike (domain.md §4.1)
    assert sm4_cbc_mac(KEY, KEY).hex() == "681edf34d206965e86b3e94f536e4246"


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 64, 301])
def test_sm4_agrees_with_another_implementation(length: int) -> None:
    message = bytes(range(256)) * 2
    message = message[:length]
    padded = message + bytes(-length % 16 if length else 16)
    block = bytes(16)
    oracle = gmalg.SM4(KEY)
    for at in range(0, len(padded), 16):
        block = oracle.encrypt(bytes(a ^ b for a, b in zip(block, padded[at : at + 16], strict=True)))
    assert sm4_cbc_mac(KEY, message) == block


@pytest.mark.parametrize("kind", ["mac-sm4", "mac-3des"])
def test_a_key_of_another_length_is_refused(kind: KeyKind) -> None:
    with pytest.raises(ValueError, match="key"):
        read_key(PartnerKey(kind=kind), KEY[:8].hex())
