"""Planted bug: a card sealed under a data key that is not loaded yet is answered 503."""

from gateway.api import hot_lane

hot_lane.WAITING_MAX = 0
