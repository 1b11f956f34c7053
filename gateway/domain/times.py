"""Times: aware UTC inside, +08:00 at the edge."""

import datetime as dt

CHINA = dt.timezone(dt.timedelta(hours=8))
"""China has had no summer time since 1991, so a fixed offset is exact."""
