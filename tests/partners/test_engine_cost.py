"""The measurements that `make bench` starts work: few calls, and no word about how long they took."""

from tests.partners import engine_cost, link_in_flight


async def test_every_way_of_a_call_is_measured() -> None:
    found = await engine_cost.measure(calls=64, rounds=2)
    assert found.keys() == {"http", "link"}
    assert all(us > 0 for cost in found.values() for us in (*cost.bare, *cost.transport, *cost.call))
    assert all(len(cost.call) == 2 for cost in found.values())


async def test_each_call_in_flight_gets_its_own_answer() -> None:
    found = await link_in_flight.measure(in_flight=100, calls=200, delay_ms=200)
    assert (found.calls, found.in_flight_max, found.outcomes) == (200, 100, {"Approved": 200})
    assert found.correlated == 200
