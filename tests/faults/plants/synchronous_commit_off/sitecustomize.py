"""Planted bug: commits do not wait for the disk, and nobody asks whether they do."""

from typing import Any

from gateway.store import pool

_real = pool._options


def _options(*asked: Any) -> dict[str, Any]:
    options = _real(*asked)
    options["server_settings"]["synchronous_commit"] = "off"
    return options


setattr(pool, "_options", _options)  # noqa: B010
pool._REQUIRED["synchronous_commit"] = ("on", "remote_apply", "off")
