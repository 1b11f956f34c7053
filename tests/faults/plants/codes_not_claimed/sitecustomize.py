"""A code that the platform has approved is not claimed."""

from gateway.store import verify

verify._SQL_WITH_CODES = verify._SQL_WITH_CODES.replace("event_id NOT IN (SELECT event_id FROM claimed)", "false")
