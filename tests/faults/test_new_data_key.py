"""Cards sealed under a data key that another process has made since: the first verify waits until it is loaded."""

import asyncio

from tests.faults.home import Figure, Home
from tests.faults.planted import plant
from tests.faults.wire import get, verify, wires
from tests.registry import CARDS
from tests.running import Client

AT_ONCE = 40


async def first_verifies(home: Home) -> list[int]:
    """The statuses of the first verifies, on both workers and on the hot lane, after the key was made; in a scene where
    one of the cards has a capped benefit (config/benefits.toml), that is to be claimed after the wait."""
    await home.running.start()
    await home._add_cards()
    async with Client(home.running, "demo-merchant") as client:
        authorization = (await client.authorization())["Authorization"]
    async with wires(home.running.port, AT_ONCE) as opened:
        await asyncio.gather(*(wire.ask(get("/.well-known/jwks.json")) for wire in opened))
        answers = await asyncio.gather(
            *(wire.ask(verify(authorization, f"dk-{place}", place, "dining.till")) for place, wire in enumerate(opened))
        )
    assert all(
        answer.body["reason"] == CARDS[place % len(CARDS)].reason
        for place, answer in enumerate(answers)
        if answer.status == 200
    )
    meals = sum("dining.elder_meal" in answer.body.get("benefits", ()) for answer in answers)
    assert meals == 2 or any(answer.status != 200 for answer in answers)
    return [answer.status for answer in answers]


async def test_the_first_verify_after_a_new_data_key_is_answered(home: Home, figure: Figure) -> None:
    statuses = await first_verifies(home)
    figure(at_once=AT_ONCE, answered=statuses.count(200))
    assert statuses == [200] * AT_ONCE


async def test_control_an_answer_that_does_not_wait_is_noticed(home: Home) -> None:
    home.running.environment |= plant("no_waiting_for_keys")
    assert 503 in await first_verifies(home)
