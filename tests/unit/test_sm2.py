"""SM2 by both backends: the standard's figures, another implementation both ways, and what must be refused."""

import ctypes
import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import gmalg
import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.crypto import sm2
from gateway.crypto.sm2 import DoesNotDecrypt, PrivateKey, PublicKey
from gateway.crypto.sm2_forms import CiphertextForm, Forms, N, P, SignatureForm, read_point
from gateway.crypto.sm2_gmssl import GmsslFast
from gateway.crypto.sm2_libcrypto import LibCrypto, LibCryptoError

BACKENDS: dict[str, sm2.Backend] = {"libcrypto": LibCrypto(), "gmssl-fast": GmsslFast()}
each_backend = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)

# GB/T 32918.5, recomputed in reliability.md §5.4
SECRET = bytes.fromhex("3945208F7B2144B13F36E38AC6D39F95889393692860B51A42FB81EF4DF7C5B8")
X = bytes.fromhex("09F9DF311E5421A150DD7D161E4BC5C672179FAD1833FC076BB08FF356F35020")
Y = bytes.fromhex("CCEA490CE26775A52DC6EA718CC1AA600AED05FBF35E084A6632F6072DA9AD13")
POINT, COMPRESSED = b"\x04" + X + Y, b"\x03" + X
K = 0x59276E27D506861A16680F3AD9C02DCCEF3CC1FA3CDBE4CE6D54B80DEAC1BC21
MESSAGE = b"message digest"
R = 0xF5A03B0648D2C4630EEAC513E1BB81A15944DA3827D5B74143AC7EACEEE720B3
S = 0xB1B6AA29DF212FD8763182BC0D421CA1BB9038FD1F7F42D4840B69C485BBC1AA
PLAINTEXT = b"encryption standard"
C1 = bytes.fromhex(
    "0404EBFC718E8D1798620432268E77FEB6415E2EDE0E073C0F4F640ECD2E149A73"
    "E858F9D81E5430A57B36DAAB8F950A3C64E6EE6A63094D99283AFF767E124DF0"
)
C3 = bytes.fromhex("59983C18F809E262923C53AEC295D30383B54E39D609D160AFCB1908D0BD8766")
C2 = bytes.fromhex("21886CA989CA9C7D58087307CA93092D651EFA")

RAW = Forms(signature=SignatureForm.RAW)
oracle = gmalg.SM2(sk=SECRET, uid=b"1234567812345678", pk=POINT)


def raw(r: int, s: int) -> bytes:
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


@each_backend
def test_the_standards_signature_is_good_in_both_forms(backend: sm2.Backend) -> None:
    for point in (POINT, COMPRESSED):
        assert PublicKey(point, RAW, backend).verify(MESSAGE, raw(R, S))
        assert PublicKey(point, Forms(), backend).verify(MESSAGE, encode_dss_signature(R, S))
    assert PublicKey(COMPRESSED, backend=backend).point == POINT


@each_backend
@pytest.mark.parametrize(
    ("form", "ciphertext"),
    [(CiphertextForm.C1C3C2_RAW, C1 + C3 + C2), (CiphertextForm.C1C2C3_RAW, C1 + C2 + C3)],
)
def test_the_standards_ciphertext_decrypts_in_its_order_alone(
    backend: sm2.Backend, form: CiphertextForm, ciphertext: bytes
) -> None:
    assert PrivateKey(SECRET, POINT, Forms(ciphertext=form), backend).decrypt(ciphertext) == PLAINTEXT
    for other in set(CiphertextForm) - {form}:
        with pytest.raises(DoesNotDecrypt):
            PrivateKey(SECRET, POINT, Forms(ciphertext=other), backend).decrypt(ciphertext)


def test_the_oracle_makes_the_standards_signature_with_the_standards_k() -> None:
    """It is independent of ours, so that ours may be held against it."""
    fixed = gmalg.SM2(sk=SECRET, uid=b"1234567812345678", pk=POINT, rnd_fn=lambda bits: K)
    assert fixed.sign(MESSAGE) == (R.to_bytes(32, "big"), S.to_bytes(32, "big"))


def der_integer(body: bytes) -> bytes:
    return b"\x02" + bytes([len(body)]) + body


def der(r: bytes, s: bytes, more: bytes = b"") -> bytes:
    body = der_integer(r) + der_integer(s) + more
    return b"\x30" + bytes([len(body)]) + body


GOOD_R, GOOD_S = b"\0" + R.to_bytes(32, "big"), b"\0" + S.to_bytes(32, "big")
NOT_SIGNATURES = {
    "r = 0": encode_dss_signature(0, S), "s = 0": encode_dss_signature(R, 0),
    "r = n": encode_dss_signature(N, S), "s = n": encode_dss_signature(R, N),
    "r + n": encode_dss_signature(R + N, S), "s + n": encode_dss_signature(R, S + N),
    "r + s = n": encode_dss_signature(R, N - R), "s and r": encode_dss_signature(S, R),
    "n - s": encode_dss_signature(R, N - S),
    "r negative": der(R.to_bytes(32, "big"), GOOD_S), "r with a needless zero": der(b"\0" + GOOD_R, GOOD_S),
    "s with a needless zero": der(GOOD_R, b"\0" + GOOD_S), "a third part": der(GOOD_R, GOOD_S, b"\x05\0"),
    "a byte behind": der(GOOD_R, GOOD_S) + b"\0", "a byte less": der(GOOD_R, GOOD_S)[:-1],
    "a long length": b"\x30\x81\x46" + der(GOOD_R, GOOD_S)[2:],
    "an indefinite length": b"\x30\x80" + der(GOOD_R, GOOD_S)[2:] + b"\0\0",
    "a set": b"\x31" + der(GOOD_R, GOOD_S)[1:], "raw": raw(R, S), "empty": b"", "one byte": b"\x30",
}  # fmt: skip


@each_backend
@pytest.mark.parametrize("how", NOT_SIGNATURES)
def test_what_is_no_signature_is_refused(backend: sm2.Backend, how: str) -> None:
    key = PublicKey(POINT, Forms(), backend)
    assert not key.verify(MESSAGE, NOT_SIGNATURES[how])
    assert key.verify(MESSAGE, der(GOOD_R, GOOD_S)), "the control: the parts above are those of a good one"


@each_backend
def test_raw_signatures_are_checked_as_strictly(backend: sm2.Backend) -> None:
    key = PublicKey(POINT, RAW, backend)
    bad = [raw(0, S), raw(R, 0), raw(N, S), raw(R, N), raw(R, N - R), raw(S, R), b"", raw(R, S)[:-1], raw(R, S) + b"\0"]
    assert not any(key.verify(MESSAGE, signature) for signature in [*bad, encode_dss_signature(R, S)])


@each_backend
def test_another_message_key_or_user_id_is_refused(backend: sm2.Backend) -> None:
    _, other = sm2.generate(backend)
    assert not PublicKey(POINT, RAW, backend).verify(MESSAGE + b"\0", raw(R, S))
    assert not PublicKey(POINT, RAW, backend).verify(b"", raw(R, S))
    assert not PublicKey(other, RAW, backend).verify(MESSAGE, raw(R, S))


def test_the_user_id_is_part_of_the_signature() -> None:
    alice = Forms(SignatureForm.RAW, user_id=b"ALICE123@YAHOO.COM")
    signed = PrivateKey(SECRET, POINT, alice).sign(MESSAGE)
    assert PublicKey(POINT, alice).verify(MESSAGE, signed)
    assert not PublicKey(POINT, RAW).verify(MESSAGE, signed)
    assert not PublicKey(POINT, alice).verify(MESSAGE, raw(R, S))
    theirs = gmalg.SM2(sk=SECRET, uid=b"ALICE123@YAHOO.COM", pk=POINT)
    assert theirs.verify(MESSAGE, signed[:32], signed[32:])


def test_gmssl_fast_says_that_it_knows_the_default_user_id_alone() -> None:
    with pytest.raises(ValueError, match="default user id"):
        PublicKey(POINT, Forms(user_id=b"ALICE123@YAHOO.COM"), BACKENDS["gmssl-fast"])


@pytest.mark.parametrize("user_id", [b"", bytes(129)])
def test_a_user_id_has_a_length(user_id: bytes) -> None:
    with pytest.raises(ValueError, match="user id"):
        PublicKey(POINT, Forms(user_id=user_id))


NOT_POINTS = {
    "off the curve": b"\x04" + X + Y[:-1] + b"\x14", "infinity": b"\0", "infinity, long": b"\0" * 65,
    "zero": b"\x04" + bytes(64), "x >= p": b"\x04" + b"\xff" * 32 + Y, "y + p": b"\x04" + X + b"\xff" * 32,
    "hybrid": b"\x07" + X + Y, "no prefix": X + Y, "short": POINT[:-1], "long": POINT + b"\0", "empty": b"",
    "compressed, off the curve": b"\x02" + (5).to_bytes(32, "big"),
    "compressed, x >= p": b"\x02" + P.to_bytes(32, "big"),
    "compressed, long": COMPRESSED + b"\0",
}  # fmt: skip


@each_backend
@pytest.mark.parametrize("how", NOT_POINTS)
def test_what_is_no_point_is_no_key_and_no_ciphertext(backend: sm2.Backend, how: str) -> None:
    with pytest.raises(ValueError):
        PublicKey(NOT_POINTS[how], backend=backend)
    with pytest.raises(DoesNotDecrypt):
        PrivateKey(SECRET, POINT, Forms(ciphertext=CiphertextForm.C1C3C2_RAW), backend).decrypt(
            NOT_POINTS[how] + C3 + C2
        )


@each_backend
@pytest.mark.parametrize("secret", [bytes(32), (N - 1).to_bytes(32, "big"), N.to_bytes(32, "big"), SECRET[:-1], b""])
def test_a_private_key_out_of_range_is_refused(backend: sm2.Backend, secret: bytes) -> None:
    with pytest.raises(ValueError):
        PrivateKey(secret, POINT, backend=backend)


@each_backend
def test_a_private_key_belongs_to_its_public_key(backend: sm2.Backend) -> None:
    _, other = sm2.generate(backend)
    with pytest.raises(ValueError):
        PrivateKey(SECRET, other, backend=backend)


def signed_by(somebody_else: gmalg.SM2, message: bytes) -> bytes:
    """r‖s. gmalg leaves out the zeros before a number: one signature in 128 would be short."""
    return b"".join(number.rjust(32, b"\0") for number in somebody_else.sign(message))


@each_backend
@settings(max_examples=6)
@given(message=st.binary(max_size=300))
@example(message=b"")
def test_signatures_agree_with_another_implementation_both_ways(backend: sm2.Backend, message: bytes) -> None:
    key = PrivateKey(SECRET, POINT, RAW, backend)
    ours = key.sign(message)
    assert oracle.verify(message, ours[:32], ours[32:])
    assert key.public.verify(message, signed_by(oracle, message))
    for other in BACKENDS.values():
        assert PublicKey(POINT, RAW, other).verify(message, ours)
    assert PrivateKey(SECRET, POINT, Forms(), backend).public.verify(
        message, PrivateKey(SECRET, POINT, Forms(), backend).sign(message)
    )


@each_backend
@settings(max_examples=6)
@given(plaintext=st.binary(min_size=1, max_size=255))
@example(plaintext=b"\0")
@example(plaintext=bytes(255))
def test_encryption_agrees_with_another_implementation_both_ways(backend: sm2.Backend, plaintext: bytes) -> None:
    key = PrivateKey(SECRET, POINT, Forms(ciphertext=CiphertextForm.C1C3C2_RAW), backend)
    assert oracle.decrypt(key.public.encrypt(plaintext)) == plaintext
    assert key.decrypt(oracle.encrypt(plaintext)) == plaintext
    for form in CiphertextForm:
        private = PrivateKey(SECRET, POINT, Forms(ciphertext=form), backend)
        for other in BACKENDS.values():
            assert private.decrypt(PublicKey(POINT, Forms(ciphertext=form), other).encrypt(plaintext)) == plaintext


@each_backend
def test_a_generated_key_is_a_key_for_everybody(backend: sm2.Backend) -> None:
    secret, point = sm2.generate(backend)
    theirs = gmalg.SM2(sk=secret, uid=b"1234567812345678", pk=point)
    assert PublicKey(point, RAW, backend).verify(MESSAGE, signed_by(theirs, MESSAGE))
    for other in BACKENDS.values():
        assert PrivateKey(secret, point, backend=other).public.point == point
    assert sm2.generate(backend) != sm2.generate(backend)


@each_backend
@pytest.mark.parametrize("length", [0, 256])
def test_sm2_encrypts_what_keys_are_long(backend: sm2.Backend, length: int) -> None:
    with pytest.raises(ValueError, match="1 to 255"):
        PublicKey(POINT, backend=backend).encrypt(bytes(length))


@each_backend
@settings(max_examples=40)
@given(data=st.data())
def test_an_altered_ciphertext_is_refused(backend: sm2.Backend, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(CiphertextForm))
    key = PrivateKey(SECRET, POINT, Forms(ciphertext=form), backend)
    sealed = bytearray(key.public.encrypt(PLAINTEXT))
    # as a part of its length, which differs: integers of DER are as short as they can be
    sealed[data.draw(st.integers(0, 999)) * len(sealed) // 1000] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DoesNotDecrypt):
        key.decrypt(bytes(sealed))


@each_backend
@settings(max_examples=60)
@given(
    garbage=st.binary(max_size=120) | st.binary(max_size=300).map(lambda rest: C1 + rest),
    form=st.sampled_from(CiphertextForm),
    signature=st.sampled_from(SignatureForm),
)
def test_garbage_is_refused_in_words_we_know(
    backend: sm2.Backend, garbage: bytes, form: CiphertextForm, signature: SignatureForm
) -> None:
    private = PrivateKey(SECRET, POINT, Forms(signature, form), backend)
    assert not private.public.verify(MESSAGE, garbage)
    with pytest.raises(DoesNotDecrypt):
        private.decrypt(garbage)


@given(st.binary(max_size=70) | st.binary(min_size=32, max_size=32).map(lambda x: b"\x02" + x))
def test_a_point_is_on_the_curve_or_refused(text: bytes) -> None:
    try:
        point = read_point(text)
    except ValueError:
        return
    x, y = int.from_bytes(point[1:33], "big"), int.from_bytes(point[33:], "big")
    assert (y * y - (x**3 - 3 * x)) % P == 0x28E9FA9E9D9F5E344D5A9E4BCF6509A7F39789F515AB8F92DDBCBD414D940E93


LEAK_BYTES = 32 << 10
"""600 times what the smallest of the freed things takes is more; what Python keeps meanwhile is less."""


class MallInfo2(ctypes.Structure):
    """glibc's mallinfo2(3)."""

    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    )


def in_use_bytes() -> int:
    """What was allocated and not freed, in all arenas: resident memory would not tell, it is kept for later."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallInfo2
    return int(mallinfo2().uordblks)


def growth_bytes(backend: sm2.Backend) -> int:
    """Over 600 keys, signatures, refusals and ciphertexts, in two threads that share a key."""
    shared = PrivateKey(SECRET, POINT, RAW, backend)

    def work(count: int) -> None:
        for _ in range(count):
            assert shared.public.verify(MESSAGE, raw(R, S))
            assert not PublicKey(POINT, RAW, backend).verify(MESSAGE, raw(R, R))
            with pytest.raises(DoesNotDecrypt):
                shared.decrypt(os.urandom(120))
            assert shared.decrypt(shared.public.encrypt(b"x")) == b"x"

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, [100, 100]))
        gc.collect()
        before = in_use_bytes()
        list(pool.map(work, [300, 300]))
        gc.collect()
    return in_use_bytes() - before


def test_a_key_is_shared_by_threads_and_nothing_leaks() -> None:
    assert growth_bytes(BACKENDS["libcrypto"]) < LEAK_BYTES


@pytest.mark.parametrize("free", ["EVP_PKEY_free", "EVP_MD_CTX_free", "EVP_PKEY_CTX_free"])
def test_a_leak_would_be_seen(free: str) -> None:
    leaking = LibCrypto()
    leaking._call[free] = lambda pointer: None
    assert growth_bytes(leaking) > LEAK_BYTES


@pytest.mark.parametrize("library", ["libcrypto.so.999", "libm.so.6"], ids=["no library", "a library without EVP"])
def test_without_openssl_the_fallback_is_taken_and_said(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setattr(sm2, "LibCrypto", lambda: LibCrypto(library))
    found = sm2.chosen.__wrapped__()
    assert found.backend.name == "gmssl-fast" and re.search(
        r"gmssl-fast \(0\.1.*\): slower, for no OpenSSL 3", str(found)
    )


class Wrong(LibCrypto):
    """Says yes to everything."""

    def verify(self, *_: object) -> bool:
        return True


class WithoutSm2(LibCrypto):
    def public(self, point: bytes) -> object:  # type: ignore[override]
        raise LibCryptoError("d2i_PUBKEY")


@pytest.mark.parametrize("broken", [Wrong, WithoutSm2])
def test_an_openssl_that_fails_the_standards_example_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[[], LibCrypto]
) -> None:
    monkeypatch.setattr(sm2, "LibCrypto", broken)
    assert sm2.chosen.__wrapped__().backend.name == "gmssl-fast"


def test_this_systems_openssl_is_taken() -> None:
    assert sm2.chosen().backend.name == "libcrypto" and str(sm2.chosen()).startswith("libcrypto (OpenSSL 3.")
    assert all(sm2.works(backend) for backend in BACKENDS.values())


def test_a_refusal_leaves_no_error_for_pythons_own_openssl() -> None:
    """Its error queue is the thread's; the ssl module would take what we leave there for its own."""
    code = (
        "import ctypes, hashlib, ssl; from gateway.crypto import sm2; from tests.unit.test_sm2 import *\n"
        "key = PrivateKey(SECRET, POINT, RAW); key.public.verify(b'', raw(R, S))\n"
        "try: key.decrypt(key.public.encrypt(b'x')[:-1] + b'y')\n"
        "except DoesNotDecrypt: pass\n"
        "peek = ctypes.CDLL('libcrypto.so.3').ERR_peek_error; peek.restype = ctypes.c_ulong; print(peek())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "0"
