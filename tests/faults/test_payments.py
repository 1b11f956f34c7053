"""Promise 6, whole: the running gateway and both simulated banks, answers lost at every step, everything killed.

In the end every payment is approved, declined or reversed, nobody paid twice, and the banks' books are ours, reference
by reference and fen by fen. What a dialect cannot find out (a refund by ISO 8583 without an answer) stays open.
"""

import asyncio
from collections import Counter

import pytest

from tests.faults.home import Figure
from tests.faults.market import KILLED, SETTLED_S, Market
from tests.faults.market import market as market
from tests.faults.payments import Findings, Sale, check, shop_at, steps_of
from tests.faults.test_effects_kill import set_hold, until_it_stands
from tests.faults.waiting import until

PER_ROUND = 250


async def test_every_payment_ends_and_the_banks_books_are_ours(market: Market, cycles: int, figure: Figure) -> None:
    await market.start()
    customers, sales = await market.customers(), list[Sale]()
    rounds = max(1, cycles * 100 // PER_ROUND)
    for _ in range(rounds):
        sales += await market.round(customers, PER_ROUND)
    findings = await market.settled(sales)
    steps = await steps_of(market.home)
    told = Counter(sale.payment.status for sale in sales)
    cut = sum(sale.payment.cut > 0 for sale in sales)
    figure(kills=rounds * len(KILLED), told_pending=told["pending"], cut=cut, **findings._asdict())
    figure(**{name.replace(" ", "_"): count for name, count in sorted(steps.items())})
    assert findings.clean, findings
    # the faults did reach every step
    reached = {"payment unknown", "payment reversing", "payment reversed", "reversal unknown", "refund unknown"}
    assert reached <= steps.keys() and told["pending"] and told["approved"] and cut


@pytest.mark.parametrize(("bug", "column"), [("reversal_sent_once", "unlike"), ("doubt_is_not_sent", "doubled")])
async def test_control_the_check_notices(market: Market, bug: str, column: str) -> None:
    market = market._replace(bug=bug)
    await market.start()
    sales = await market.round(await market.customers(), 60, killed=[])

    async def noticed() -> bool:
        return bool(getattr(await check(market.home, market.banks, sales), column))

    await until(noticed, SETTLED_S, f"{bug} is noticed")


async def killed_before_the_commit(market: Market) -> Findings:
    """The workers, while an intent is recorded and not committed; then the customer asks again with the same key."""
    await market.start()
    customers = (await market.customers())[:1]
    await set_hold(market.home, True)
    async with shop_at(market.home, customers) as shop:
        selling = asyncio.create_task(shop.sell(1))
        await until_it_stands(market.home)
        await market.kill("workers")
        await set_hold(market.home, False)
        await selling
    return await market.settled(shop.sales)


async def test_the_bank_hears_nothing_before_the_intent_is_committed(market: Market) -> None:
    findings = await killed_before_the_commit(market)
    assert findings.clean and findings.approved + findings.reversed == 1, findings


async def test_control_a_message_before_the_commit_is_noticed(market: Market) -> None:
    findings = await killed_before_the_commit(market._replace(bug="sent_before_the_intent"))
    assert findings.unheard == 1, findings
