"""Planted bug: the gateway takes any database, whatever its settings."""

from gateway.store import pool

pool._REQUIRED.clear()
