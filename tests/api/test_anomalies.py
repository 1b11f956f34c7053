"""Usage monitoring in a running gateway: an operator sees what happened at a terminal, by metric, log and command."""

from tests.api.test_payment_operators import command
from tests.running import Client, Running, eventually, labelled

TERMINAL = "WY-MK-3"


async def test_an_operator_sees_a_terminal_that_refuses(operated: Running) -> None:
    async with Client(operated, "demo-merchant") as merchant:
        for _ in range(8):
            answer = await merchant.verify("QX0000000", "0" * 32, "market.till", terminal_id=TERMINAL)
            assert answer["verdict"] == "refused", "nobody is treated in another way"

    async def counted() -> bool:
        found = labelled(await operated.metrics(), "yikatong_anomalies_total")
        assert ("two_places",) in found, "a rule that has found nothing is there too"
        return found["refusals",] >= 1

    assert await eventually(counted, 30, "the anomaly is in the metrics")
    code, text = await command(operated, "anomalies", "--since", "10m")
    assert code == 0 and f"refusals        demo-merchant {TERMINAL}\n" in text and answer["event_id"] in text
    assert "refused 8, answered 8" in text
    (line,) = [line for line in operated.log.splitlines() if '"event": "anomaly"' in line]
    assert '"rule": "refusals"' in line and TERMINAL not in line
    assert await command(operated, "anomalies", "--since", "2099-01-01") == (0, "nothing odd was found\n")
    assert (await command(operated, "anomalies", "--since", "soon"))[0] == 1
