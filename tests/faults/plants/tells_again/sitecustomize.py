"""Planted bug: a barrier that nobody is known to have told is told by the resolver, when another car may stand there.

With a place to die, as in dies_before_it_tells.
"""

import datetime as dt

from gateway.domain.visits import VisitState
from gateway.flows.settle_visit import Details, SettleVisit
from gateway.store.visits import Visit
from tests.faults.plants.dies_before_it_tells import sitecustomize  # noqa: F401 - where to die

_again = SettleVisit.again


async def again(self: SettleVisit, visit: Visit) -> None:
    if visit.state is VisitState.INTENT:
        later = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=30)
        await self._tell(visit._replace(expires_at=later), Details(), "")
    else:
        await _again(self, visit)


setattr(SettleVisit, "again", again)  # noqa: B010
