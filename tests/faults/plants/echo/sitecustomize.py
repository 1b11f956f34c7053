"""Planted bug: a body that does not fit is quoted in the answer."""

from typing import Any

from gateway.api import payloads
from gateway.domain.errors import Problem

_real = payloads.decoder


def decoder(kind: Any) -> Any:
    decode = _real(kind)

    def checked(body: bytes) -> Any:
        try:
            return decode(body)
        except Problem as problem:
            raise Problem(problem.code, f"not understood: {body.decode(errors='replace')}") from None

    return checked


payloads.decoder = decoder
