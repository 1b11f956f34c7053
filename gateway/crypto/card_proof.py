"""A chip card's proof that it is genuine: its answer to a terminal's challenge (domain.md §1.2).

The scheme below (SM4; the card's key diversified from a master key by the identifier's last eight bytes and their
complement, as PBOC does) is a proposal [G]: the real one runs in the card centre's HSM and comes through the same call.
"""

import hmac

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import SM4
from cryptography.hazmat.primitives.ciphers.modes import ECB

from gateway.domain.masking import Secret


def expected_cryptogram(master: Secret[bytes], card_identifier: str, challenge: bytes) -> bytes:
    """What a genuine card answers to a 16-byte challenge."""
    seed = bytes.fromhex(card_identifier)[8:]
    card_key = _sm4(master.reveal()[:16], seed + bytes(byte ^ 0xFF for byte in seed))
    return _sm4(card_key, challenge)


def is_genuine(master: Secret[bytes], card_identifier: str, challenge_hex: str, cryptogram_hex: str) -> bool:
    """Whether the cryptogram answers the challenge; anything malformed does not."""
    try:
        challenge, cryptogram = bytes.fromhex(challenge_hex), bytes.fromhex(cryptogram_hex)
    except ValueError:
        return False
    return len(challenge) == 16 and hmac.compare_digest(
        expected_cryptogram(master, card_identifier, challenge), cryptogram
    )


def _sm4(key: bytes, block: bytes) -> bytes:
    encryptor = Cipher(SM4(key), ECB()).encryptor()  # noqa: S305 - single blocks
    return encryptor.update(block) + encryptor.finalize()
