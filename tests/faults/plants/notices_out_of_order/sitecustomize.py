"""Planted bug: a bank is told of the newest first, and a release does not wait for its loss."""

from gateway.store import loss_notices

_before, _, _after = loss_notices._DUE.partition("    AND NOT EXISTS")
loss_notices._DUE = f"{_before}    ORDER BY turn DESC{_after.partition('ORDER BY next_try_at')[2]}"
