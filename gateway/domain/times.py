"""Times: aware UTC inside, +08:00 at the edge."""

import datetime as dt

CHINA = dt.timezone(dt.timedelta(hours=8))
"""China has had no summer time since 1991, so a fixed offset is exact."""

_EPOCH = dt.date(1970, 1, 1).toordinal()
_DAY_US = 86_400_000_000
_AHEAD_US = 8 * 3_600_000_000


def china_day(unix_us: int) -> dt.date:
    """The day in +08:00 of a time in microseconds since 1970."""
    return dt.date.fromordinal(_EPOCH + (unix_us + _AHEAD_US) // _DAY_US)
