"""Counts of capped benefits are looked at, and written later: nobody's lock is waited for."""

from gateway.store import benefits

lock, _, _ = benefits._LOCK.partition("ON CONFLICT")
benefits._LOCK = (
    lock
    + """ON CONFLICT DO NOTHING
)
SELECT asked.holder, CASE WHEN coalesce(kept.used, 0) < asked.cap THEN coalesce(kept.used, 0) END
FROM asked LEFT JOIN benefit_use AS kept USING (since, span, benefit, holder), pg_sleep(0.1) ORDER BY asked.item
"""
)
benefits._TAKE = benefits._TAKE.replace("SET used = used + n", "SET used = least(used + n, cap)")
