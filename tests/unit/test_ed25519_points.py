"""Public keys of Ed25519 that nobody or everybody could sign for: found by arithmetic, not by a list of somebody's."""

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from gateway.crypto.ed25519_points import SMALL_ORDER_YS, D, P, refuse_unfit
from tests.jwks import FORGED

Point = tuple[int, int]
NEUTRAL: Point = (0, 1)
ROOT_OF_MINUS_1 = pow(2, (P - 1) // 4, P)
L = 2**252 + 27742317777372353535851937790883648493
"""The prime order of the base point (RFC 8032 §5.1)."""


def plus(a: Point, b: Point) -> Point:
    """RFC 8032 §5.1.4, in affine coordinates."""
    product = D * a[0] * b[0] * a[1] * b[1]
    x = (a[0] * b[1] + b[0] * a[1]) * pow(1 + product, -1, P)
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - product, -1, P)
    return x % P, y % P


def times(number: int, point: Point) -> Point:
    found = NEUTRAL
    for bit in bin(number)[2:]:
        found = plus(found, found)
        found = plus(found, point) if bit == "1" else found
    return found


def at(y: int) -> Point | None:
    """A point with this y, if there is one (RFC 8032 §5.1.3)."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    root = pow(square, (P + 3) // 8, P)
    return next(((x, y) for x in (root, root * ROOT_OF_MINUS_1 % P) if x * x % P == square), None)


def encoded(y: int, sign: int) -> bytes:
    return (y | sign << 255).to_bytes(32, "little")


def form(point: Point) -> bytes:
    return encoded(point[1], point[0] & 1)


BASE = at(4 * pow(5, -1, P) % P) or NEUTRAL
TORSION = next(
    [times(number, found) for number in range(8)]
    for y in range(2, 100)
    if (point := at(y)) is not None and times(4, found := times(L, point)) != NEUTRAL
)
"""The eight points with 8A = 0: the curve's group is cyclic, of order 8L, so there are no others."""
FORMS = sorted({encoded(y, sign) for _, low in TORSION for y in (low, low + P) if y < 2**255 for sign in (0, 1)})
"""Every 32 bytes that somebody may read as one of them, also with a wrong sign of x = 0, or y not below p."""


def test_the_ys_of_small_order_are_those_of_the_eight_points() -> None:
    assert BASE != NEUTRAL == times(L, BASE)
    assert len(set(TORSION)) == 8 and all(times(8, point) == NEUTRAL for point in TORSION)
    assert {point[1] for point in TORSION} == SMALL_ORDER_YS
    assert len(FORMS) == 14


@pytest.mark.parametrize("key", FORMS, ids=bytes.hex)
def test_a_point_of_small_order_is_refused_in_every_form(key: bytes) -> None:
    with pytest.raises(ValueError, match=r"small order|canonical"):
        refuse_unfit(key)


def good(key: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(FORGED, message)
    except InvalidSignature:
        return False
    return True


@pytest.mark.parametrize("key", FORMS, ids=bytes.hex)
def test_the_control_the_library_takes_them_and_constant_bytes_for_a_signature(key: bytes) -> None:
    assert any(good(key, bytes([number])) for number in range(256))
    assert not any(good(form(BASE), bytes([number])) for number in range(256))


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("y", range(P, 2**255))
def test_a_y_that_is_not_below_p_is_refused(y: int, sign: int) -> None:
    with pytest.raises(ValueError, match="canonical"):
        refuse_unfit(encoded(y, sign))


@given(y=st.integers(0, P - 1), sign=st.integers(0, 1))
def test_a_y_without_a_point_is_refused(y: int, sign: int) -> None:
    if at(y) is None:
        with pytest.raises(ValueError, match="curve"):
            refuse_unfit(encoded(y, sign))
    elif y not in SMALL_ORDER_YS:
        refuse_unfit(encoded(y, sign))


@given(secret=st.binary(min_size=32, max_size=32))
def test_a_key_that_was_made_is_taken(secret: bytes) -> None:
    refuse_unfit(Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw())


def test_a_point_of_mixed_order_is_taken() -> None:
    """No constant signature is good for it, for its part of large order is as unknown as any."""
    for small in TORSION:
        mixed = plus(BASE, small)
        refuse_unfit(form(mixed))
        assert times(8, mixed) != NEUTRAL and not any(good(form(mixed), bytes([number])) for number in range(256))
