"""No bug: a system without OpenSSL 3 (gmssl-fast computes SM2) that tells on stderr which thread checks a signature."""

import sys
import threading
from functools import partial

from gateway.crypto import sm2
from gateway.crypto.sm2_libcrypto import LibCrypto

_verify = sm2.PublicKey.verify


def verify(self: sm2.PublicKey, message: bytes, signature: bytes) -> bool:
    print(f"SM2 checked in {threading.current_thread().name}", file=sys.stderr, flush=True)
    return _verify(self, message, signature)


setattr(sm2, "LibCrypto", partial(LibCrypto, "libcrypto.so.999"))  # noqa: B010
setattr(sm2.PublicKey, "verify", verify)  # noqa: B010
