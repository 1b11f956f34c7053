"""Bring a subscriber what waits aside for it: usage events that it did not take with the feed (deliver_usage.py)."""

import asyncio
import datetime as dt

import structlog

from gateway.domain.outbox import Acknowledgement, acknowledgement, knock_s, next_try
from gateway.domain.outcome import Outcome
from gateway.flows.deliver_usage import Delivery, is_out, was_no_answer, was_no_try
from gateway.metrics import OUTBOX_DEAD
from gateway.store import outbox
from gateway.store.outbox import Due, Failed

log = structlog.get_logger()

HELD_IDLE_S = 1.0
_HELD_A_TURN = 64


class DeliverHeld:
    """turn() after turn(): what waits aside and is due, each event by itself, so that none fails for another."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._name = delivery.subscriber.name
        self._failures = 0

    async def turn(self) -> float:
        """The seconds to rest. Raises LeaseLost, Problem 503."""
        delivery = self._delivery
        async with delivery.look() as (connection, _):
            delivery.held = await outbox.count_held(connection, self._name)
        if not delivery.held:
            return HELD_IDLE_S
        async with delivery.transaction() as (connection, standing):
            due = await outbox.due(connection, self._name, delivery.now(), _HELD_A_TURN)
            if due:
                await outbox.sending(connection, self._name, standing.sent, len(due))
        if not due:
            return HELD_IDLE_S
        outcomes = await self._deliver(due, standing.sequence)
        await self._settle(due, outcomes)
        if all(map(was_no_try, outcomes)):
            self._failures += 1
            return knock_s(self._failures, delivery.chance())
        self._failures = 0
        return 0.0

    async def _deliver(self, due: list[Due], sequence: int) -> list[Outcome]:
        places = asyncio.Semaphore(self._delivery.subscriber.lanes_max)

        async def one(number: int, event: Due) -> Outcome:
            async with places:
                return await self._delivery.send(number, [self._delivery.item(event.row, event.sent, event.replayed)])

        return await asyncio.gather(*(one(sequence + 1 + i, event) for i, event in enumerate(due)))

    async def _settle(self, due: list[Due], outcomes: list[Outcome]) -> None:
        now, told = self._delivery.now(), [acknowledgement(outcome) for outcome in outcomes]
        is_up = False
        for one in told:
            if one is not None:
                self._delivery.count(one, 1)
                is_up |= one.accepted(1) > 0
        delivered = [event.row for event, one in zip(due, told, strict=True) if one is not None and not one.refused]
        async with self._delivery.transaction() as (connection, standing):
            if is_up and standing.asides:
                await outbox.answered(connection, self._name, ended=is_out(standing))
            out = is_out(standing) and not is_up
            failures = [
                self._failed(event, one, out and was_no_answer(outcome), now)
                for event, one, outcome in zip(due, told, outcomes, strict=True)
                if (one is None or one.refused) and not was_no_try(outcome)
            ]
            dead = await outbox.settle(connection, self._name, delivered, failures, now)
        if dead:
            OUTBOX_DEAD.labels(self._name).inc(dead)
            log.error("usage events were given up", subscriber=self._name, events=dead)

    def _failed(self, event: Due, told: Acknowledgement | None, outage: bool, now: dt.datetime) -> Failed:
        """A try that was early, or for which the subscriber's outage is to blame, is none of the twelve."""
        row, tries, at = event.row, event.tries, event.regular_at
        code = told.refused[row.event_id] if told is not None else None
        if at is None:
            tries = max(tries, 1) if outage else tries + 1
            at = next_try(tries, now, self._delivery.chance())
        return Failed(row.position, row.event_id, code, tries, at)
