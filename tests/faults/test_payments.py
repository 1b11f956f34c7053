"""Promise 6, whole: the running gateway and both simulated banks, answers lost at every step, everything killed.

In the end every payment is approved, declined or reversed, nobody paid twice, and the banks' books are ours, reference
by reference and fen by fen. What a dialect cannot find out (a refund by ISO 8583 without an answer) stays open.
"""

import asyncio
from collections import Counter

from tests.faults.home import Figure
from tests.faults.market import KILLED, Market
from tests.faults.market import market as market
from tests.faults.payments import PATH, Effect, Findings, Sale, check, shop_at, steps_of
from tests.faults.test_effects_kill import set_hold, until_it_stands

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


async def test_control_an_order_that_is_paid_twice_is_noticed(market: Market) -> None:
    market = market._replace(bug="doubt_is_not_sent", faults={"drop_after": 0.5})
    await market.start()
    sales = await market.round(await market.customers(), 60, killed=[])
    assert (await check(market.home, market.banks, sales)).doubled


async def test_control_a_reversal_that_is_not_repeated_is_noticed(market: Market) -> None:
    market = market._replace(bug="reversal_sent_once")
    await market.start()
    customers = await market.customers()
    async with shop_at(market.home, customers) as shop:
        shop.sales += [Sale(customer, 100) for customer in customers[:8]]
        await asyncio.gather(*(shop.until_answered(sale.payment) for sale in shop.sales))
        await market.banks.faults({"kind": "drop_before"})
        for sale in shop.sales:
            sale.reversal = Effect(f"{PATH}/{sale.payment.answer['reference']}/reversals", {})
            await shop.until_answered(sale.reversal)
        findings = await check(market.home, market.banks, shop.sales)
    assert findings.reversed and findings.unlike >= findings.reversed, findings


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
