"""PostgreSQL killed between the intent and its message, and between the bank's answer and the commit of it."""

import asyncio
import signal
from pathlib import Path

import pytest

from tests.faults.market import Market
from tests.faults.market import market as market
from tests.faults.payments import PATH, Effect, Findings, Sale, shop_at
from tests.faults.waiting import gone, send, tree, until
from tests.simulated_banks import BANKS, of_bank


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


async def postgres_killed(market: Market, at: str, folder: Path) -> Findings:
    """While a payment, a reversal and a refund at either bank stand before their `send`, or the `write` of its answer.

    It comes back when each of them has met its absence.
    """
    market.home.running.environment |= {"STAND_AT": at, "STAND": str(folder)}
    (folder / "go").touch()
    await market.start()
    customers = await market.customers()
    async with shop_at(market.home, customers) as shop:
        shop.sales += [Sale(of_bank(customers, bank)[number], 500) for number in range(3) for bank in BANKS]
        paid = shop.sales[2:]
        await asyncio.gather(*(shop.until_answered(sale.payment) for sale in paid))
        assert [sale.payment.status for sale in paid] == ["approved"] * 4
        empty(folder)
        effects = [sale.payment for sale in shop.sales[:2]]
        for sale in paid[:2]:
            sale.reversal = Effect(f"{PATH}/{sale.payment.answer['reference']}/reversals", {})
        for sale in paid[2:]:
            sale.refund = Effect(f"{PATH}/{sale.payment.answer['reference']}/refunds", {"amount_fen": 200})
        effects += [effect for sale in paid for effect in (sale.reversal, sale.refund) if effect is not None]
        asking = [asyncio.create_task(shop.until_answered(effect)) for effect in effects]
        await until(lambda: len(list(folder.glob("standing-*"))) == len(effects), 20, "all of them stand")
        keeper, server = tree(market.home.running.pid)[:1], tree(market.home.postmaster)
        send(keeper, signal.SIGSTOP)  # it would start the server again
        try:
            send(server, signal.SIGKILL)
            await gone(server, 5)
            (folder / "go").touch()
            await until(lambda: len(list(folder.glob("ended-*"))) == len(effects), 20, "all have met its absence")
        finally:
            send(keeper, signal.SIGCONT)
        await asyncio.gather(*asking)
    return await market.settled(shop.sales)


@pytest.mark.parametrize("at", ["send", "write"])
async def test_all_ends_right_when_it_is_back(
    market: Market, at: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    findings = await postgres_killed(market._replace(bug="stands_still"), at, tmp_path_factory.mktemp("stand"))
    assert findings.clean, findings


async def test_control_an_intent_taken_for_not_sent_is_noticed(
    market: Market, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stand = tmp_path_factory.mktemp("stand")
    findings = await postgres_killed(market._replace(bug="intent_is_not_sent"), "write", stand)
    assert findings.unlike, findings
