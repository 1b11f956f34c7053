"""Planted bug: a worker that is told to stop closes its idle connections at once."""

from gateway.api import server

server._FAREWELL_S = 0.0
