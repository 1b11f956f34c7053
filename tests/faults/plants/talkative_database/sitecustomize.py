"""Planted bug: the embedded PostgreSQL logs as it comes out of the box, and nobody asks it."""

from gateway.store import discretion, embedded

for _name in [name for name in embedded._OPTIONS if name.startswith("log_") and name != "logging_collector"]:
    if _name not in ("log_filename", "log_truncate_on_rotation", "log_rotation_age"):
        del embedded._OPTIONS[_name]
discretion.indiscretions = lambda values: []
