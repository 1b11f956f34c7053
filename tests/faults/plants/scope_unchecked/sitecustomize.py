"""Planted bug: a token is good for everything."""

from collections.abc import Mapping
from typing import Any

from gateway.api import middleware


def admit(gateway: Any, headers: Mapping[str, str], scope: object) -> tuple[str, Any, frozenset[Any]]:
    known, access = gateway.authenticate(headers.get("Authorization"))
    return access.caller_id, known, known.scopes


setattr(middleware, "_admit", admit)  # noqa: B010
