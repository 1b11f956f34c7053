"""Which 32 bytes are a public key of Ed25519 for which its owner alone can sign.

The library takes any 32 bytes, and checks at most at a signature whether they are a point.
"""

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
_Y_OF_ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
SMALL_ORDER_YS = frozenset({0, 1, P - 1, _Y_OF_ORDER_8, P - _Y_OF_ORDER_8})
"""Of the eight points with 8A = 0: a point and its negative have one y, and 1 and -1 are those of their own negatives.

tests/unit/test_ed25519_points.py computes them.
"""


def refuse_unfit(encoded: bytes) -> None:
    """Raises ValueError if the 32 bytes are not the one form of a point of the curve, or if its order divides 8.

    RFC 8032 §5.1.3: the highest bit is the sign of x, the others are y below p, (y² - 1)/(dy² + 1) is a square, and
    x = 0 has no sign. A point A of small order is no key (Chalkias, Garillot, Nikolaenko: Taming the Many EdDSAs, 2020,
    §2): a signature is good if sB = R + kA, with k a hash. With kA = 0, for every k or one of eight, s = 0 and R = 0
    are a signature of anything, and need no private key. A point of mixed order stays: kA = 0 is as rare for it as for
    any other.
    """
    y = int.from_bytes(encoded, "little") & ((1 << 255) - 1)
    if y >= P:
        raise ValueError("x is not the canonical form of a point")
    if y in SMALL_ORDER_YS:
        raise ValueError("x is a point of small order: anybody could sign for it")
    u, v = y * y - 1, D * y * y + 1
    if pow(u * v, (P - 1) // 2, P) != 1:  # u/v is a square where uv is; 0 is that of y = 1 and -1 alone
        raise ValueError("x is not a point of the curve")
